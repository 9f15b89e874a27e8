//! One folder of weights: a full checkpoint or a delta. Either is completely there and consistent, or it is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use patchhost_runtime::bytes::TensorData;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::rename::Renames;
use rayon::prelude::*;
use safetensors::tensor::Dtype;

use super::checksum::Checksum;
use super::codec::Encoding;
use super::error::{Result, VersionError, corrupt, format, incomplete, unreadable};
use super::index::{self, AT_BASE, AT_FULL, Index};
use super::version::{PREFIX, Version, applied_version};
use crate::checkpoint::layout::INDEX;
use crate::checkpoint::staging::is_hidden;

/// A whole checkpoint.
#[derive(Clone)]
pub struct Full {
    /// Its tensors. Where it has checksums of its own, they were verified.
    pub checkpoint: Checkpoint,
    /// Which version it is, if it says so.
    pub version: Option<Version>,
}

/// What changed between two versions. Its files are open; nothing of them is read yet but their headers.
pub struct Delta {
    /// The version it leads to.
    pub version: Version,
    /// The version it builds on.
    pub base_version: Version,
    /// How differences are written.
    pub encoding: Encoding,
    /// How tensors are checked.
    pub checksum: Checksum,
    pub(super) tensors: Vec<DeltaTensor>,
}

/// The difference of one tensor.
pub(super) struct DeltaTensor {
    pub name: String,
    /// One zstd frame.
    pub compressed: TensorData,
    /// Checksum of the new bytes.
    pub result: String,
    /// What the tensor is in the base: dtype, shape and checksum. Other writers do not say.
    pub base: Option<String>,
}

impl Full {
    /// The same with other names of the tensors.
    pub fn renamed(self, renames: &Renames) -> Result<Self> {
        Ok(Self { checkpoint: self.checkpoint.renamed(renames)?.0, ..self })
    }
}

impl Delta {
    /// The same for a base with other names of the tensors.
    pub fn renamed(self, renames: &Renames) -> Result<Self> {
        let mut made: BTreeMap<String, DeltaTensor> = BTreeMap::new();
        for tensor in self.tensors {
            let name = renames.apply(&tensor.name).map_err(VersionError::Source)?.into_owned();
            if made.insert(name.clone(), DeltaTensor { name: name.clone(), ..tensor }).is_some() {
                let why = "the renames make it of two of its tensors";
                return Err(format(format!("tensor `{name}` of version {}", self.version), why, "repair the renames"));
            }
        }
        Ok(Self { tensors: made.into_values().collect(), ..self })
    }

    /// Names of the tensors that change, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// Bytes of all differences, compressed.
    pub fn compressed_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.compressed.len() as u64).sum()
    }
}

/// What a folder holds.
pub(super) enum Folder {
    Full(Full),
    Delta(Delta),
}

/// Reads a folder of weights.
pub(super) fn folder(path: &Path) -> Result<Folder> {
    let shown = path.display();
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if is_hidden(name) {
        return Err(incomplete(
            format!("`{shown}`"),
            "it is the hidden folder of a version that is being written, or whose writer was killed",
            "give the version's own folder once it is there",
        ));
    }
    if name.starts_with(PREFIX) && Version::of_folder(name).is_none() {
        return Err(format(
            format!("`{shown}`"),
            format!("`{name}` is not the name of a version's folder, which is like {PREFIX}000012"),
            "rename it, or give the folder that was published",
        ));
    }
    let named = applied_version(path)?;
    match index::read(path)? {
        None => indexless(path, named).map(Folder::Full),
        Some(index) => {
            if let (Some(name), Some(says)) = (named, index.version)
                && name != says
            {
                return Err(format(
                    format!("`{shown}`"),
                    format!("the folder is of version {name}, its index says {says}"),
                    "publish the version again",
                ));
            }
            match index.delta {
                Some((base, encoding)) => delta(path, &index, base, encoding).map(Folder::Delta),
                None => full(path, &index, named).map(Folder::Full),
            }
        }
    }
}

