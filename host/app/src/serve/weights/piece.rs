//! Bytes taken apart into pieces of tensors. The bytes are shared, never copied.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use patchhost_runtime::assembly::ChunkHeader;
use patchhost_runtime::bytes::{TensorBytes, TensorData};
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor, MAX_HEADER};
use safetensors::tensor::Dtype;
use serde::Deserialize;

use super::dtype;
use super::meta::{BucketEntry, BucketMeta, UpdateInfo};
use super::{BodyError, Terms, malformed, pickle};
use crate::base::text::clean;
use crate::serve::error::ApiResult;

/// Marks the entry of `__metadata__` that says where a part of a tensor belongs.
const AT_RANGE: &str = "@range";
/// Most characters of a name that a message shows.
const SHOWN: usize = 200;

/// A tensor, or a range of bytes of one.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Name of the tensor.
    pub name: String,
    /// How each element is stored.
    pub dtype: Dtype,
    /// Dimensions of the whole tensor.
    pub shape: Vec<usize>,
    /// Where `data` begins within the tensor, in bytes.
    pub offset: usize,
    /// The bytes that came: all of the tensor, or those from `offset` on.
    pub data: TensorData,
}

impl Piece {
    /// The tensors of a checkpoint; their bytes are shared.
    pub fn all(file: &Checkpoint) -> Vec<Self> {
        file.tensors().map(Self::whole).collect()
    }

    fn whole(t: &CheckpointTensor) -> Self {
        Self { name: t.name.clone(), dtype: t.stored, shape: t.shape.clone(), offset: 0, data: t.data.clone() }
    }

    /// The tensor, where all of its bytes are here.
    pub fn tensor(&self) -> Option<CheckpointTensor> {
        let whole = self.offset == 0 && dtype::bytes(self.dtype, &self.shape) == Some(self.data.len());
        whole.then(|| CheckpointTensor::new(self.name.clone(), self.dtype, self.shape.clone(), self.data.clone()))
    }

    /// Where the bytes belong, for a refit that takes parts.
    pub fn header(&self) -> ChunkHeader<'_> {
        ChunkHeader { name: &self.name, dtype: self.dtype, shape: &self.shape, offset: self.offset }
    }
}

/// The tensors of safetensors bytes.
pub fn safetensors(label: &str, bytes: Bytes) -> Result<Vec<Piece>, BodyError> {
    pickle::refuse(label, &bytes)?;
    let file = Checkpoint::from_shared(label, Arc::new(bytes))?;
    let mut pieces = Vec::new();
    for t in file.tensors() {
        let whole = Piece::whole(t);
        pieces.push(match file.metadata().get(&format!("{}{AT_RANGE}", t.name)) {
            None => whole,
            Some(range) => part(whole, range)?,
        });
    }
    if let Some(stray) = file.metadata().keys().find_map(|k| {
        let name = k.strip_suffix(AT_RANGE)?;
        file.get(name).is_none().then_some(name)
    }) {
        let why = "`__metadata__` gives its range, and the tensor is not there";
        return Err(malformed(format!("tensor `{}`", clean(stray, SHOWN)), why, "send the bytes with their range"));
    }
    Ok(pieces)
}

/// A part of a tensor, which `range` (`BF16[64,32] 4096`) places.
fn part(piece: Piece, range: &str) -> Result<Piece, BodyError> {
    let bad = |why: String| {
        let next = "write the part as a one-dimensional U8 tensor and its range as `BF16[64,32] 4096`: dtype, shape, first byte";
        malformed(format!("the part of tensor `{}`", clean(&piece.name, SHOWN)), why, next)
    };
    if piece.dtype != Dtype::U8 || piece.shape.len() != 1 {
        return Err(bad(format!("its bytes are stored as {:?} {:?}", piece.dtype, piece.shape)));
    }
    let parsed = (|| {
        let (layout, offset) = range.split_once(' ')?;
        let (kind, shape) = layout.strip_suffix(']')?.split_once('[')?;
        let shape: Vec<usize> = match shape {
            "" => Vec::new(),
            dims => dims.split(',').map(|d| d.trim().parse().ok()).collect::<Option<_>>()?,
        };
        Some((dtype::named(kind)?, shape, offset.parse().ok()?))
    })();
    let (dtype, shape, offset) = parsed.ok_or_else(|| bad(format!("`{}` is no range", clean(range, SHOWN))))?;
    Ok(Piece { dtype, shape, offset, ..piece })
}

