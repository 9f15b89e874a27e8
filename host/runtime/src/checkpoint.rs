//! Reading safetensors: one file, a sharded folder with an index, or bytes in memory. Files are mapped, never copied
//! whole; headers are checked by the `safetensors` crate (offsets inside the file, no overlap, no hole) before any
//! tensor is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype as StDtype, Metadata, SafeTensorError, SafeTensors};

use crate::bytes::{Owner, TensorBytes};
use crate::error::{Refusal, Result, RuntimeError};
use crate::files;
use crate::fp8::{self, BlockScale};
use crate::hooks::{Dtype, Elem};
use crate::quant_config::QuantFormat;
use crate::size::{check_header, check_index};

/// Largest header we read. The format's own limit is 100 MB; a real one for 100,000 tensors is about 12 MB.
pub const MAX_HEADER: u64 = 64 << 20;

/// One tensor of a checkpoint.
#[derive(Clone)]
pub struct CheckpointTensor {
    /// Full name.
    pub name: String,
    /// Element type as the file says.
    pub stored: StDtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// The data, little endian, row-major, at any alignment.
    pub data: TensorBytes,
    /// The scales of a block-FP8 weight, once [`Checkpoint::with_scales`] has paired them.
    pub scale: Option<Arc<BlockScale>>,
}

impl CheckpointTensor {
    /// A tensor of `data`, which must fit dtype and shape.
    pub fn new(name: impl Into<String>, stored: StDtype, shape: Vec<usize>, data: TensorBytes) -> Self {
        Self { name: name.into(), stored, shape, data, scale: None }
    }

    /// Element type in the words of the hooks.
    pub fn dtype(&self) -> Dtype {
        match self.stored {
            StDtype::F32 => Dtype::F32,
            StDtype::F16 => Dtype::F16,
            StDtype::BF16 => Dtype::Bf16,
            StDtype::F8_E4M3 => Dtype::F8E4m3,
            StDtype::F8_E8M0 => Dtype::F8E8m0,
            StDtype::I64 => Dtype::I64,
            StDtype::U8 => Dtype::U8,
            _ => Dtype::Other,
        }
    }

    /// Element type if it is one that weights are computed in.
    pub fn elem(&self) -> Option<Elem> {
        match self.stored {
            StDtype::F32 => Some(Elem::F32),
            StDtype::F16 => Some(Elem::F16),
            StDtype::BF16 => Some(Elem::Bf16),
            _ => None,
        }
    }
}

/// The tensors of a model, by name.
#[derive(Clone)]
pub struct Checkpoint {
    tensors: BTreeMap<String, CheckpointTensor>,
    metadata: BTreeMap<String, String>,
    bytes: u64,
    /// The mapped files, for [`Checkpoint::release`].
    maps: Vec<Arc<memmap2::Mmap>>,
}

