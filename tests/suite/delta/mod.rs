//! Versions of weights in folders: those of slime are read, ours come back bit for bit, and whatever is wrong with one is
//! refused before anything is applied.

mod form;
mod hostile;
mod place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::support::{Tensor, copy_folder, data, read, tmp, write};
use patchhost::checkpoint::bundled;
use patchhost::checkpoint::export::Companions;
use patchhost::checkpoint::versions::{
    Base, Beside, Checksum, Encoding, Loaded, Source, Version, VersionError, WriteOptions, apply, write_delta,
    write_full,
};
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

pub const INDEX: &str = "model.safetensors.index.json";

/// Every dtype that weights have, odd sizes, a scalar and an empty tensor.
pub const SHAPES: [(&str, Dtype, usize, &[usize]); 8] = [
    ("model.embed_tokens.weight", Dtype::BF16, 2, &[7, 33]),
    ("model.layers.0.q.weight", Dtype::F8_E4M3, 1, &[65, 3]),
    ("model.layers.0.q.weight_scale_inv", Dtype::F32, 4, &[1, 1]),
    ("model.layers.0.up.weight", Dtype::F16, 2, &[13, 5]),
    ("model.norm.weight", Dtype::F32, 4, &[129]),
    ("model.scalar", Dtype::F32, 4, &[]),
    ("model.steps", Dtype::I64, 8, &[5]),
    ("model.nothing", Dtype::F32, 4, &[0, 4]),
];

pub fn model(seed: u64) -> Vec<Tensor> {
    let mut rng = StdRng::seed_from_u64(seed);
    SHAPES
        .iter()
        .map(|(name, dtype, width, shape)| {
            let n = width * shape.iter().product::<usize>();
            ((*name).to_string(), *dtype, shape.to_vec(), (0..n).map(|_| rng.random()).collect())
        })
        .collect()
}

/// The same with about a part of the bytes of some tensors changed; norm and steps stay.
pub fn trained(from: &[Tensor], seed: u64, part: f64) -> Vec<Tensor> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut to = from.to_vec();
    for (name, _, _, bytes) in &mut to {
        if name.contains("norm") || name.contains("steps") {
            continue;
        }
        let must = bytes.len().checked_sub(1).map(|last| rng.random_range(0..=last));
        for (i, byte) in bytes.iter_mut().enumerate() {
            if rng.random_bool(part) || must == Some(i) {
                *byte ^= rng.random_range(1..=255u8);
            }
        }
    }
    to
}

pub fn checkpoint(tensors: &[Tensor]) -> Checkpoint {
    Checkpoint::from_tensors(tensors.iter().map(|(name, dtype, shape, bytes)| {
        let data = TensorBytes::new(Arc::new(bytes.clone()), 0..bytes.len()).unwrap();
        CheckpointTensor::new(name.clone(), *dtype, shape.clone(), data)
    }))
    .unwrap()
}

pub fn tensors(checkpoint: &Checkpoint) -> Vec<Tensor> {
    checkpoint.tensors().map(|t| (t.name.clone(), t.stored, t.shape.clone(), t.data.load().unwrap().to_vec())).collect()
}

pub fn sorted(mut tensors: Vec<Tensor>) -> Vec<Tensor> {
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

pub fn base(checkpoint: &Checkpoint, version: Option<u64>) -> Option<Base<'_>> {
    Some(Base { checkpoint, version: version.map(Version) })
}

pub fn load(path: &Path, base: Option<Base<'_>>, target: Option<u64>) -> Result<Loaded, VersionError> {
    Source::open(path)?.load(base, target.map(Version))
}

/// The text of an error, which must have three parts, without the folder `hide`.
#[track_caller]
pub fn refused<T>(result: Result<T, VersionError>, hide: &Path) -> String {
    let Err(e) = result else { panic!("it was taken") };
    let text = e.to_string().replace(&hide.canonicalize().unwrap().display().to_string(), "[tmp]");
    let text = text.replace(&hide.display().to_string(), "[tmp]");
    assert!(text.contains("\n  why: ") && text.contains("\n  next: "), "not three parts: {text}");
    text
}

pub fn small(checksum: Checksum) -> WriteOptions {
    WriteOptions { checksum, max_shard: 300 }
}

/// Version 1 (full) and 2 (delta) of a model in `dir`, and what they hold.
pub fn two_versions(dir: &Path, encoding: Encoding) -> (Vec<Tensor>, Vec<Tensor>) {
    let one = model(1);
    let two = trained(&one, 2, 0.1);
    let options = small(Checksum::Sha256);
    let (a, b) = (checkpoint(&one), checkpoint(&two));
    write_full(&a, &Beside::default(), dir, Version(1), &options).unwrap();
    write_delta(&a, &b, dir, Version(2), Version(1), encoding, &options).unwrap();
    (sorted(one), sorted(two))
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    names(folder).into_iter().map(|n| (n.clone(), std::fs::read(folder.join(n)).unwrap())).collect()
}

pub fn edit_index(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join(INDEX);
    let mut index = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut index);
    std::fs::write(path, serde_json::to_vec(&index).unwrap()).unwrap();
}
