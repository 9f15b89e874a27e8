//! Writing files (safetensors, reports): to a temporary file beside the target, renamed when complete, so that nobody ever reads half a
//! file and an error leaves what was there.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use patchhost_runtime::error::Refusal;
use safetensors::tensor::{Dtype, TensorView};

use crate::base::file::{Access, write_whole};
use crate::base::{Code, Exit};

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The folder cannot be written, the disk is full, …
    #[error("{}", self.parts())]
    Io {
        /// The target.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Tensors and their bytes do not fit together: a bug of the caller.
    #[error("{}", self.parts())]
    Format {
        /// The target.
        path: String,
        /// What does not fit.
        source: safetensors::SafeTensorError,
    },
}

impl Exit for WriteError {
    fn exit(&self) -> Code {
        match self {
            Self::Io { source, .. } => Code::of_io(source),
            Self::Format { .. } => Code::Host,
        }
    }

    fn parts(&self) -> Refusal {
        let (path, why, next) = match self {
            Self::Io { path, source } => (path, source.to_string(), "check the folder, its permissions and free space"),
            Self::Format { path, source } => (path, source.to_string(), "please report this"),
        };
        Refusal { what: format!("`{path}` was not written"), why, next: next.to_owned() }
    }
}

/// A tensor to write.
pub struct Out<'a> {
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Little-endian, row-major.
    pub data: std::borrow::Cow<'a, [u8]>,
}

/// The crate writes the metadata in the order of a hash map, which differs from run to run. Sorts it.
fn sort_metadata(bytes: Vec<u8>) -> Vec<u8> {
    let sorted = || -> Option<Vec<u8>> {
        let length = u64::from_le_bytes(*bytes.first_chunk::<8>()?) as usize;
        let mut header: serde_json::Value = serde_json::from_slice(bytes.get(8..8 + length)?).ok()?;
        header.get_mut("__metadata__")?.as_object_mut()?.sort_keys();
        let mut text = serde_json::to_vec(&header).ok()?;
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut out = (text.len() as u64).to_le_bytes().to_vec();
        out.extend(text);
        out.extend(bytes.get(8 + length..)?);
        Some(out)
    };
    sorted().unwrap_or(bytes)
}

/// Writes `tensors` and the metadata to `path`. The same input gives the same bytes.
pub fn safetensors(path: &Path, tensors: &[Out<'_>], metadata: HashMap<String, String>) -> Result<u64, WriteError> {
    let shown = path.display().to_string();
    let format = |source| WriteError::Format { path: shown.clone(), source };
    let views = tensors
        .iter()
        .map(|t| Ok((t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.data).map_err(format)?)))
        .collect::<Result<Vec<_>, WriteError>>()?;
    let bytes = sort_metadata(safetensors::serialize(views, Some(metadata)).map_err(format)?);
    write_file(path, &bytes)?;
    Ok(bytes.len() as u64)
}

/// Writes a whole file, which appears complete or not at all.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let io = |source| WriteError::Io { path: path.display().to_string(), source };
    write_whole(path, Access::Shared, |file| file.write_all(bytes)).map_err(io)
}
