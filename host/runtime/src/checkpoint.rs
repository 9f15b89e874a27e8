//! Reading safetensors: one file, a sharded folder with an index, or bytes in memory. Of files only the headers are read
//! here; tensors when somebody loads them ([`TensorData::load`]). Headers are checked by the `safetensors` crate (offsets
//! inside the file, no overlap, no hole) before any tensor is touched.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype as StDtype, Metadata, SafeTensorError, TensorInfo};

use crate::bytes::{Owner, TensorBytes, TensorData};
use crate::error::{Refusal, Result, RuntimeError};
use crate::files;
use crate::fp8::{self, BlockScale};
use crate::hooks::{Dtype, Elem};
use crate::quant_config::QuantFormat;
use crate::rename::{Renames, two_become_one};
use crate::size::{check_header, check_index};
use crate::weight_file::{Extent, WeightFile};

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
    pub data: TensorData,
    /// The scales of a block-FP8 weight, once [`Checkpoint::with_scales`] has paired them.
    pub scale: Option<Arc<BlockScale>>,
}

impl CheckpointTensor {
    /// A tensor of `data`, which must fit dtype and shape.
    pub fn new(name: impl Into<String>, stored: StDtype, shape: Vec<usize>, data: impl Into<TensorData>) -> Self {
        Self { name: name.into(), stored, shape, data: data.into(), scale: None }
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
    files: Vec<Arc<WeightFile>>,
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
        all.add_bytes(label, Arc::new(bytes))?;
        Ok(all)
    }

