//! The endpoints that RL trainers use, over HTTP: weights in every transport, pauses, tokens, adapters, and what is
//! refused.

mod adapters;
mod changing;
mod doors;
mod generate;
mod hostile;
mod pauses;
mod pulls;
mod senders;
mod transports;
mod uploads;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use patchhost::checkpoint::bundled;
use patchhost::checkpoint::write::{Out, safetensors};
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use safetensors::tensor::Dtype;

use crate::oracle::hooks;
use crate::support::Tensor;

/// The bundled model's tensors, each value a little different from the first ones: another step of a trainer.
pub fn step(n: u32) -> Vec<Tensor> {
    let file = bundled::checkpoint().unwrap();
    file.tensors()
        .map(|t| {
            assert_eq!(t.stored, Dtype::BF16);
            let data = t.data.load().unwrap();
            let bytes = data.as_chunks::<2>().0.iter().flat_map(|b| {
                let value = half::bf16::from_le_bytes(*b).to_f32();
                half::bf16::from_f32(value * (1.0 + 0.01 * n as f32)).to_le_bytes()
            });
            (t.name.clone(), t.stored, t.shape.clone(), bytes.collect())
        })
        .collect()
}

/// As safetensors bytes.
pub fn file(tensors: &[Tensor], metadata: &[(String, String)]) -> Vec<u8> {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("x.safetensors");
    save(&path, tensors, metadata);
    std::fs::read(path).unwrap()
}

pub fn save(path: &Path, tensors: &[Tensor], metadata: &[(String, String)]) {
    let out: Vec<Out<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| Out {
            name: name.clone(),
            dtype: *dtype,
            shape: shape.clone(),
            data: Cow::Borrowed(data),
        })
        .collect();
    let metadata: HashMap<String, String> = metadata.iter().cloned().collect();
    safetensors(path, &out, metadata).unwrap();
}

/// What a server that loads these tensors through these patches must have, computed here.
pub fn expected(tensors: &[Tensor], components: &[&str]) -> BTreeMap<String, String> {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("model.safetensors");
    save(&path, tensors, &[]);
    let engine = Engine::new(bundled::CONFIG, EngineOptions::default()).unwrap();
    engine.refit(&Checkpoint::open(&path).unwrap(), &hooks(components), &|_, _, _| {}).unwrap();
    let digests = engine.live().unwrap().digests(engine.registry());
    digests.into_iter().map(|d| (d.name, d.sha256_runtime)).collect()
}