impl Checkpoint {
    /// A folder with `model.safetensors.index.json` or safetensors files, or one safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            let mut all = Self::empty();
            all.add_file(path)?;
            return Ok(all);
        }
        let index = path.join("model.safetensors.index.json");
        // Whatever it is: one that cannot be read is no reason to guess.
        if index.symlink_metadata().is_ok() {
            return Self::open_sharded(path, &index);
        }
        let single = path.join("model.safetensors");
        if single.is_file() {
            return Self::open(&single);
        }
        let mut files: Vec<PathBuf> = std::fs::read_dir(path)
            .map_err(|e| unreadable(path, &e))?
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|p| p.extension().is_some_and(|x| x == "safetensors"))
            .collect();
        files.sort();
        if files.is_empty() {
            return Err(refuse(
                format!("`{}`", path.display()),
                "the folder holds no safetensors file (pickled .bin and .pt files are never read)",
                "give a folder with model.safetensors, or with model.safetensors.index.json and its shards",
            ));
        }
        let mut all = Self::empty();
        for file in files {
            all.add_file(&file)?;
        }
        Ok(all)
    }

    /// A safetensors file that is already in memory.
    pub fn from_bytes(label: &str, bytes: &'static [u8]) -> Result<Self> {
        let mut all = Self::empty();
        all.add(label, Arc::new(bytes))?;
        Ok(all)
    }

    /// The same with bytes that are shared: the body of a request.
    pub fn from_shared(label: &str, bytes: Owner) -> Result<Self> {
        let mut all = Self::empty();
        all.add(label, bytes)?;
        Ok(all)
    }

    /// Tensors that are already in memory, each name once.
    pub fn from_tensors(tensors: impl IntoIterator<Item = CheckpointTensor>) -> Result<Self> {
        let mut all = Self::empty();
        for tensor in tensors {
            all.bytes += tensor.data.len() as u64;
            if let Some(first) = all.tensors.insert(tensor.name.clone(), tensor) {
                return Err(refuse(format!("tensor `{}`", first.name), "it is given twice", "give each tensor once"));
            }
        }
        Ok(all)
    }

    /// The same with every FP8 weight paired with its scales, which are no tensors of their own any more. With
    /// `dequantize`, such weights are bf16 instead (in memory, all of them).
    pub fn with_scales(&self, format: Option<&QuantFormat>, dequantize: bool) -> Result<Self> {
        let mut tensors = fp8::pair(self.tensors.clone(), format)?;
        if dequantize {
            for tensor in tensors.values_mut().filter(|t| t.scale.is_some()) {
                *tensor = fp8::dequantized(tensor)?;
            }
        }
        Ok(Self { tensors, metadata: self.metadata.clone(), bytes: self.bytes, maps: self.maps.clone() })
    }

    /// The same with some tensors replaced by others of the same names, which must exist. The rest shares its bytes with
    /// this one.
    pub fn with_tensors(&self, replaced: impl IntoIterator<Item = CheckpointTensor>) -> Result<Self> {
        let mut made = self.clone();
        for tensor in replaced {
            let name = tensor.name.clone();
            let Some(old) = made.tensors.insert(name, tensor) else {
                return Err(refuse(
                    "a tensor that replaces another",
                    "there is none of its name",
                    "please report this",
                ));
            };
            let new = made.tensors.get(&old.name).map_or(0, |t| t.data.len());
            made.bytes = (made.bytes + new as u64).saturating_sub(old.data.len() as u64);
        }
        Ok(made)
    }

    fn empty() -> Self {
        Self { tensors: BTreeMap::new(), metadata: BTreeMap::new(), bytes: 0, maps: Vec::new() }
    }

    fn open_sharded(folder: &Path, index: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = files::read_text(index, files::INDEX).map_err(|e| unreadable(index, &e))?;
        check_index(&text).map_err(|why| refuse(format!("`{}`", index.display()), why, "write the index anew"))?;
        let parsed: Index = serde_json::from_str(&text).map_err(|e| {
            refuse(
                format!("`{}`", index.display()),
                format!("not an index of shards: {e}"),
                "it must be {\"metadata\": …, \"weight_map\": {tensor: file}}",
            )
        })?;
        let files: BTreeSet<&String> = parsed.weight_map.values().collect();
        let mut all = Self::empty();
        let mut unnamed: Vec<(String, &String)> = Vec::new();
        for name in files {
            let plain = Path::new(name).components().count() == 1 && !name.contains(['/', '\\']) && name != "..";
            if !plain {
                return Err(refuse(
                    format!("shard `{}` of `{}`", name.escape_debug(), index.display()),
                    "a shard must be a file name in the folder of the index, not a path",
                    "repair weight_map",
                ));
            }
            let file = folder.join(name);
            if !file.exists() {
                let missing = parsed.weight_map.values().filter(|f| *f == name).count();
                return Err(refuse(
                    format!("shard `{name}`"),
                    format!("the index names it for {missing} tensors, but the file is not in `{}`", folder.display()),
                    "copy the missing shard, or download the checkpoint again",
                ));
            }
            let mut shard = Self::empty();
            shard.add_file(&file)?;
            for (tensor, data) in std::mem::take(&mut shard.tensors) {
                match parsed.weight_map.get(&tensor) {
                    Some(named) if named == name => drop(all.tensors.insert(tensor, data)),
                    // The index decides which of two shards has it.
                    Some(_) => {}
                    None => unnamed.push((tensor, name)),
                }
            }
            all.metadata.append(&mut shard.metadata);
            all.maps.append(&mut shard.maps);
            all.bytes += shard.bytes;
        }
        if let Some((tensor, file)) = unnamed.first() {
            let (named, held) = (parsed.weight_map.len(), parsed.weight_map.len() + unnamed.len());
            return Err(refuse(
                format!("`{}`", index.display()),
                format!(
                    "it names {named} of the {held} tensors of its shards; not, for example, `{tensor}` of `{file}`"
                ),
                "write the index anew, or remove it where one file holds the model",
            ));
        }
        if let Some((tensor, file)) = parsed.weight_map.iter().find(|(t, _)| !all.tensors.contains_key(*t)) {
            return Err(refuse(
                format!("tensor `{tensor}`"),
                format!("the index says that shard `{file}` holds it, but it does not"),
                "the shards and the index are of different versions: download the checkpoint again",
            ));
        }
        Ok(all)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let file = files::open(path).map_err(|e| unreadable(path, &e))?;
        // SAFETY: the map is read-only and private to this process's view. If another process truncates the file while
        // it is mapped, reading faults; checkpoints are not modified in place (writers rename into place).
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| unreadable(path, &e))?;
        let map = Arc::new(map);
        self.maps.push(map.clone());
        self.add(&path.display().to_string(), Arc::new(Mapped(map)))
    }

    fn add(&mut self, label: &str, owner: Owner) -> Result<()> {
        let bytes = (*owner).as_ref();
        let (data_start, header) = read_header(label, bytes)?;
        self.bytes += bytes.len() as u64;
        for (name, info) in header.tensors() {
            let range = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
            let data = TensorBytes::new(owner.clone(), range).ok_or_else(|| {
                refuse(
                    format!("tensor `{name}` in `{label}`"),
                    "its data lies outside of the file",
                    "the file is truncated or damaged: copy or download it again",
                )
            })?;
            let tensor = CheckpointTensor::new(name.clone(), info.dtype, info.shape.clone(), data);
            if self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(refuse(
                    format!("tensor `{name}`"),
                    format!("it stands in more than one file; the second is `{label}`"),
                    "remove the stale shards (an index file says which belong to the model)",
                ));
            }
        }
        if let Some(metadata) = header.metadata() {
            self.metadata.extend(metadata.clone());
        }
        Ok(())
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &CheckpointTensor> {
        self.tensors.values()
    }

    /// One tensor.
    pub fn get(&self, name: &str) -> Option<&CheckpointTensor> {
        self.tensors.get(name)
    }

    /// `__metadata__` of the files.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Gives back the memory of pages of mapped files that were read for `bytes`, so that a pass over a large checkpoint
    /// does not end with all of it resident. The bytes stay readable: they are read from the file again. Nothing happens
    /// to bytes that are not mapped, or where the system cannot do it.
    pub fn release(&self, bytes: &[u8]) {
        #[cfg(unix)]
        {
            let address = bytes.as_ptr().addr();
            let Some((map, offset)) = self.maps.iter().find_map(|map| {
                let offset = address.checked_sub(map.as_ptr().addr())?;
                (offset.checked_add(bytes.len())? <= map.len()).then_some((map, offset))
            }) else {
                return;
            };
            // SAFETY: the map is shared, read-only and of a file, so dropped pages come back with the same bytes at the
            // next access.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes.len()) };
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.bytes
    }
}