/// Raw bytes, one tensor after the other, or where `offsets` say.
pub fn packed(info: &UpdateInfo, bytes: &Bytes) -> Result<Vec<Piece>, BodyError> {
    let mut at = 0usize;
    let mut entries = Vec::with_capacity(info.names.len());
    let lists = info.names.iter().zip(&info.dtype_names).zip(&info.shapes);
    for (i, ((name, kind), shape)) in lists.enumerate() {
        let entry = BucketEntry {
            name: name.clone(),
            dtype: kind.clone(),
            shape: shape.clone(),
            offset: info.offsets.as_ref().map_or(Some(at), |o| o.get(i).copied()).ok_or_else(|| {
                malformed(
                    "update_info",
                    "there are fewer offsets than names",
                    "give one offset for each tensor, or none",
                )
            })?,
            nbytes: None,
            tensor_offset: 0,
        };
        let size = size(&entry)?;
        let said = info.tensor_sizes.as_ref().map(|sizes| sizes.get(i).copied());
        let elements = shape.iter().product::<usize>();
        if let Some(said) = said
            && said != Some(size)
            && said != Some(elements)
        {
            let said = said.map_or_else(|| "nothing".to_string(), |n| n.to_string());
            let why = format!("it takes {size} bytes ({elements} elements), tensor_sizes says {said}");
            return Err(malformed(shown(name), why, "check dtype, shape and tensor_sizes"));
        }
        at = entry.offset.saturating_add(size);
        entries.push(entry);
    }
    if info.offsets.is_none() && at != bytes.len() {
        let why = format!("the tensors take {at} bytes, {} came", bytes.len());
        return Err(malformed(
            "the packed bytes",
            why,
            "send the tensors one after the other, in the order of the names",
        ));
    }
    cut_all(&entries, bytes)
}

/// Raw bytes, each tensor where its entry says.
pub fn bucket(meta: BucketMeta, bytes: &Bytes) -> Result<Vec<Piece>, BodyError> {
    cut_all(&meta.entries()?, bytes)
}

/// Bytes that no entry names would stay in memory as long as those beside them, and nobody would count them.
fn cut_all(entries: &[BucketEntry], bytes: &Bytes) -> Result<Vec<Piece>, BodyError> {
    let pieces: Vec<Piece> = entries.iter().map(|entry| cut(entry, bytes)).collect::<Result<_, _>>()?;
    let named = pieces.iter().fold(0usize, |sum, piece| sum.saturating_add(piece.data.len()));
    if named >= bytes.len() / 2 {
        return Ok(pieces);
    }
    let copied = |piece: Piece| {
        let own = Bytes::copy_from_slice(&piece.data.load()?);
        let len = own.len();
        let data = TensorBytes::new(Arc::new(own), 0..len).map_or_else(|| piece.data.clone(), TensorData::from);
        Ok(Piece { data, ..piece })
    };
    pieces.into_iter().map(copied).collect()
}

