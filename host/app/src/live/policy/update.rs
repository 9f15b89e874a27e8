//! An update that arrives in chunks, over HTTP or from anywhere else: one at a time, assembled apart from everything, and
//! then one refit.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use patchhost_runtime::assembly::ChunkHeader;
use patchhost_runtime::checkpoint::CheckpointTensor;
use patchhost_runtime::error::Refusal;
use patchhost_runtime::refit::{Arrivals, Begin, Progress};

use super::refit::Refitted;
use super::{Live, LiveError};
use crate::patch::{Actor, RefitTarget};

/// One update under way. Dropping it ends it without effect.
pub struct Update<T: RefitTarget> {
    lock: Lock<T>,
    arrivals: Arrivals,
    actor: Actor,
}

/// While it is there no other update begins.
struct Lock<T: RefitTarget>(Arc<Live<T>>);

impl<T: RefitTarget> Live<T> {
    /// Opens an update, unless one is open.
    pub fn open_update(self: &Arc<Self>, begin: Begin, actor: &Actor) -> Result<Update<T>, LiveError> {
        if self.update_open.swap(true, Ordering::AcqRel) {
            return Err(LiveError::Busy(Refusal::new(
                format!("update `{}`", begin.version.as_deref().unwrap_or("(unnamed)")),
                "another update is open; one at a time",
                "finish or abort it first",
            )));
        }
        let lock = Lock(self.clone());
        Ok(Update { lock, arrivals: self.target.arrivals(begin), actor: actor.clone() })
    }
}

impl<T: RefitTarget> Update<T> {
    /// A range of bytes of a tensor. A chunk that is refused changes nothing; the update goes on.
    pub fn chunk(&mut self, chunk: &ChunkHeader<'_>, bytes: &[u8]) -> Result<(), LiveError> {
        Ok(self.arrivals.chunk(chunk, bytes)?)
    }

    /// A whole tensor; its bytes are shared, not copied.
    pub fn tensor(&mut self, tensor: &CheckpointTensor) -> Result<(), LiveError> {
        Ok(self.arrivals.tensor(tensor)?)
    }

    /// All that `take` brings of tensors with these names, or nothing of it.
    pub fn together<'n>(
        &mut self,
        names: impl Iterator<Item = &'n str>,
        take: impl FnOnce(&mut Arrivals) -> patchhost_runtime::error::Result<()>,
    ) -> Result<(), LiveError> {
        Ok(self.arrivals.together(names, take)?)
    }

    /// All its tensors together may take no more than `limit` bytes.
    pub fn at_most(&mut self, limit: usize) {
        self.arrivals.at_most(limit);
    }

    /// What arrived until now.
    pub fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// Calls the weights by another name than the sender did at the beginning.
    pub fn rename(&mut self, version: String) {
        self.arrivals.rename(version);
    }

    /// Takes tensors that come less precise than the model is declared.
    pub fn allow_narrowing(&mut self) {
        self.arrivals.allow_narrowing();
    }

    /// Says whether all tensors come, or what does not come stays as it is.
    pub fn complete(&mut self, complete: bool) {
        self.arrivals.complete(complete);
    }

    /// All has been sent: one refit. Whatever it says, the update is over.
    pub fn finish(self, progress: Progress<'_>) -> Result<Refitted<T::Weights>, LiveError> {
        let Self { lock, arrivals, actor } = self;
        let live = &lock.0;
        let source = arrivals.finish().inspect_err(|error| {
            let mut telling = live.begins("refit", &actor);
            telling.fact("patch_set", || live.board.active().digest());
            telling.ends(Some(error));
        })?;
        live.arrived(source, &actor, progress)
    }
}

impl<T: RefitTarget> Drop for Lock<T> {
    fn drop(&mut self) {
        self.0.update_open.store(false, Ordering::Release);
    }
}
