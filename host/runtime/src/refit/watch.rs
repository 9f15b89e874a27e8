//! Showing a refit to the patches that watch it. They see names, dtypes, shapes and digests, never weights.

use std::sync::Arc;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::arrivals::Source;
use crate::bytes::TensorData;
use crate::checkpoint::CheckpointTensor;
use crate::error::{Refusal, Result, RuntimeError};
use crate::hooks::{Arrival, RefitObserver, RefitWatch, Verdict};
use crate::words::hex;

/// Tensors of one call, as the interface promises.
const BATCH: usize = 4_096;
/// Bytes that are hashed at once.
const PART: usize = 16 << 20;

/// The observers of one refit, in order. Dropping it ends the watch, whichever way the refit went.
pub(crate) struct Watches {
    label: String,
    watches: Vec<(String, Box<dyn RefitWatch>)>,
}

/// Tells every observer that a refit begins.
pub(crate) fn watch(observers: &[Arc<dyn RefitObserver>], label: &str, expected: Option<&[String]>) -> Result<Watches> {
    let mut all = Watches { label: label.to_string(), watches: Vec::with_capacity(observers.len()) };
    for observer in observers {
        let (verdict, watch) = observer.begin(label, expected)?;
        all.obey(observer.name(), verdict)?;
        all.watches.push((observer.name().to_string(), watch));
    }
    Ok(all)
}

/// Shows a whole refit to observers: its name, what was promised, every tensor that arrived. Gives the names of those who
/// accepted it; the first veto is the error. For targets of refits besides the engine of this crate.
pub fn observe(observers: &[Arc<dyn RefitObserver>], label: &str, source: &Source) -> Result<Vec<String>> {
    watch(observers, label, source.expected().as_deref())?.show(source)
}

impl Watches {
    /// Shows everything that arrived, where somebody watches.
    pub(crate) fn show(&mut self, source: &Source) -> Result<Vec<String>> {
        let mut watches = std::mem::take(&mut self.watches);
        if watches.is_empty() {
            return Ok(Vec::new());
        }
        let tensors: Vec<&CheckpointTensor> = source.checkpoint().tensors().collect();
        for (name, watch) in &mut watches {
            for (tensors, digests) in tensors.chunks(BATCH).zip(source.sums()?.chunks(BATCH)) {
                let batch: Vec<Arrival> = tensors.iter().zip(digests).map(|(t, d)| arrival(t, d)).collect();
                self.obey(name, watch.tensors(&batch)?)?;
            }
            self.obey(name, watch.finish(tensors.len().try_into().unwrap_or(u32::MAX))?)?;
        }
        Ok(watches.into_iter().map(|(name, _)| name).collect())
    }

    fn obey(&self, patch: &str, verdict: Verdict) -> Result<()> {
        match verdict {
            Verdict::Accept => Ok(()),
            Verdict::Veto(reason) => Err(RuntimeError::Refit(Refusal::new(
                format!("refit `{}`", self.label),
                format!("patch `{patch}` vetoes it: {reason}"),
                "send what it demands, or leave the patch out; the old weights keep serving",
            ))),
        }
    }
}

fn arrival(t: &CheckpointTensor, sha256: &str) -> Arrival {
    Arrival {
        name: t.name.clone(),
        dtype: t.dtype(),
        shape: t.shape.iter().map(|d| *d as u64).collect(),
        sha256: sha256.to_string(),
    }
}

/// SHA-256 of each tensor's bytes as they arrived.
pub(crate) fn digests<'t>(tensors: impl Iterator<Item = &'t CheckpointTensor>) -> Result<Vec<String>> {
    let tensors: Vec<&CheckpointTensor> = tensors.collect();
    tensors.par_iter().map(|t| sha256(&t.data)).collect()
}

/// SHA-256 of the data, hex, with little of it in memory at a time.
fn sha256(data: &TensorData) -> Result<String> {
    let mut hasher = Sha256::new();
    for part in data.parts(PART) {
        hasher.update(&part?.1[..]);
    }
    Ok(hex(&hasher.finalize()))
}
