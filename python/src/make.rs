//! What a refit makes of one tensor: itself where it is kept, else its codes and scales.

use std::sync::Arc;

use patchhost::patch::{Handed, TensorReceipt};
use patchhost_kernels::cast::CastReport;
use patchhost_kernels::e4m3::contains_nan_code;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::CheckpointTensor;
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::hooks::{BlockQuant, Elem, Scheme};
use patchhost_runtime::quantize::{Input, Measure, On, Strides, grid, quantize_into};
use patchhost_runtime::refit::{NonFinite, Source, first_nonfinite, nonfinite};
use rayon::prelude::*;
use safetensors::Dtype as Stored;

pub type Done<T> = Result<T, RuntimeError>;

/// A tensor that is handed on.
pub struct Output {
    pub name: String,
    pub stored: Stored,
    pub shape: Vec<usize>,
    pub bytes: TensorBytes,
    /// Of scales: the rows and columns of a block.
    pub block: Option<(usize, usize)>,
}

/// What became of one tensor of the source.
pub struct Made {
    /// Its name.
    pub name: String,
    /// Itself, or its codes and its scales.
    pub outputs: Vec<Output>,
    /// What its cast counted; none where it is kept.
    pub cast: Option<CastReport>,
    /// It is handed on with the very bytes that came.
    pub unchanged: bool,
}

/// What one attempt made: of each tensor of the source, in the order of its names.
pub type Outputs = Arc<Vec<Made>>;

/// What the receipt says of each tensor. Hashes every byte once.
pub fn receipts(source: &Source, made: &[Made]) -> Done<Vec<TensorReceipt>> {
    let tensors: Vec<&CheckpointTensor> = source.checkpoint().tensors().collect();
    let sums = source.sums()?;
    let internal = |why: String| RuntimeError::Internal(format!("a receipt: {why}"));
    if tensors.len() != made.len() || sums.len() != made.len() {
        return Err(internal(format!("{} tensors came and {} were made", tensors.len(), made.len())));
    }
    let one = |((tensor, sum), made): ((&&CheckpointTensor, &String), &Made)| {
        let before = sum.parse().map_err(|e: patchhost::patch::NotADigest| internal(e.to_string()))?;
        let handed = |output: &Output| Handed {
            name: output.name.clone(),
            dtype: format!("{:?}", output.stored),
            shape: dimensions(&output.shape),
            sha256: if made.unchanged { before } else { patchhost::base::Digest::of(&output.bytes) },
        };
        Ok(TensorReceipt {
            name: tensor.name.clone(),
            dtype: format!("{:?}", tensor.stored),
            shape: dimensions(&tensor.shape),
            before,
            after: made.outputs.iter().map(handed).collect(),
            kept: made.cast.is_none(),
            blocks: made.cast.map_or(0, |cast| cast.proved),
            saturated: made.cast.map_or(0, |cast| cast.saturated),
        })
    };
    tensors.par_iter().zip(sums).zip(made).map(one).collect()
}

/// SHA-256 over name, type, shape and SHA-256 of everything that is handed on, in the order of the names.
pub fn digest(tensors: &[TensorReceipt]) -> String {
    let handed = tensors.iter().flat_map(|tensor| &tensor.after);
    let lines: String = handed.map(|h| format!("{} {} {:?} {}\n", h.name, h.dtype, h.shape, h.sha256.hex())).collect();
    patchhost::base::Digest::of(lines.as_bytes()).hex()
}

fn dimensions(shape: &[usize]) -> Vec<u64> {
    shape.iter().map(|d| *d as u64).collect()
}

