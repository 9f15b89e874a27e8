//! One checkpoint tensor into its parts: copied, quantized through the patch, or taken as FP8 as it is.

use std::sync::Arc;

use patchhost_kernels::cast::CastReport;
use patchhost_kernels::e4m3::contains_nan_code;
use patchhost_kernels::linear::ScaleOrder;
use patchhost_kernels::pages::Buffer;
use rayon::prelude::*;

use super::declared::rounded;
use super::{NonFinite, RefitHooks, Setup};
use crate::bytes::{TensorBytes, TensorData};
use crate::checkpoint::CheckpointTensor;
use crate::error::{Refusal, Result, RuntimeError};
use crate::fp8::BlockScale;
use crate::hooks::{BlockQuant, Decision, Edges, Elem, LayoutPass, ScaleFormat, Scheme};
use crate::layout;
use crate::plan::{Action, Dest};
use crate::quantize::{Input, Measure, Quantized, quantize_under};
use crate::weights::{Matrix, Part};

/// The parts that one tensor became.
pub(super) struct Staged {
    pub(super) parts: Vec<(Dest, Part)>,
    pub(super) report: CastReport,
}

/// One tensor to stage.
pub(super) struct Job<'a> {
    pub(super) tensor: &'a CheckpointTensor,
    pub(super) action: &'a Action,
    pub(super) decision: &'a Decision,
    pub(super) hooks: &'a RefitHooks,
    /// Layout passes of every runtime tensor.
    pub(super) passes: &'a [Vec<LayoutPass>],
    pub(super) setup: &'a Setup<'a>,
}

impl Job<'_> {
    fn ue8m0(&self, dest: &Dest) -> bool {
        self.passes[dest.param].contains(&LayoutPass::Ue8m0)
    }

    fn quantize(&self, input: &Input<'_>, dest: &Dest, scheme: &Scheme, quant: &dyn BlockQuant) -> Result<Quantized> {
        let rule = self.hooks.rules.non_finite;
        let made = match self.ue8m0(dest) && scheme.cast.format != ScaleFormat::Ue8m0 {
            true => {
                let (scheme, quant) = (layout::scheme(scheme), layout::Pow2::new(quant, scheme));
                quantize_under(rule, input, &scheme, &quant, Measure::Sample)
            }
            false => quantize_under(rule, input, scheme, quant, Measure::Sample),
        };
        // The index counts within the matrix that was quantized: of a stacked tensor, say which.
        made.map_err(|error| match error {
            RuntimeError::NonFinite(refusal) if self.is_piecewise() => {
                let decl = &self.setup.registry.params()[dest.param];
                let what = format!("{} ({} of `{}`)", refusal.what, decl.part_label(dest.part), decl.name);
                RuntimeError::NonFinite(Refusal { what, ..refusal })
            }
            other => other,
        })
    }

    /// Whether the tensor goes into more than one matrix, or is turned on its way.
    fn is_piecewise(&self) -> bool {
        matches!(self.action, Action::Load { dests, transposed, .. } if dests.len() > 1 || transposed.is_some())
    }

    /// Reads, asks for scales, casts, and packs what no layout pass needs row-major: it lies in a cache now.
    pub(super) fn run(&self) -> Result<Staged> {
        let mut staged = self.stage()?;
        for (dest, part) in &mut staged.parts {
            let as_is = self.passes[dest.param].iter().all(|pass| *pass == LayoutPass::SwapW13);
            if as_is && self.setup.registry.is_packed(dest.param) {
                let plain = std::mem::replace(&mut part.matrix, Matrix::F32(Vec::new()));
                part.matrix = plain.packed(part.rows, part.cols);
            }
        }
        Ok(staged)
    }

    fn stage(&self) -> Result<Staged> {
        let Job { tensor, action, decision, hooks, .. } = *self;
        let mut staged = Staged { parts: Vec::new(), report: CastReport::default() };
        let Action::Load { dests, transposed, .. } = action else { return Ok(staged) };
        let internal = |why: &str| {
            RuntimeError::Checkpoint(Refusal::new(format!("tensor `{}`", tensor.name), why, "check the checkpoint"))
        };
        if let Some(scale) = &tensor.scale {
            let mut staged = stored_fp8(tensor, scale, dests, *transposed)?;
            staged.parts.iter_mut().filter(|(d, _)| self.ue8m0(d)).for_each(|(_, part)| layout::requantize(part));
            return Ok(staged);
        }
        let elem = tensor.elem().ok_or_else(|| internal("not a float tensor"))?;
        let data = match *transposed {
            None => tensor.data.clone(),
            Some((n, rows, cols)) => {
                let turned = transpose(&tensor.data.load()?, n, rows, cols, elem.size());
                TensorData::from(turned.ok_or_else(|| internal("short data"))?)
            }
        };
        for dest in dests {
            let start = dest.offset * elem.size();
            let end = start + dest.rows * dest.cols * elem.size();
            // Part by part: of a file, no more is in memory than what is made of it now.
            let part = data.slice(start..end).ok_or_else(|| internal("its data is shorter than its shape"))?;
            let bytes = part.load()?;
            let to = self.setup.stored(dest, elem);
            let bytes = rounded(&bytes, elem, to).map_err(|(i, value)| {
                let why = format!(
                    "the value at index {:?} is {value}, beyond the {to:?} that it is declared in",
                    at(dest, i)
                );
                let next = "repair the weight; the old weights, if any, keep serving";
                RuntimeError::NonFinite(Refusal::new(format!("tensor `{}`", tensor.name), why, next))
            })?;
            let elem = to;
            let matrix = match (decision, &hooks.quant) {
                (Decision::Quantize(scheme), Some(quant)) => {
                    let input = Input { name: &tensor.name, data: bytes, elem, rows: dest.rows, cols: dest.cols };
                    let made = self.quantize(&input, dest, scheme, quant.as_ref())?;
                    // Under strict edges every value is finite, and no finite value becomes a NaN code.
                    if scheme.cast.edges != Edges::Strict && contains_nan_code(&made.q) {
                        return Err(RuntimeError::NonFinite(Refusal::new(
                            format!("tensor `{}`", tensor.name),
                            "its FP8 codes hold NaN under the chosen edge policy; a model with NaN weights cannot be served",
                            "repair the weight (edges=strict names it); `patchhost quantize` can still write such files",
                        )));
                    }
                    staged.report += made.report;
                    Matrix::Fp8 {
                        q: made.q,
                        scales: made.scales,
                        order: ScaleOrder::RowMajor,
                        block_rows: scheme.block_rows,
                        block_cols: scheme.block_cols,
                    }
                }
                _ => {
                    if let Some((i, value)) = first_nonfinite(&bytes, elem) {
                        let count = nonfinite(&bytes, elem);
                        if hooks.rules.non_finite == NonFinite::Refuse {
                            return Err(self.not_finite(dest, i, value, count));
                        }
                        staged.report.non_finite += count;
                    }
                    Matrix::copied(elem, &bytes)
                }
            };
            staged.parts.push((*dest, Part { rows: dest.rows, cols: dest.cols, matrix }));
        }
        Ok(staged)
    }

    /// Names the first value of a tensor that is kept as it is.
    fn not_finite(&self, dest: &Dest, n: usize, value: f32, count: u64) -> RuntimeError {
        let index = at(dest, n);
        let more = if count > 1 { format!(", and {count} of its values are not finite") } else { String::new() };
        RuntimeError::NonFinite(Refusal::new(
            format!("tensor `{}`", self.tensor.name),
            format!("the value at index {index:?} is {value}{more}; a model with such weights cannot be served"),
            "repair the weight; the old weights, if any, keep serving. `[quant] non_finite = \"allow\"` in the policy file \
             publishes it as it is",
        ))
    }
}