/// A map that the checkpoint and its tensors share.
struct Mapped(Arc<memmap2::Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The header of a safetensors file, and where its data starts.
fn read_header(label: &str, bytes: &[u8]) -> Result<(usize, Metadata)> {
    let again = "copy or download it again; it must be a safetensors file";
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(refuse(
            format!("`{label}`"),
            format!(
                "{} bytes are too few for a safetensors file, which starts with 8 bytes of header length",
                bytes.len()
            ),
            again,
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(refuse(
            format!("`{label}`"),
            format!("the header claims {length} bytes, more than the limit of {MAX_HEADER}"),
            again,
        ));
    }
    let json = bytes.get(8..bytes.len().min(8 + length as usize)).unwrap_or_default();
    check_header(json).map_err(|why| refuse(format!("`{label}`"), why, again))?;
    if let Some(name) = duplicate_key(json) {
        return Err(refuse(
            format!("tensor `{name}` in `{label}`"),
            "the header names it twice",
            "write the file again, each tensor once",
        ));
    }
    let (n, header) = SafeTensors::read_metadata(bytes).map_err(|e| {
        let why = match &e {
            SafeTensorError::MetadataIncompleteBuffer => {
                format!(
                    "the header's offsets do not fit the file's {} bytes: it is truncated, or the header lies",
                    bytes.len()
                )
            }
            SafeTensorError::InvalidOffset(name) => {
                format!("the offsets of tensor `{name}` overlap, leave a hole or run backwards")
            }
            SafeTensorError::TensorInvalidInfo => {
                "the byte range of a tensor does not fit its shape and dtype".to_string()
            }
            SafeTensorError::ValidationOverflow => "a shape overflows".to_string(),
            other => format!("not a valid safetensors header: {other}"),
        };
        refuse(format!("`{label}`"), why, again)
    })?;
    Ok((n + 8, header))
}

/// A key that stands twice in the header's top level: JSON maps would silently keep the last.
fn duplicate_key(header: &[u8]) -> Option<String> {
    struct Keys;
    impl<'de> serde::de::Visitor<'de> for Keys {
        type Value = Option<String>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
            let mut seen = BTreeSet::new();
            let mut twice = None;
            while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                if !seen.insert(key.clone()) {
                    twice.get_or_insert(key);
                }
            }
            Ok(twice)
        }
    }
    // A header that is not JSON at all is reported by the safetensors crate, with its own reason.
    let mut json = serde_json::Deserializer::from_slice(header);
    serde::Deserializer::deserialize_map(&mut json, Keys).ok().flatten()
}

fn refuse(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> RuntimeError {
    RuntimeError::Checkpoint(Refusal::new(what, why, next))
}

fn unreadable(path: &Path, e: &std::io::Error) -> RuntimeError {
    refuse(format!("`{}`", path.display()), e.to_string(), "check the path and its permissions")
}
