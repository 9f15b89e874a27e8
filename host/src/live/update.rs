//! An update that arrives in chunks, over HTTP or from anywhere else: assembled apart from everything, and then one refit.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use patchhost_runtime::assembly::{Assembly, ChunkHeader};
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::refit::{Begin, Progress};

use super::refit::Refitted;
use super::{LiveError, LiveModel};
use crate::patch::Actor;

/// One update under way. Dropping it aborts it.
pub struct Update {
    live: Arc<LiveModel>,
    begin: Begin,
    actor: Actor,
    assembly: Option<Assembly>,
}

impl LiveModel {
    /// Opens an update, unless one is open.
    pub fn open_update(self: &Arc<Self>, begin: Begin, actor: &Actor) -> Result<Update, LiveError> {
        if self.update_open.swap(true, Ordering::AcqRel) {
            return Err(LiveError::Busy(Refusal::new(
                format!("update `{}`", begin.version.as_deref().unwrap_or("(unnamed)")),
                "another update is open; one at a time",
                "finish or abort it first",
            )));
        }
        let assembly = Some(Assembly::new(begin.duplicates, self.engine.most_bytes()));
        Ok(Update { live: self.clone(), begin, actor: actor.clone(), assembly })
    }
}

impl Update {
    /// A range of bytes of a tensor. A chunk that is refused changes nothing; the update goes on.
    pub fn chunk(&mut self, chunk: &ChunkHeader<'_>, bytes: &[u8]) -> Result<(), LiveError> {
        if let Some(manifest) = &self.begin.manifest {
            manifest.admits(chunk.name, chunk.dtype, chunk.shape)?;
        }
        Ok(self.open()?.chunk(chunk, bytes).map_err(RuntimeError::Refit)?)
    }

    /// A whole tensor; its bytes are shared, not copied.
    pub fn tensor(&mut self, tensor: &CheckpointTensor) -> Result<(), LiveError> {
        if let Some(manifest) = &self.begin.manifest {
            manifest.admits(&tensor.name, tensor.stored, &tensor.shape)?;
        }
        Ok(self.open()?.tensor(tensor).map_err(RuntimeError::Refit)?)
    }

    /// Bytes that arrived.
    pub fn bytes(&self) -> u64 {
        self.assembly.as_ref().map_or(0, Assembly::bytes)
    }

    /// Tensors of which anything arrived.
    pub fn tensors(&self) -> usize {
        self.assembly.as_ref().map_or(0, Assembly::len)
    }

    /// What the weights will be called, if the sender changed its mind.
    pub fn rename(&mut self, version: String) {
        self.begin.version = Some(version);
    }

    /// Ends it without effect; so does dropping it.
    pub fn abort(self) {}

    /// All has been sent: one refit. Whatever it says, the update is over.
    pub fn finish(mut self, progress: Progress<'_>) -> Result<Refitted, LiveError> {
        let assembly = self.assembly.take().unwrap_or_else(|| Assembly::new(self.begin.duplicates, 0));
        let tensors = assembly.finish().map_err(RuntimeError::Refit)?;
        let checkpoint = Checkpoint::from_tensors(tensors)?;
        self.live.refit(checkpoint, self.begin.clone(), &self.actor, progress)
    }

    fn open(&mut self) -> Result<&mut Assembly, LiveError> {
        self.assembly.as_mut().ok_or_else(|| {
            LiveError::Busy(Refusal::new("a chunk", "the update was finished before", "open a new update"))
        })
    }
}

impl Drop for Update {
    fn drop(&mut self) {
        self.live.update_open.store(false, Ordering::Release);
    }
}