    /// The same with bytes that are shared: the body of a request.
    pub fn from_shared(label: &str, bytes: Owner) -> Result<Self> {
        let mut all = Self::empty();
        all.add_bytes(label, bytes)?;
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
    /// `dequantize`, such weights are bf16 instead (in memory, all of them). Names that are `spare` are not loaded, and need
    /// no scales.
    pub fn with_scales(
        &self,
        format: Option<&QuantFormat>,
        dequantize: bool,
        spare: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let mut tensors = fp8::pair(self.tensors.clone(), format, spare)?;
        if dequantize {
            for tensor in tensors.values_mut().filter(|t| t.scale.is_some()) {
                *tensor = fp8::dequantized(tensor)?;
            }
        }
        Ok(Self { tensors, metadata: self.metadata.clone(), bytes: self.bytes, files: self.files.clone() })
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

    /// The same under the names that the renames make; and what is worth saying of the renames.
    pub fn renamed(&self, renames: &Renames) -> Result<(Self, Vec<String>)> {
        if renames.is_empty() {
            return Ok((self.clone(), Vec::new()));
        }
        let mut used = BTreeSet::new();
        let mut made: BTreeMap<String, CheckpointTensor> = BTreeMap::new();
        let mut origins: BTreeMap<String, &str> = BTreeMap::new();
        for tensor in self.tensors.values() {
            let name = renames.noting(&tensor.name, &mut used).map_err(RuntimeError::Checkpoint)?.into_owned();
            if let Some(first) = origins.insert(name.clone(), &tensor.name) {
                return Err(RuntimeError::Checkpoint(two_become_one(first, &tensor.name, &name)));
            }
            made.insert(name.clone(), CheckpointTensor { name, ..tensor.clone() });
        }
        Ok((Self { tensors: made, ..self.clone() }, renames.notes(&used)))
    }

    fn empty() -> Self {
        Self { tensors: BTreeMap::new(), metadata: BTreeMap::new(), bytes: 0, files: Vec::new() }
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
        let file = Arc::new(WeightFile::open(path)?);
        let label = file.label();
        let length = header_length(&label, &file.read(0, 8)?, file.len())?;
        let (data_start, header) = read_header(&label, &file.read(8, length)?, length, file.len())?;
        self.bytes += file.len();
        self.files.push(file.clone());
        self.add(&label, &header, |start, end| {
            Some(TensorData::in_file(Extent::new(file.clone(), (data_start + start) as u64, end - start)?))
        })
    }

    fn add_bytes(&mut self, label: &str, owner: Owner) -> Result<()> {
        let bytes = (*owner).as_ref();
        let length = header_length(label, bytes, bytes.len() as u64)?;
        let header = bytes.get(8..).unwrap_or_default();
        let header = header.get(..length).unwrap_or(header);
        let (data_start, header) = read_header(label, header, length, bytes.len() as u64)?;
        self.bytes += bytes.len() as u64;
        self.add(label, &header, |start, end| {
            TensorBytes::new(owner.clone(), data_start + start..data_start + end).map(TensorData::from)
        })
    }

    /// The tensors of a header; `data` gives the bytes between two offsets behind it.
    fn add(&mut self, label: &str, header: &Metadata, data: impl Fn(usize, usize) -> Option<TensorData>) -> Result<()> {
        for (name, info) in header.tensors() {
            let data = data(info.data_offsets.0, info.data_offsets.1).ok_or_else(|| {
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

    /// Has messages call its files otherwise, where they are read under other names than their users know them by.
    pub fn call_files(&self, name: impl Fn(&str) -> String) {
        self.files.iter().for_each(|file| file.call(name(&file.label())));
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.bytes
    }
}

/// How many bytes a safetensors file has that begins with `bytes`, as its header says; `None` while not all of the header
/// is there. Refused as soon as it can be no such file.
pub fn stated_size(label: &str, bytes: &[u8]) -> Result<Option<u64>> {
    if bytes.len() < 8 {
        return Ok(None);
    }
    let length = header_length(label, bytes, bytes.len() as u64)?;
    let Some(header) = bytes.get(8..).and_then(|rest| rest.get(..length)) else { return Ok(None) };
    let size = parse_header(header).map(|header| 8 + length as u64 + header.data_len() as u64);
    match size {
        Ok(size) => Ok(Some(size)),
        // With its reason, which is not the size.
        Err(_) => read_header(label, header, length, u64::MAX).map(|_| None),
    }
}

const AGAIN: &str = "copy or download it again; it must be a safetensors file";

/// Bytes of the header of a safetensors file that begins with `bytes` and has `size` of them in all.
fn header_length(label: &str, bytes: &[u8], size: u64) -> Result<usize> {
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(refuse(
            format!("`{label}`"),
            format!("{size} bytes are too few for a safetensors file, which starts with 8 bytes of header length"),
            AGAIN,
        ));
    };
    if let Some(pointer) = files::Pointer::read(bytes) {
        return Err(refuse(format!("`{label}`"), pointer.to_string(), files::LFS_PULL));
    }
    let length = u64::from_le_bytes(*length);
    usize::try_from(length).ok().filter(|_| length <= MAX_HEADER).ok_or_else(|| {
        let why = format!("the header claims {length} bytes, more than the limit of {MAX_HEADER}");
        refuse(format!("`{label}`"), why, AGAIN)
    })
}

/// The header of a safetensors file of `size` bytes, and where its data starts. It claims `length` bytes; fewer are there
/// where the file ends before.
fn read_header(label: &str, bytes: &[u8], length: usize, size: u64) -> Result<(usize, Metadata)> {
    check_header(bytes).map_err(|why| refuse(format!("`{label}`"), why, AGAIN))?;
    if let Some(name) = duplicate_key(bytes) {
        return Err(refuse(
            format!("tensor `{name}` in `{label}`"),
            "the header names it twice",
            "write the file again, each tensor once",
        ));
    }
    let start = 8 + bytes.len();
    let parsed = if bytes.len() == length { parse_header(bytes) } else { Err(SafeTensorError::InvalidHeaderLength) };
    parsed
        .and_then(|header| match (start as u64).checked_add(header.data_len() as u64) == Some(size) {
            true => Ok((start, header)),
            false => Err(SafeTensorError::MetadataIncompleteBuffer),
        })
        .map_err(|e| {
            let why = match &e {
                SafeTensorError::MetadataIncompleteBuffer => format!(
                    "the header's offsets do not fit the file's {size} bytes: it is truncated, or the header lies"
                ),
                SafeTensorError::InvalidOffset(name) => {
                    format!("the offsets of tensor `{name}` overlap, leave a hole or run backwards")
                }
                SafeTensorError::TensorInvalidInfo => {
                    "the byte range of a tensor does not fit its shape and dtype".to_string()
                }
                SafeTensorError::ValidationOverflow => "a shape overflows".to_string(),
                other => format!("not a valid safetensors header: {other}"),
            };
            refuse(format!("`{label}`"), why, AGAIN)
        })
}

/// As `SafeTensors::read_metadata` does it for a file that is in memory as a whole.
fn parse_header(bytes: &[u8]) -> std::result::Result<Metadata, SafeTensorError> {
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__")]
        metadata: Option<HashMap<String, String>>,
        #[serde(flatten)]
        tensors: HashMap<String, TensorInfo>,
    }
    let text = std::str::from_utf8(bytes).map_err(SafeTensorError::InvalidHeader)?;
    let header: Header = serde_json::from_str(text).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    let mut tensors: Vec<(String, TensorInfo)> = header.tensors.into_iter().collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    Metadata::new(header.metadata, tensors)
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

pub(crate) fn refuse(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> RuntimeError {
    RuntimeError::Checkpoint(Refusal::new(what, why, next))
}

pub(crate) fn unreadable(path: &Path, e: &std::io::Error) -> RuntimeError {
    refuse(format!("`{}`", path.display()), e.to_string(), files::next_of(e, "check the path and its permissions"))
}
