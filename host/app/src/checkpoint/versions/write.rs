//! Writing a version: in a hidden folder, put in its place in one step. The same weights give the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use patchhost_runtime::bytes::{TensorBytes, TensorData};
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

use super::checksum::Checksum;
use super::codec::Encoding;
use super::error::{Result, VersionError, unwritable};
use super::index::{self, AT_BASE, AT_FULL};
use super::version::{PREFIX, Version};
use crate::checkpoint::export::Companions;
use crate::checkpoint::layout::{INDEX, MAX_SHARDS, Piece, fill, header, numbered};
use crate::checkpoint::staging::{Staging, StagingError, sweep};
use crate::checkpoint::stream::{CHUNK, StreamFile, io, write_small};

/// Bytes of weights whose differences are computed at once, by all threads.
const BATCH: u64 = 256 << 20;

/// How a version is written.
#[derive(Debug, Clone, Copy)]
pub struct WriteOptions {
    /// How its tensors can be checked.
    pub checksum: Checksum,
    /// Most bytes of data in a file, unless one tensor alone has more.
    pub max_shard: u64,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self { checksum: Checksum::default(), max_shard: 5_000_000_000 }
    }
}

/// What stands beside the weights of a full version, so that engines can load it alone.
#[derive(Clone, Copy, Default)]
pub struct Beside<'a> {
    /// The text of config.json.
    pub config: Option<&'a str>,
    /// Tokenizer and the like.
    pub companions: Option<&'a Companions>,
}

/// What was written.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Written {
    /// The version's folder.
    pub path: PathBuf,
    pub version: Version,
    /// Tensors in it: all of a full version, those that changed of a delta.
    pub tensors: usize,
    /// Tensors of a delta's base that did not change.
    pub unchanged: usize,
    /// Bytes of its files with weights.
    pub bytes: u64,
    /// Hidden folders of killed writers that were removed.
    pub leftovers: usize,
}

/// Writes all of `checkpoint` as `dir/weight_v…`. `dir` is made if it is not there; a version that is there is never
/// replaced.
pub fn write_full(
    checkpoint: &Checkpoint,
    beside: &Beside<'_>,
    dir: &Path,
    version: Version,
    options: &WriteOptions,
) -> Result<Written> {
    let tensors: Vec<&CheckpointTensor> = checkpoint.tensors().collect();
    stored(&tensors)?;
    let folder = stage(dir, version)?;
    let groups = fill(tensors.iter().map(|t| t.data.len() as u64), options.max_shard);
    let mut shards = Shards::new(folder.path());
    for group in groups {
        let stamps: Vec<Result<String>> =
            group.par_iter().map(|i| index::stamp(tensors[*i], options.checksum)).collect();
        let parts: Vec<Part<'_>> = group
            .iter()
            .map(|i| {
                let t = tensors[*i];
                Part { name: &t.name, dtype: t.stored, shape: t.shape.clone(), data: t.data.clone() }
            })
            .collect();
        let mut metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        for (part, stamp) in parts.iter().zip(stamps) {
            metadata.insert(format!("{}{AT_FULL}", part.name), stamp?);
        }
        shards.add(&parts, &metadata)?;
    }
    if let Some(config) = beside.config {
        write_small(&folder.path().join("config.json"), config.as_bytes())?;
    }
    if let Some(companions) = beside.companions {
        companions.write(folder.path())?;
    }
    let mut metadata = Map::new();
    metadata.insert("total_size".into(), json!(tensors.iter().map(|t| t.data.len() as u64).sum::<u64>()));
    metadata.insert("version".into(), json!(version.to_string()));
    metadata.insert("checksum_format".into(), json!(options.checksum.name()));
    publish(folder, shards, metadata, version, 0)
}