/// How many values of `bytes` (little-endian elements of `elem`) are NaN or infinite.
pub fn nonfinite(bytes: &[u8], elem: Elem) -> u64 {
    let count = match elem {
        Elem::F32 => bytes.as_chunks::<4>().0.iter().filter(|b| not_finite_32(b)).count(),
        Elem::Bf16 => bytes.as_chunks::<2>().0.iter().filter(|b| not_finite_bf16(b)).count(),
        Elem::F16 => bytes.as_chunks::<2>().0.iter().filter(|b| not_finite_f16(b)).count(),
    };
    count as u64
}

// All bits of the exponent are set.
fn not_finite_32(b: &[u8; 4]) -> bool {
    u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000
}
fn not_finite_bf16(b: &[u8; 2]) -> bool {
    u16::from_le_bytes(*b) & 0x7f80 == 0x7f80
}
fn not_finite_f16(b: &[u8; 2]) -> bool {
    u16::from_le_bytes(*b) & 0x7c00 == 0x7c00
}

/// Where the n-th element of a part stands in its tensor.
fn at(dest: &Dest, n: usize) -> Vec<usize> {
    let i = dest.offset + n;
    if dest.cols > 1 { vec![i / dest.cols, i % dest.cols] } else { vec![i] }
}

/// Index and value of the first element of `bytes` (little-endian elements of `elem`) that is NaN or infinite.
pub fn first_nonfinite(bytes: &[u8], elem: Elem) -> Option<(usize, f32)> {
    // Pieces without an exit inside, so that the compiler turns them into vector code.
    fn find<const N: usize>(bytes: &[u8], bad: impl Fn(&[u8; N]) -> bool + Sync) -> Option<usize> {
        let pieces = bytes.as_chunks::<N>().0.par_chunks(PIECE);
        let (piece, values) =
            pieces.enumerate().find_first(|(_, values)| values.iter().fold(false, |found, b| found | bad(b)))?;
        Some(piece * PIECE + values.iter().position(bad)?)
    }
    let at = match elem {
        Elem::F32 => find(bytes, not_finite_32),
        Elem::Bf16 => find(bytes, not_finite_bf16),
        Elem::F16 => find(bytes, not_finite_f16),
    }?;
    let value = match elem {
        Elem::F32 => bytes.as_chunks::<4>().0.get(at).map(|b| f32::from_le_bytes(*b)),
        Elem::Bf16 => bytes.as_chunks::<2>().0.get(at).map(|b| half::bf16::from_le_bytes(*b).to_f32()),
        Elem::F16 => bytes.as_chunks::<2>().0.get(at).map(|b| half::f16::from_le_bytes(*b).to_f32()),
    };
    Some((at, value.unwrap_or(f32::NAN)))
}

