//! A delta applied: everything about the base is verified before a byte is computed, and every new tensor before the
//! result exists.

use std::sync::Arc;

use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::words::nearest;
use rayon::prelude::*;

use super::error::{Result, base as refuse, corrupt};
use super::index;
use super::read::{Delta, DeltaTensor};
use super::version::Version;

/// Weights that are held, on which a delta may build.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// As stored: FP8 weights and their scales are tensors of their own.
    pub checkpoint: &'a Checkpoint,
    /// Which version they are. `None`: unknown; then checksums alone tell whether a delta fits. Where a chain is looked
    /// for, unknown weights count as version 0, what the engine started with.
    pub version: Option<Version>,
}

/// The version that `delta` leads to. Tensors that do not change share the bytes of the base.
pub fn apply(base: &Base<'_>, delta: &Delta) -> Result<Checkpoint> {
    if let Some(held) = base.version
        && held != delta.base_version
    {
        return Err(refuse(
            format!("version {}", delta.version),
            format!("it builds on version {}, version {held} is held", delta.base_version),
            match held < delta.base_version {
                true => format!("apply the versions after {held} in order, or load a full one"),
                false => format!("give weights of version {}, or load a full version", delta.base_version),
            },
        ));
    }
    let old = all(delta, |tensor| fits(base.checkpoint, delta, tensor))?;
    let made: Vec<Result<CheckpointTensor>> =
        delta.tensors.par_iter().zip(old).map(|(t, old)| one(delta, t, old)).collect();
    let changed = made.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(base.checkpoint.with_tensors(changed)?)
}

/// For each tensor, in parallel; of several errors always the one of the first name.
fn all<'a, T: Send>(delta: &'a Delta, f: impl Fn(&'a DeltaTensor) -> Result<T> + Send + Sync) -> Result<Vec<T>> {
    let made: Vec<Result<T>> = delta.tensors.par_iter().map(f).collect();
    made.into_iter().collect()
}

/// The tensor of the base that a difference is for.
fn fits<'a>(checkpoint: &'a Checkpoint, delta: &Delta, tensor: &DeltaTensor) -> Result<&'a CheckpointTensor> {
    let what = || format!("tensor `{}` of version {}", tensor.name, delta.version);
    let next = format!("give version {} as the base, or load a full version", delta.base_version);
    let Some(old) = checkpoint.get(&tensor.name) else {
        let near = nearest(&tensor.name, checkpoint.tensors().map(|t| t.name.as_str()));
        let near = near.map(|n| format!("; the nearest name is `{n}`")).unwrap_or_default();
        return Err(refuse(what(), format!("the base has no such tensor{near}"), next));
    };
    if old.scale.is_some() {
        return Err(refuse(
            what(),
            "in the base it was paired with its scales; a delta builds on tensors as they are stored",
            "apply the delta to the checkpoint as it was opened",
        ));
    }
    if let Some(stamp) = &tensor.base {
        let found = index::layout(old);
        let wanted = stamp.split_once(' ').map_or("", |(layout, _)| layout);
        if wanted != found {
            return Err(refuse(what(), format!("it is for {}, the base has {found}", wanted.escape_debug()), next));
        }
        if *stamp != index::stamp(old, delta.checksum)? {
            return Err(refuse(
                what(),
                format!("the base has other bytes there ({} of the version it was made from)", delta.checksum.name()),
                next,
            ));
        }
    }
    Ok(old)
}

fn one(delta: &Delta, tensor: &DeltaTensor, old: &CheckpointTensor) -> Result<CheckpointTensor> {
    let what = || format!("tensor `{}` of version {}", tensor.name, delta.version);
    let new = delta
        .encoding
        .decode(&old.data.load()?, &tensor.compressed.load()?)
        .map_err(|why| corrupt(what(), format!("{} difference: {why}", delta.encoding.name()), AGAIN))?;
    if delta.checksum.of(&new) != tensor.result {
        let why = match tensor.base {
            Some(_) => "its bytes do not have the checksum of the version",
            None => {
                "its bytes do not have the checksum of the version: the delta is damaged, or the base is another one"
            }
        };
        return Err(corrupt(what(), format!("{why} ({})", delta.checksum.name()), AGAIN));
    }
    let len = new.len();
    let data = TensorBytes::new(Arc::new(new), 0..len);
    let data = data.ok_or_else(|| corrupt(what(), "its bytes do not fit", "please report this"))?;
    Ok(CheckpointTensor::new(tensor.name.clone(), old.stored, old.shape.clone(), data))
}

const AGAIN: &str = "copy or publish the version again, or load a full one";