/// Writes what changed from `base`, which is version `base_version`, to `new` as `dir/weight_v…`.
pub fn write_delta(
    base: &Checkpoint,
    new: &Checkpoint,
    dir: &Path,
    version: Version,
    base_version: Version,
    encoding: Encoding,
    options: &WriteOptions,
) -> Result<Written> {
    if base_version >= version {
        return Err(unwritable(
            format!("version {version}"),
            format!("it cannot build on version {base_version}"),
            "give a larger number",
        ));
    }
    let pairs = pairs(base, new)?;
    let folder = stage(dir, version)?;
    let mut shards = Shards::new(folder.path());
    let mut waiting: Vec<Encoded<'_>> = Vec::new();
    let mut filled = 0u64;
    for batch in fill(pairs.iter().map(|(_, new)| new.data.len() as u64), BATCH) {
        let made: Vec<Result<Option<Encoded<'_>>>> =
            batch.par_iter().map(|i| encoded(pairs[*i], encoding, options.checksum)).collect();
        for encoded in made {
            let Some(encoded) = encoded? else { continue };
            let len = encoded.compressed.len() as u64;
            if filled + len > options.max_shard && !waiting.is_empty() {
                flush(&mut shards, &mut waiting)?;
                filled = 0;
            }
            filled += len;
            waiting.push(encoded);
        }
    }
    if !waiting.is_empty() {
        flush(&mut shards, &mut waiting)?;
    }
    let mut metadata = Map::new();
    for (key, value) in [
        ("version", version.to_string()),
        ("base_version", base_version.to_string()),
        ("delta_encoding", encoding.name().to_string()),
        ("compression_format", "zstd".to_string()),
        ("checksum_format", options.checksum.name().to_string()),
    ] {
        metadata.insert(key.to_string(), json!(value));
    }
    let unchanged = pairs.len() - shards.tensors();
    publish(folder, shards, metadata, version, unchanged)
}

/// One tensor of each of two checkpoints.
type Pair<'a> = (&'a CheckpointTensor, &'a CheckpointTensor);

/// A delta can change bytes only.
fn pairs<'a>(base: &'a Checkpoint, new: &'a Checkpoint) -> Result<Vec<Pair<'a>>> {
    let refuse = |name: &str, why: String| {
        unwritable(format!("tensor `{name}`"), why, "write a full version: a delta changes bytes, not tensors")
    };
    if let Some(gone) = base.tensors().find(|t| new.get(&t.name).is_none()) {
        return Err(refuse(&gone.name, "it is in the base and not in the new weights".to_string()));
    }
    let mut pairs = Vec::with_capacity(new.tensors().len());
    for tensor in new.tensors() {
        let Some(old) = base.get(&tensor.name) else {
            return Err(refuse(&tensor.name, "it is in the new weights and not in the base".to_string()));
        };
        let (before, after) = (index::layout(old), index::layout(tensor));
        if before != after {
            return Err(refuse(&tensor.name, format!("it is {before} in the base and {after} in the new weights")));
        }
        pairs.push((old, tensor));
    }
    stored(&pairs.iter().flat_map(|(old, new)| [*old, *new]).collect::<Vec<_>>())?;
    Ok(pairs)
}

/// Tensors as they are stored, with names that cannot be mistaken for keys of ours.
fn stored(tensors: &[&CheckpointTensor]) -> Result<()> {
    for tensor in tensors {
        let what = || format!("tensor `{}`", tensor.name);
        if tensor.scale.is_some() {
            return Err(unwritable(
                what(),
                "it was paired with its scales, which are no tensors any more",
                "write the checkpoint as it was opened",
            ));
        }
        if tensor.name.ends_with(AT_BASE) || tensor.name.ends_with(AT_FULL) || tensor.name == "format" {
            let why =
                format!("names that are `format` or end in {AT_BASE} or {AT_FULL} mean something else in a version");
            return Err(unwritable(what(), why, "rename it"));
        }
    }
    Ok(())
}

/// What is written of one tensor.
struct Encoded<'a> {
    name: &'a str,
    compressed: Vec<u8>,
    result: String,
    base: String,
}

impl<'a> Encoded<'a> {
    /// As a tensor of a shard. Never `None`: the range is that of the buffer itself.
    fn part(self) -> Option<Part<'a>> {
        let len = self.compressed.len();
        let data = TensorBytes::new(Arc::new(self.compressed), 0..len)?;
        Some(Part { name: self.name, dtype: Dtype::U8, shape: vec![len], data: data.into() })
    }
}

/// None if it did not change.
fn encoded<'a>((old, new): Pair<'a>, encoding: Encoding, checksum: Checksum) -> Result<Option<Encoded<'a>>> {
    let (before, after) = (old.data.load()?, new.data.load()?);
    if *before == *after {
        return Ok(None);
    }
    let compressed = encoding
        .encode(&before, &after)
        .map_err(|why| unwritable(format!("tensor `{}`", new.name), why, "write a delta of encoding xor"))?;
    let (result, base) = (checksum.of(&after), index::stamp_of(old, &before, checksum));
    Ok(Some(Encoded { name: &new.name, compressed, result, base }))
}

