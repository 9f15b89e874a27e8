//! The types that a model is declared in, and tensors that say again what the model has from elsewhere: what comes otherwise
//! is rounded or refused by one rule, at a load and in every dialect.

mod dialects;
mod narrowing;
mod repeated;
mod tied;

use std::path::Path;

use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::Engine;
use patchhost_runtime::error::Result;
use patchhost_runtime::refit::{Begin, RefitHooks, RefitReport};
use safetensors::tensor::Dtype;

use crate::list::QUIET;
use crate::support::{Tensor, bf16_bytes, f32_bytes, read, read_f32, write};

/// A refit with these tensors, as an update does it.
fn push(engine: &Engine, hooks: &RefitHooks, tensors: &[Tensor], allow_narrowing: bool) -> Result<RefitReport> {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("model.safetensors");
    write(&path, tensors);
    let begin = Begin { allow_narrowing, ..Begin::default() };
    let source = engine.arrivals(begin).whole(Checkpoint::open(&path)?)?;
    Ok(engine.prepare(&source, hooks, QUIET)?.publish())
}

fn tensors_of(folder: &Path) -> Vec<Tensor> {
    read(&folder.join("model.safetensors"))
}

/// The values of a tensor.
fn values(t: &Tensor) -> Vec<f32> {
    let halves = || t.3.as_chunks::<2>().0.iter();
    match t.1 {
        Dtype::F32 => read_f32(&t.3),
        Dtype::BF16 => halves().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F16 => halves().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        other => panic!("{other:?}"),
    }
}

/// The same values in another type, rounded to nearest even.
fn cast(t: &Tensor, to: Dtype) -> Tensor {
    let values = values(t);
    let bytes = match to {
        Dtype::F32 => f32_bytes(&values),
        Dtype::BF16 => bf16_bytes(&values),
        Dtype::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        other => panic!("{other:?}"),
    };
    (t.0.clone(), to, t.2.clone(), bytes)
}

/// Other values in f32, which no shorter type holds.
fn moved(t: &Tensor) -> Tensor {
    let moved: Vec<f32> = values(t).iter().map(|v| v * 1.003 + 1e-5).collect();
    (t.0.clone(), Dtype::F32, t.2.clone(), f32_bytes(&moved))
}