/// The JSON text of a frame: eight bytes of its length, the text, raw bytes, which begin where it ends.
fn header<'b>(label: &str, bytes: &'b Bytes) -> Result<(&'b [u8], Bytes), BodyError> {
    pickle::refuse(label, bytes)?;
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(bad_frame(label, format!("{} bytes are too few for a header", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > rest.len() as u64 {
        return Err(bad_frame(label, format!("its header claims {length} bytes of {}", rest.len())));
    }
    Ok((&rest[..length as usize], bytes.slice(8 + length as usize..)))
}

fn bad_frame(label: &str, why: String) -> BodyError {
    let next = "send eight bytes of length (little endian), a JSON text of that length, then the raw bytes";
    malformed(label, why, next)
}

/// What the header of a frame says about all tensors of its update.
pub(super) fn frame_terms(bytes: &Bytes) -> ApiResult<Terms> {
    // What is wrong with it is said when its tensors are taken.
    let Ok((text, _)) = header("the frame", bytes) else { return Ok(Terms::default()) };
    let fields = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(text);
    fields.map_or_else(|_| Ok(Terms::default()), |fields| Terms::of_fields(&fields))
}

/// Eight bytes of length, JSON (`{"bucket_meta": …}` or vLLM's lists), raw bytes.
pub fn framed(label: &str, bytes: Bytes) -> Result<Vec<Piece>, BodyError> {
    #[derive(Deserialize)]
    struct Header {
        bucket_meta: Option<BucketMeta>,
    }
    let bad = |why: String| bad_frame(label, why);
    let (text, raw) = header(label, &bytes)?;
    let header: Header = serde_json::from_slice(text).map_err(|e| bad(format!("its header is not JSON: {e}")))?;
    match header.bucket_meta {
        Some(meta) => bucket(meta, &raw),
        None => {
            let value = serde_json::from_slice(text).map_err(|e| bad(e.to_string()))?;
            let mut infos = UpdateInfo::all(value)?;
            match (infos.pop(), infos.is_empty()) {
                (Some(info), true) => packed(&info, &raw),
                _ => Err(bad("its header must be one object".to_string())),
            }
        }
    }
}

/// The bytes of base64, in the standard alphabet, with or without padding and line ends.
pub fn base64_bytes(what: &str, text: &str) -> Result<Bytes, BodyError> {
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    if pickle::is_pickle_base64(text) {
        return Err(BodyError::Pickle(pickle::refusal(what)));
    }
    let bad = |e: base64::DecodeError| malformed(what, format!("not base64: {e}"), "send standard base64 of the bytes");
    let decoded = match text.bytes().any(|b| b.is_ascii_whitespace()) {
        true => LENIENT.decode(text.split_ascii_whitespace().collect::<String>()),
        false => LENIENT.decode(text),
    };
    Ok(Bytes::from(decoded.map_err(bad)?))
}

fn cut(entry: &BucketEntry, bytes: &Bytes) -> Result<Piece, BodyError> {
    let size = size(entry)?;
    let len = entry.nbytes.unwrap_or_else(|| size.saturating_sub(entry.tensor_offset));
    let range = entry.offset.checked_add(len).map(|end| entry.offset..end);
    let data = range.and_then(|range| TensorBytes::new(Arc::new(bytes.clone()), range));
    let data = data.ok_or_else(|| {
        let why = format!("its {len} bytes at {} lie outside of the {} that came", entry.offset, bytes.len());
        malformed(shown(&entry.name), why, "check offset, dtype and shape")
    })?;
    let dtype = dtype::named(&entry.dtype).ok_or_else(|| unknown(entry))?;
    let (name, shape) = (entry.name.clone(), entry.shape.clone());
    Ok(Piece { name, dtype, shape, offset: entry.tensor_offset, data: data.into() })
}

fn size(entry: &BucketEntry) -> Result<usize, BodyError> {
    let kind = dtype::named(&entry.dtype).ok_or_else(|| unknown(entry))?;
    dtype::bytes(kind, &entry.shape).ok_or_else(|| {
        let why = format!("its shape {:?} of {kind:?} is no whole number of bytes, or too large", entry.shape);
        malformed(shown(&entry.name), why, "check dtype and shape")
    })
}

fn unknown(entry: &BucketEntry) -> BodyError {
    let why = format!("`{}` is no element type", clean(&entry.dtype, 40));
    malformed(shown(&entry.name), why, "give PyTorch's name, for example bfloat16, or that of safetensors, BF16")
}

fn shown(name: &str) -> String {
    format!("tensor `{}`", clean(name, SHOWN))
}

#[cfg(test)]
mod tests;