fn flush(shards: &mut Shards, waiting: &mut Vec<Encoded<'_>>) -> Result<()> {
    let mut metadata = BTreeMap::new();
    for e in waiting.iter() {
        metadata.insert(e.name.to_string(), e.result.clone());
        metadata.insert(format!("{}{AT_BASE}", e.name), e.base.clone());
    }
    let parts: Vec<Part<'_>> = std::mem::take(waiting).into_iter().filter_map(Encoded::part).collect();
    shards.add(&parts, &metadata)
}

/// A tensor to write.
struct Part<'a> {
    name: &'a str,
    dtype: Dtype,
    shape: Vec<usize>,
    data: TensorData,
}

/// Files that are written one after the other. How many there will be is known at the end; they get their names then.
struct Shards {
    folder: PathBuf,
    /// The tensors in each.
    files: Vec<Vec<String>>,
    bytes: u64,
}

impl Shards {
    fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), files: Vec::new(), bytes: 0 }
    }

    fn tensors(&self) -> usize {
        self.files.iter().map(Vec::len).sum()
    }

    fn place(&self, i: usize) -> PathBuf {
        self.folder.join(format!("{i}.part"))
    }

    fn add(&mut self, parts: &[Part<'_>], metadata: &BTreeMap<String, String>) -> Result<()> {
        if self.files.len() == MAX_SHARDS {
            return Err(unwritable(
                "the version",
                format!("it needs more than {MAX_SHARDS} files"),
                "allow larger files",
            ));
        }
        let pieces: Vec<Piece<'_>> = parts
            .iter()
            .map(|p| Piece { name: p.name, dtype: p.dtype, shape: p.shape.clone(), len: p.data.len() as u64 })
            .collect();
        let (head, offsets) = header(&pieces, metadata)
            .map_err(|e| unwritable("the header of a shard", e.to_string(), "please report this"))?;
        let len = head.len() as u64 + pieces.iter().map(|p| p.len).sum::<u64>();
        let mut file = StreamFile::create(&self.place(self.files.len()), len)?;
        file.write_at(0, &head)?;
        for (part, offset) in parts.iter().zip(offsets) {
            for chunk in part.data.parts(CHUNK) {
                let (start, bytes) = chunk?;
                file.write_at(offset + start as u64, &bytes)?;
            }
        }
        file.finish()?;
        self.files.push(parts.iter().map(|p| p.name.to_string()).collect());
        self.bytes += len;
        Ok(())
    }

    /// Gives the files their names. Never `model.safetensors`: a folder with that alone is a full version to others.
    fn name(&self) -> Result<BTreeMap<String, String>> {
        let mut weight_map = BTreeMap::new();
        for (i, tensors) in self.files.iter().enumerate() {
            let name = numbered(i, self.files.len());
            let place = self.place(i);
            std::fs::rename(&place, self.folder.join(&name)).map_err(io(&place))?;
            weight_map.extend(tensors.iter().map(|t| (t.clone(), name.clone())));
        }
        Ok(weight_map)
    }
}

/// The hidden folder for a version.
fn stage(dir: &Path, version: Version) -> Result<Staging> {
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    let parent = dir.canonicalize().map_err(io(dir))?;
    let place = parent.join(version.folder());
    if place.symlink_metadata().is_ok() {
        return Err(unwritable(
            format!("`{}`", dir.join(version.folder()).display()),
            "the version is there already, and others may have applied it",
            "give another version, or remove the folder yourself",
        ));
    }
    // Held until this writer's hidden folder is locked, so that another writer never takes it for a leftover.
    let lock = File::open(&parent).ok().filter(|f| f.lock().is_ok());
    let swept = sweep(&parent, PREFIX)?;
    let staging = Staging::new(place, parent, false).map_err(|e| match e {
        StagingError::Busy(path) => unwritable(
            format!("version {version}"),
            format!("another process is writing it (in `{}`)", path.display()),
            "wait for it, or give another version",
        ),
        StagingError::Write(e) => VersionError::Write(e),
    });
    drop(lock);
    staging.map(|mut staging| {
        staging.leftovers += swept;
        staging
    })
}

fn publish(
    folder: Staging,
    shards: Shards,
    metadata: Map<String, Value>,
    version: Version,
    unchanged: usize,
) -> Result<Written> {
    let weight_map = shards.name()?;
    write_small(&folder.path().join(INDEX), index::text(metadata, &weight_map)?.as_bytes())?;
    let leftovers = folder.leftovers;
    let path = folder.publish()?;
    Ok(Written { path, version, tensors: weight_map.len(), unchanged, bytes: shards.bytes, leftovers })
}