/// Values that one thread looks at.
const PIECE: usize = 1 << 16;

/// FP8 weights of the checkpoint: bytes and scales as they are, split into parts, transposed together.
fn stored_fp8(
    tensor: &CheckpointTensor,
    scale: &BlockScale,
    dests: &[Dest],
    transposed: Option<(usize, usize, usize)>,
) -> Result<Staged> {
    let refuse = |why: String| {
        RuntimeError::Refit(Refusal::new(format!("tensor `{}`", tensor.name), why, "load the model with --dequantize"))
    };
    let short = || refuse("its data is shorter than its shape".to_string());
    let mut data = tensor.data.load()?;
    if contains_nan_code(&data) {
        return Err(RuntimeError::NonFinite(Refusal::new(
            format!("tensor `{}`", tensor.name),
            "its FP8 codes hold NaN; a model with NaN weights cannot be served",
            "repair the weight",
        )));
    }
    let [mut block_rows, mut block_cols] = scale.block;
    let (n, mut rows, mut cols) = match tensor.shape[..] {
        [n, rows, cols] => (n, rows, cols),
        [rows, cols] => (1, rows, cols),
        _ => return Err(short()),
    };
    let mut scales = scale.values.clone();
    if transposed.is_some() {
        let (grid_rows, grid_cols) = (rows.div_ceil(block_rows), cols.div_ceil(block_cols));
        data = transpose(&data, n, rows, cols, 1).ok_or_else(short)?;
        let bytes: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let turned = transpose(&bytes, n, grid_rows, grid_cols, 4).ok_or_else(short)?;
        scales = turned.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (rows, cols) = (cols, rows);
        (block_rows, block_cols) = (block_cols, block_rows);
    }
    let (grid_rows, grid_cols) = (rows.div_ceil(block_rows), cols.div_ceil(block_cols));
    let mut staged = Staged { parts: Vec::new(), report: CastReport::default() };
    for dest in dests {
        let (matrix, first) = (dest.offset / (rows * cols).max(1), dest.offset / cols.max(1) % rows.max(1));
        if !first.is_multiple_of(block_rows) {
            return Err(refuse(format!(
                "a part of it begins at row {first}, which is no multiple of the block's {block_rows} rows"
            )));
        }
        let from = matrix * grid_rows + first / block_rows;
        let count = dest.rows.div_ceil(block_rows);
        let part_scales = scales.get(from * grid_cols..(from + count) * grid_cols).ok_or_else(short)?.to_vec();
        let q = Buffer::from(&data.slice(dest.offset..dest.offset + dest.rows * dest.cols).ok_or_else(short)?[..]);
        let matrix = Matrix::Fp8 { q, scales: part_scales, order: ScaleOrder::RowMajor, block_rows, block_cols };
        staged.parts.push((*dest, Part { rows: dest.rows, cols: dest.cols, matrix }));
    }
    Ok(staged)
}

/// `n` matrices of `rows` × `cols` elements of `size` bytes, each transposed.
fn transpose(data: &[u8], n: usize, rows: usize, cols: usize, size: usize) -> Option<TensorBytes> {
    let each = rows * cols * size;
    if data.len() != n * each {
        return None;
    }
    let mut out = vec![0u8; data.len()];
    for (from, to) in data.chunks_exact(each.max(1)).zip(out.chunks_exact_mut(each.max(1))) {
        for r in 0..rows {
            for c in 0..cols {
                let (f, t) = ((r * cols + c) * size, (c * rows + r) * size);
                to[t..t + size].copy_from_slice(&from[f..f + size]);
            }
        }
    }
    let len = out.len();
    TensorBytes::new(Arc::new(out), 0..len)
}
