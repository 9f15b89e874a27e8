//! The 25 points that the patched engine's own behavior gives a host to pass, one test each, named by its number.
//! Most have deeper tests elsewhere; here each is stated once, from outside.

mod numbers;
mod patches;
mod refit;
mod sampling;

use crate::oracle::{hooks, hooks_with, logits};
use crate::support::{
    Tensor, bf16_bytes, copy_model, edit_tensors, f32_bytes, normal, patchhost, read, read_f32, tmp, write,
};
use half::bf16;
use patchhost::patch::{
    AttachError, Attached, Attachments, Description, Patch, Phase, Reviewing, Sandbox, Terms, resolve,
};
use patchhost_runtime::assembly::{ChunkHeader, Duplicates};
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions, ExpertParallel};
use patchhost_runtime::error::RuntimeError;
use patchhost_runtime::kv::KvCache;
use patchhost_runtime::lora::AdapterBuilder;
use patchhost_runtime::model::{Rows, Sequence};
use patchhost_runtime::refit::{Begin, Outcome, RefitHooks};
use patchhost_runtime::weights::Matrix;
use safetensors::tensor::Dtype;
use std::path::PathBuf;
use std::sync::Arc;

pub const QUIET: &(dyn Fn(usize, usize, &str) + Sync) = &|_, _, _| {};
pub const IDS: &[u32] = &[11, 48, 85, 122, 159];

pub fn model(name: &str) -> (tempfile::TempDir, PathBuf) {
    let tmp = tmp();
    let folder = copy_model(name, tmp.path());
    std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
    (tmp, folder)
}

pub fn engine(folder: &std::path::Path) -> Engine {
    Engine::open(folder, EngineOptions::default()).unwrap()
}

/// A patch that is ready.
pub fn patch(name: &str, settings: &[(&str, &str)]) -> Arc<Patch> {
    let candidate = resolve(name).unwrap();
    let terms = Terms::settings(settings.iter().copied());
    Reviewing::default().start(candidate, &terms, Sandbox::new(2).unwrap()).unwrap()
}

/// Refits a serving engine with a changed checkpoint; the error. The old weights must serve on.
#[track_caller]
pub fn refused_refit(name: &str, edit: impl FnOnce(&mut Vec<Tensor>)) -> String {
    let (_tmp, folder) = model(name);
    let engine = engine(&folder);
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap();
    let before = (engine.live().unwrap().digest(engine.registry()), logits(&engine, &[IDS]));
    edit_tensors(&folder, edit);
    let error = engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap_err().to_string();
    assert_eq!((engine.live().unwrap().digest(engine.registry()), logits(&engine, &[IDS])), before);
    error
}

/// The files of a quantized matrix: codes, scales, dimensions of the scales.
pub fn quantized(rows: usize, cols: usize, values: &[f32], settings: &[&str]) -> (Vec<u8>, Vec<f32>, Vec<usize>) {
    let tmp = tmp();
    let (input, output) = (tmp.path().join("in.safetensors"), tmp.path().join("out.safetensors"));
    write(&input, &[("w".into(), Dtype::BF16, vec![rows, cols], bf16_bytes(values))]);
    let mut args = vec!["quantize", input.to_str().unwrap(), output.to_str().unwrap(), "--component", "fp8_block"];
    settings.iter().for_each(|s| args.extend(["--set", s]));
    patchhost(args).good();
    let made = read(&output);
    let find = |name: &str| made.iter().find(|t| t.0 == name).unwrap().clone();
    let scale = find("w_scale_inv");
    (find("w").3, read_f32(&scale.3), scale.2)
}
