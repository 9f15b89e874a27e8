//! Where tensors stand in safetensors files of bounded size: names of files, headers and offsets.

use std::collections::BTreeMap;

use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

/// Most files: their names have five digits.
pub(crate) const MAX_SHARDS: usize = 99_999;

/// The name of an index.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// One tensor of a file that is to be written.
pub(crate) struct Piece<'a> {
    pub name: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Bytes.
    pub len: u64,
}

/// Fills files up to `most` bytes of data: which of the lengths, by index, go into each. A larger one gets a file of its
/// own.
pub(crate) fn fill(lens: impl IntoIterator<Item = u64>, most: u64) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut filled = 0u64;
    for (i, len) in lens.into_iter().enumerate() {
        match groups.last_mut() {
            Some(group) if filled.saturating_add(len) <= most => {
                group.push(i);
                filled += len;
            }
            _ => {
                groups.push(vec![i]);
                filled = len;
            }
        }
    }
    groups
}

/// The name of one of several files, counted from 0.
pub(crate) fn numbered(i: usize, count: usize) -> String {
    format!("model-{:05}-of-{count:05}.safetensors", i + 1)
}

/// Everything before the data of a file (length and JSON), and the offset in the file of each piece, in the pieces'
/// order.
pub(crate) fn header(
    pieces: &[Piece<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<u64>), serde_json::Error> {
    // Wide elements first, then by name, as the safetensors crate writes: every tensor is aligned to its element.
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&pieces[*a], &pieces[*b]);
        b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(b.name))
    });
    let mut header = Map::new();
    header.insert("__metadata__".to_string(), json!(metadata));
    let mut offsets = vec![0u64; pieces.len()];
    let mut at = 0u64;
    for i in order {
        let piece = &pieces[i];
        header.insert(
            piece.name.to_string(),
            json!({ "dtype": piece.dtype, "shape": piece.shape, "data_offsets": [at, at + piece.len] }),
        );
        offsets[i] = at;
        at += piece.len;
    }
    let mut text = serde_json::to_vec(&Value::Object(header))?;
    // Padded, so that the data starts at a multiple of 8.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    for offset in &mut offsets {
        *offset += out.len() as u64;
    }
    Ok((out, offsets))
}
