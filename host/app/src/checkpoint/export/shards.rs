//! Which tensor goes into which file: decided, with every offset, before the first weight is read.

use std::collections::BTreeMap;

use patchhost_runtime::error::{Refusal, RuntimeError};
use safetensors::tensor::Dtype;
use serde_json::json;

use super::decide::{Entry, Fate, Plan};
use super::{Result, usage};
use crate::checkpoint::layout::{self, MAX_SHARDS, Piece};

/// One tensor in a file.
pub struct Slot {
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

/// Fills files up to `most` bytes of data; a tensor that is larger gets a file of its own. A weight and its scale are
/// never apart.
pub fn shards(plan: &Plan, most: u64, metadata: &BTreeMap<String, String>) -> Result<Vec<Shard>> {
    let groups = layout::fill(plan.entries.iter().map(|entry| pieces(entry).iter().map(|p| p.len).sum()), most);
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
        _ => layout::numbered(i, count),
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
    let mut all: Vec<(usize, Piece<'_>)> = Vec::new();
    for i in group {
        all.extend(pieces(&plan.entries[*i]).into_iter().map(|piece| (*i, piece)));
    }
    let (of, pieces): (Vec<usize>, Vec<Piece<'_>>) = all.into_iter().unzip();
    let (header, offsets) = layout::header(&pieces, metadata).map_err(|e| {
        RuntimeError::Checkpoint(Refusal::new("the header of a shard", e.to_string(), "please report this"))
    })?;
    let len = header.len() as u64 + pieces.iter().map(|p| p.len).sum::<u64>();
    let mut tensors: Vec<Placed> = Vec::with_capacity(group.len());
    for ((entry, piece), offset) in of.into_iter().zip(&pieces).zip(offsets) {
        let slot = Slot { name: piece.name.to_string(), offset, len: piece.len };
        match tensors.last_mut() {
            // The scale follows its weight.
            Some(placed) if placed.entry == entry => placed.scale = Some(slot),
            _ => tensors.push(Placed { entry, weight: slot, scale: None }),
        }
    }
    Ok(Shard { file, header, tensors, len })
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