/// A folder without an index. A version's must be one file: other writers put a delta's index there last.
fn indexless(path: &Path, named: Option<Version>) -> Result<Full> {
    if named.is_some() {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|e| unreadable(path, &e))? {
            let name = entry.map_err(|e| unreadable(path, &e))?.file_name();
            if Path::new(&name).extension().is_some_and(|x| x == "safetensors") {
                files.push(name);
            }
        }
        if files.len() != 1 || files[0] != "model.safetensors" {
            return Err(incomplete(
                format!("`{}`", path.display()),
                format!("there is no {INDEX}, which writers put there last, and {} safetensors files", files.len()),
                "wait until the version is published, or publish it again",
            ));
        }
    }
    let checkpoint = Checkpoint::open(path)?;
    no_delta(path, &checkpoint)?;
    Ok(Full { checkpoint, version: named })
}

fn full(path: &Path, index: &Index, named: Option<Version>) -> Result<Full> {
    all_there(path, index)?;
    let checkpoint = Checkpoint::open(path)?;
    no_delta(path, &checkpoint)?;
    if let Some(checksum) = index.checksum {
        let bad: Vec<Result<Option<String>>> = checkpoint
            .tensors()
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|tensor| {
                let good = checkpoint.metadata().get(&format!("{}{AT_FULL}", tensor.name))
                    == Some(&index::stamp(tensor, checksum)?);
                Ok((!good).then(|| tensor.name.clone()))
            })
            .collect();
        let bad = bad.into_iter().collect::<Result<Vec<_>>>()?;
        if let Some(name) = bad.into_iter().flatten().next() {
            return Err(corrupt(
                format!("tensor `{name}` of `{}`", path.display()),
                format!("its bytes are not those that were written ({} of the version)", checksum.name()),
                "publish or copy the version again",
            ));
        }
    }
    Ok(Full { checkpoint, version: named.or(index.version) })
}

/// Shards of a delta must never pass for weights: the only mark of a delta is in an index that may be lost or damaged.
fn no_delta(path: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let Some(tensor) = checkpoint.tensors().find(|t| checkpoint.metadata().contains_key(&t.name)) else {
        return Ok(());
    };
    Err(format(
        format!("`{}`", path.display()),
        format!("tensor `{}` has the checksum of a delta, but no index says that this is one", tensor.name),
        "publish the version again, index included",
    ))
}

fn all_there(path: &Path, index: &Index) -> Result<()> {
    let Some(missing) = index.files.keys().find(|file| !path.join(file).is_file()) else { return Ok(()) };
    Err(incomplete(
        format!("`{}`", path.display()),
        format!("its index names `{missing}`, which is not there"),
        "wait until the version is published, or publish it again",
    ))
}

fn delta(path: &Path, index: &Index, base_version: Version, encoding: Encoding) -> Result<Delta> {
    let (Some(version), Some(checksum)) = (index.version, index.checksum) else {
        return Err(format(format!("`{}`", path.display()), "its index is incomplete", "publish the version again"));
    };
    all_there(path, index)?;
    let mut tensors = BTreeMap::new();
    for (file, names) in &index.files {
        let place = path.join(file);
        let bad = |what: String, why: String| format(what, why, "publish the version again");
        let shard = Checkpoint::open(&place)?;
        let found: BTreeSet<&String> = shard.tensors().map(|t| &t.name).collect();
        if let Some(name) = found.symmetric_difference(&names.iter().collect()).next() {
            let where_ = if names.contains(*name) { "the index only" } else { "the file only" };
            return Err(bad(
                format!("tensor `{name}` of `{}`", place.display()),
                format!("it is in {where_}: the two are of different versions"),
            ));
        }
        for tensor in shard.tensors() {
            let what = || format!("tensor `{}` of `{}`", tensor.name, place.display());
            if tensor.stored != Dtype::U8 || tensor.shape.len() != 1 {
                let found = index::layout(tensor);
                return Err(bad(what(), format!("a compressed difference is U8 of one dimension, this is {found}")));
            }
            let result = shard.metadata().get(&tensor.name).cloned();
            let result = result.ok_or_else(|| bad(what(), "the file has no checksum for it".to_string()))?;
            let made = DeltaTensor {
                name: tensor.name.clone(),
                compressed: tensor.data.clone(),
                result,
                base: shard.metadata().get(&format!("{}{AT_BASE}", tensor.name)).cloned(),
            };
            // A map from names to one file each, so no name comes twice.
            tensors.insert(tensor.name.clone(), made);
        }
    }
    Ok(Delta { version, base_version, encoding, checksum, tensors: tensors.into_values().collect() })
}