/// A matrix, or a stack of them, as codes and scales.
pub fn quantized(
    tensor: &CheckpointTensor,
    bytes: TensorBytes,
    stored: Stored,
    scheme: &Scheme,
    quant: &dyn BlockQuant,
    rule: NonFinite,
) -> Done<(Vec<Output>, CastReport)> {
    let refuse = |why: String| {
        let next = "use a patch that keeps it, or send it as a matrix";
        RuntimeError::Refit(Refusal::new(format!("tensor `{}`", tensor.name), why, next))
    };
    let elem = elem(stored).ok_or_else(|| refuse(format!("the patch quantizes it, and it is {stored:?}")))?;
    let (count, rows, cols) = match tensor.shape[..] {
        [rows, cols] => (1, rows, cols),
        [count, rows, cols] => (count, rows, cols),
        _ => return Err(refuse(format!("the patch quantizes it, and it has {} dimensions", tensor.shape.len()))),
    };
    let (grid_rows, grid_cols) = grid(rows, cols, scheme);
    let (mut codes, mut scales) = (vec![0u8; count * rows * cols], vec![0f32; count * grid_rows * grid_cols]);
    let (each, per, size) = (rows * cols, grid_rows * grid_cols, rows * cols * elem.size());
    let mut report = CastReport::default();
    for i in 0..count {
        let data = bytes.slice(i * size..(i + 1) * size).ok_or_else(|| refuse("its data is short".to_owned()))?;
        let input = Input { name: &tensor.name, data, elem, rows, cols };
        let strides = Strides { row: cols, col: 1 };
        let (q, s) = (&mut codes[i * each..][..each], &mut scales[i * per..][..per]);
        report += quantize_into(rule, &input, strides, scheme, quant, Measure::Sample, On::Pool, q, s)?;
    }
    if contains_nan_code(&codes) {
        let why = "its FP8 codes hold NaN under the chosen edge policy; a model with NaN weights cannot be served";
        let next = "repair the weight (edges=strict names it)";
        return Err(RuntimeError::NonFinite(Refusal::new(format!("tensor `{}`", tensor.name), why, next)));
    }
    let mut grid = vec![grid_rows, grid_cols];
    if tensor.shape.len() == 3 {
        grid.insert(0, count);
    }
    let scales: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    let output = |name: String, stored, shape, bytes: Vec<u8>, block| {
        let len = bytes.len();
        let bytes = TensorBytes::new(Arc::new(bytes), 0..len).ok_or_else(|| refuse("-".to_owned()))?;
        Ok::<_, RuntimeError>(Output { name, stored, shape, bytes, block })
    };
    let weight = output(tensor.name.clone(), Stored::F8_E4M3, tensor.shape.clone(), codes, None)?;
    let scale = output(
        format!("{}{}", tensor.name, scheme.scale_suffix),
        Stored::F32,
        grid,
        scales,
        Some((scheme.block_rows, scheme.block_cols)),
    )?;
    Ok((vec![weight, scale], report))
}

/// Refuses values that are not finite, or counts them.
pub fn finite(tensor: &CheckpointTensor, bytes: &TensorBytes, stored: Stored, rule: NonFinite) -> Done<u64> {
    let Some(elem) = elem(stored) else { return Ok(0) };
    let Some((at, value)) = first_nonfinite(bytes, elem) else { return Ok(0) };
    let count = nonfinite(bytes, elem);
    if rule == NonFinite::Allow {
        return Ok(count);
    }
    let cols = tensor.shape.last().copied().unwrap_or(1).max(1);
    let more = if count > 1 { format!(", and {count} of its values are not finite") } else { String::new() };
    let index = if tensor.shape.len() > 1 { vec![at / cols, at % cols] } else { vec![at] };
    Err(RuntimeError::NonFinite(Refusal::new(
        format!("tensor `{}`", tensor.name),
        format!("the value at index {index:?} is {value}{more}; a model with such weights cannot be served"),
        "repair the weight; `[quant] non_finite = \"allow\"` in the policy file lets it pass",
    )))
}

/// Significant bits of a float; 0 for what is none.
pub fn precision(stored: Stored) -> u32 {
    match stored {
        Stored::F64 => 53,
        Stored::F32 => 24,
        Stored::F16 => 11,
        Stored::BF16 => 8,
        _ => 0,
    }
}

/// The type of floats that the kernels read; none for every other type.
pub fn elem(stored: Stored) -> Option<Elem> {
    match stored {
        Stored::F32 => Some(Elem::F32),
        Stored::F16 => Some(Elem::F16),
        Stored::BF16 => Some(Elem::Bf16),
        _ => None,
    }
}

/// The same type in the words of safetensors.
pub fn stored_of(elem: Elem) -> Stored {
    match elem {
        Elem::F32 => Stored::F32,
        Elem::F16 => Stored::F16,
        Elem::Bf16 => Stored::BF16,
    }
}
