//! Which tensor goes into which file: decided, with every offset, before the first weight is read.

use std::collections::BTreeMap;

use patchhost_runtime::error::{Refusal, RuntimeError};
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

use super::decide::{Entry, Fate, Plan};
use super::{Result, usage};

/// Most files: their names have five digits.
const MAX_SHARDS: usize = 99_999;

/// One tensor in a file.
pub struct Slot {
    /// Name.
    pub name: String,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// An entry of the plan, placed.
pub struct Placed {
    /// Index in the plan's entries.
    pub entry: usize,
    /// The weight.
    pub weight: Slot,
    /// Its scale, in the same file, where it becomes FP8.
    pub scale: Option<Slot>,
}

/// One file.
pub struct Shard {
    /// `model.safetensors`, or `model-00001-of-00002.safetensors`.
    pub file: String,
    /// Everything before the data: length and JSON.
    pub header: Vec<u8>,
    /// Its tensors, in the plan's order.
    pub tensors: Vec<Placed>,
    /// Bytes of the file.
    pub len: u64,
}

struct Piece<'a> {
    name: &'a str,
    dtype: Dtype,
    shape: Vec<usize>,
    len: u64,
}

/// Fills files up to `most` bytes of data; a tensor that is larger gets a file of its own. A weight and its scale are
/// never apart.
pub fn shards(plan: &Plan, most: u64, metadata: &BTreeMap<String, String>) -> Result<Vec<Shard>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut filled = 0u64;
    for (i, entry) in plan.entries.iter().enumerate() {
        let len: u64 = pieces(entry).iter().map(|p| p.len).sum();
        match groups.last_mut() {
            Some(group) if filled + len <= most => {
                group.push(i);
                filled += len;
            }
            _ => {
                groups.push(vec![i]);
                filled = len;
            }
        }
    }
    let count = groups.len();
    if count > MAX_SHARDS {
        return Err(usage(
            format!("--max-shard-size {most}"),
            format!("it makes {count} files, more than the limit of {MAX_SHARDS}"),
            "give a larger size",
        ));
    }
    let file = |i: usize| match count {
        1 => "model.safetensors".to_string(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };
    groups.iter().enumerate().map(|(i, group)| shard(plan, group, file(i), metadata)).collect()
}

/// The tensors that an entry becomes: the weight, then the scale if there is one.
fn pieces(entry: &Entry) -> Vec<Piece<'_>> {
    let output = &entry.output;
    let weight = |dtype, len| Piece { name: &output.name, dtype, shape: output.shape.clone(), len };
    match &entry.fate {
        Fate::Keep(_) => vec![weight(output.dtype, output.bytes())],
        Fate::Quantize { scale_name, scale_shape, .. } => vec![
            weight(Dtype::F8_E4M3, output.shape.iter().map(|d| *d as u64).product()),
            Piece {
                name: scale_name,
                dtype: Dtype::F32,
                shape: scale_shape.to_vec(),
                len: scale_shape.iter().map(|d| *d as u64).product::<u64>() * 4,
            },
        ],
    }
}

fn shard(plan: &Plan, group: &[usize], file: String, metadata: &BTreeMap<String, String>) -> Result<Shard> {
    // Wide elements first, then by name, as the safetensors crate writes: every tensor is aligned to its element.
    let mut all: Vec<(usize, usize, Piece<'_>)> = Vec::new();
    for i in group {
        all.extend(pieces(&plan.entries[*i]).into_iter().enumerate().map(|(part, piece)| (*i, part, piece)));
    }
    all.sort_by(|a, b| b.2.dtype.bitsize().cmp(&a.2.dtype.bitsize()).then_with(|| a.2.name.cmp(b.2.name)));
    let mut header = Map::new();
    header.insert("__metadata__".to_string(), json!(metadata));
    let mut at = 0u64;
    let mut slots: BTreeMap<(usize, usize), Slot> = BTreeMap::new();
    for (entry, part, piece) in &all {
        header.insert(
            piece.name.to_string(),
            json!({ "dtype": piece.dtype, "shape": piece.shape, "data_offsets": [at, at + piece.len] }),
        );
        slots.insert((*entry, *part), Slot { name: piece.name.to_string(), offset: at, len: piece.len });
        at += piece.len;
    }
    let header = header_bytes(&Value::Object(header))?;
    let data = header.len() as u64;
    let mut tensors = Vec::with_capacity(group.len());
    for i in group {
        let mut take = |part: usize| slots.remove(&(*i, part)).map(|slot| Slot { offset: slot.offset + data, ..slot });
        if let Some(weight) = take(0) {
            tensors.push(Placed { entry: *i, weight, scale: take(1) });
        }
    }
    Ok(Shard { file, header, tensors, len: data + at })
}

/// Length and JSON, padded with spaces so that the data starts at a multiple of 8.
fn header_bytes(header: &Value) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(header).map_err(|e| {
        RuntimeError::Checkpoint(Refusal::new("the header of a shard", e.to_string(), "please report this"))
    })?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    Ok(out)
}

/// `model.safetensors.index.json`; none for a single file, as transformers has it.
pub fn index(shards: &[Shard]) -> Option<String> {
    if shards.len() < 2 {
        return None;
    }
    let mut total = 0u64;
    let mut map = BTreeMap::new();
    for shard in shards {
        for placed in &shard.tensors {
            for slot in std::iter::once(&placed.weight).chain(&placed.scale) {
                total += slot.len;
                map.insert(slot.name.as_str(), shard.file.as_str());
            }
        }
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    serde_json::to_string_pretty(&index).ok().map(|text| text + "\n")
}
