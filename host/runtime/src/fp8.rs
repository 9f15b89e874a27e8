//! FP8 weights of a checkpoint: pairing them with their scales, and widening them where that is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use half::{bf16, f16};
use patchhost_kernels::{e4m3, e8m0};
use rayon::prelude::*;
use safetensors::tensor::Dtype as StDtype;

use crate::bytes::{TensorBytes, TensorData};
use crate::checkpoint::CheckpointTensor;
use crate::error::{Refusal, Result, RuntimeError};
use crate::quant_config::QuantFormat;

/// The scales of one FP8 tensor. `y = f32(q) * scale` of its block.
#[derive(Debug)]
pub struct BlockScale {
    /// Name in the checkpoint.
    pub name: String,
    /// How it is stored.
    pub stored: StDtype,
    /// Dimensions: the block grid of each matrix.
    pub shape: Vec<usize>,
    /// Widened to f32, row-major.
    pub values: Vec<f32>,
    /// The bytes as stored.
    pub data: TensorData,
    /// Rows and columns of a block.
    pub block: [usize; 2],
}

/// Gives every FP8 weight its scale and takes the scales out of `tensors`. What is `spare` stays as it is.
pub(crate) fn pair(
    mut tensors: BTreeMap<String, CheckpointTensor>,
    format: Option<&QuantFormat>,
    spare: &dyn Fn(&str) -> bool,
) -> Result<BTreeMap<String, CheckpointTensor>> {
    let is_weight = |t: &&CheckpointTensor| t.stored == StDtype::F8_E4M3 && !spare(&t.name);
    let weights: Vec<String> = tensors.values().filter(is_weight).map(|t| t.name.clone()).collect();
    let Some(format) = format else {
        return match weights.first() {
            None => Ok(tensors),
            Some(name) => Err(refuse(
                format!("tensor `{name}`"),
                "it is FP8, but config.json has no `quantization_config` that says how its scales are stored",
                "give the config.json that belongs to the checkpoint",
            )),
        };
    };
    for name in weights {
        let found: Vec<String> = scale_names(&name).into_iter().filter(|n| tensors.contains_key(n)).collect();
        let scale_name = match &found[..] {
            [one] => one.clone(),
            [] => {
                return Err(refuse(
                    format!("tensor `{name}`"),
                    format!("it is FP8, but its scale is missing (looked for `{}`)", scale_names(&name).join("`, `")),
                    "give the complete checkpoint (all shards)",
                ));
            }
            [a, b, ..] => {
                return Err(refuse(
                    format!("tensor `{name}`"),
                    format!("it has two scales, `{a}` and `{b}`"),
                    "remove the stale one",
                ));
            }
        };
        let Some(stored) = tensors.remove(&scale_name) else { continue };
        if let Some(weight) = tensors.get_mut(&name) {
            weight.scale = Some(Arc::new(read_scale(weight, &stored, format)?));
        }
    }
    let is_scale = |t: &&CheckpointTensor| t.name.ends_with("_scale_inv") || t.name.ends_with(".weight_scale");
    let orphan = tensors.values().find(|t| is_scale(t) && !spare(&t.name));
    match orphan {
        None => Ok(tensors),
        Some(t) => Err(refuse(
            format!("tensor `{}`", t.name),
            "it is a scale, but there is no FP8 weight that it belongs to",
            "give the complete checkpoint (all shards)",
        )),
    }
}

/// The names under which engines store the scale of a weight.
pub(crate) fn scale_names(weight: &str) -> Vec<String> {
    let mut names = vec![format!("{weight}_scale_inv"), format!("{weight}_scale")];
    if let Some(module) = weight.strip_suffix(".weight") {
        names.extend([format!("{module}.scale"), format!("{module}.qscale_weight")]);
    }
    names
}

fn read_scale(weight: &CheckpointTensor, scale: &CheckpointTensor, format: &QuantFormat) -> Result<BlockScale> {
    let what = || format!("scale `{}`", scale.name);
    let [block_rows, block_cols] = format.block;
    let expected = match weight.shape[..] {
        [rows, cols] => vec![rows.div_ceil(block_rows), cols.div_ceil(block_cols)],
        [n, rows, cols] => vec![n, rows.div_ceil(block_rows), cols.div_ceil(block_cols)],
        _ => {
            return Err(refuse(
                format!("tensor `{}`", weight.name),
                format!("it is FP8 and has {} dimensions; blocks are of matrices", weight.shape.len()),
                "give a checkpoint that keeps vectors in bf16",
            ));
        }
    };
    if scale.shape != expected {
        return Err(refuse(
            what(),
            format!(
                "its shape is {:?}; weight {:?} in blocks of {block_rows}x{block_cols} needs {expected:?}",
                scale.shape, weight.shape
            ),
            "check `weight_block_size` in config.json",
        ));
    }
    let data = scale.data.load()?;
    let values: Vec<f32> = match scale.stored {
        StDtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        StDtype::BF16 => data.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        StDtype::F16 => data.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        StDtype::F8_E8M0 | StDtype::U8 => data.iter().map(|b| e8m0::decode(*b)).collect(),
        other => {
            return Err(refuse(
                what(),
                format!("its dtype is {other:?}; scales are F32, BF16, F16, F8_E8M0 or U8 (UE8M0)"),
                "convert the checkpoint",
            ));
        }
    };
    if let Some(i) = values.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
        return Err(RuntimeError::NonFinite(Refusal::new(
            what(),
            format!("entry {i} is {}; a scale is finite and above 0", values[i]),
            "repair the checkpoint",
        )));
    }
    Ok(BlockScale {
        name: scale.name.clone(),
        stored: scale.stored,
        shape: scale.shape.clone(),
        values,
        data: scale.data.clone(),
        block: format.block,
    })
}

/// The tensor in bf16: f32(q) * scale, rounded to nearest even, as transformers does when it dequantizes on load.
pub(crate) fn dequantized(tensor: &CheckpointTensor) -> Result<CheckpointTensor> {
    let Some(scale) = &tensor.scale else { return Ok(tensor.clone()) };
    let (rows, cols) = match tensor.shape[..] {
        [rows, cols] | [_, rows, cols] => (rows, cols),
        _ => (1, 1),
    };
    let [block_rows, block_cols] = scale.block;
    let (grid_rows, grid_cols) = (rows.div_ceil(block_rows), cols.div_ceil(block_cols));
    let codes = tensor.data.load()?;
    let mut out = vec![0u8; codes.len() * 2];
    out.par_chunks_mut((2 * cols).max(1)).zip(codes.par_chunks(cols.max(1))).enumerate().for_each(
        |(row, (out, codes))| {
            let (matrix, row) = (row / rows.max(1), row % rows.max(1));
            let scales = &scale.values[(matrix * grid_rows + row / block_rows) * grid_cols..];
            for (c, (out, code)) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes).enumerate() {
                *out = bf16::from_f32(e4m3::decode(*code) * scales[c / block_cols]).to_le_bytes();
            }
        },
    );
    let len = out.len();
    let data = TensorBytes::new(Arc::new(out), 0..len).ok_or_else(|| {
        refuse(format!("tensor `{}`", tensor.name), "its data is shorter than its shape", "copy the file again")
    })?;
    Ok(CheckpointTensor::new(tensor.name.clone(), StDtype::BF16, tensor.shape.clone(), data))
}

fn refuse(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> RuntimeError {
    RuntimeError::Checkpoint(Refusal::new(what, why, next))
}
