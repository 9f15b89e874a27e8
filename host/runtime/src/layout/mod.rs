//! Layout passes: how published weights lie in memory. A patch names the passes of each runtime tensor; they are run
//! natively inside every refit and recorded with the weights, so that reading back gives the checkpoint's layout again.
//!
//! | pass | on | in memory | back |
//! |---|---|---|---|
//! | `swap-w13` | fused expert weights `w13_weight` and their scales | [up; gate] per expert instead of [gate; up] | itself |
//! | `ue8m0` | FP8 weights | scales are powers of two, quantized directly from the source ([`Pow2`]) | nothing to undo: the numbers are the weights |
//! | `col-major-align` | scales of FP8 weights | column-major, each column padded to a multiple of 16 bytes, part by part | row-major |

mod pow2;

use patchhost_kernels::linear::ScaleOrder;

use crate::error::{Refusal, Result, RuntimeError};
use crate::hooks::{LayoutPass, Slot};
use crate::registry::ParamDecl;
use crate::weights::{Matrix, Part};
pub(crate) use pow2::{Pow2, requantize, scheme};

/// Whether the passes that patch `patch` names can apply to a tensor. `fp8`: all its parts will be FP8.
pub(crate) fn check(patch: &str, decl: &ParamDecl, passes: &[LayoutPass], fp8: bool) -> Result<()> {
    for (i, pass) in passes.iter().enumerate() {
        let why = match pass {
            _ if passes[..i].contains(pass) => "it stands twice in the list",
            LayoutPass::SwapW13 if !is_w13(decl) => {
                "only fused expert weights (w13_weight) have a gate and an up to swap"
            }
            LayoutPass::Ue8m0 | LayoutPass::ColMajorAlign if !fp8 => {
                "only FP8 weights have scales, and this one has none"
            }
            LayoutPass::SwapW13 | LayoutPass::Ue8m0 | LayoutPass::ColMajorAlign => continue,
        };
        return Err(RuntimeError::Refit(Refusal::new(
            format!("layout pass {} of `{}`", name(*pass), decl.name),
            format!("patch `{patch}` names it, but {why}"),
            "take the pass from this tensor, or load the patch that quantizes it",
        )));
    }
    Ok(())
}

/// The name of a pass in the interface.
pub fn name(pass: LayoutPass) -> &'static str {
    match pass {
        LayoutPass::SwapW13 => "swap-w13",
        LayoutPass::Ue8m0 => "ue8m0",
        LayoutPass::ColMajorAlign => "col-major-align",
    }
}

/// Whether a tensor is the fused gate and up of experts.
pub(crate) fn is_w13(decl: &ParamDecl) -> bool {
    decl.experts.is_some() && decl.parts.len() == 2 && decl.part_index(0, Slot::W1).is_some()
}

/// Brings the parts of one tensor into the layout. The numbers of `ue8m0` were made when the tensor was quantized.
pub(crate) fn apply(passes: &[LayoutPass], parts: &mut [Part]) {
    for pass in passes {
        match pass {
            LayoutPass::SwapW13 => parts.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.swap(0, 1)),
            LayoutPass::Ue8m0 => {}
            LayoutPass::ColMajorAlign => parts.iter_mut().for_each(|p| reorder(p, true)),
        }
    }
}

/// The inverse of [`apply`]: the layout of the checkpoint.
pub(crate) fn undo(passes: &[LayoutPass], parts: &mut [Part]) {
    for pass in passes.iter().rev() {
        match pass {
            LayoutPass::SwapW13 => parts.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.swap(0, 1)),
            LayoutPass::Ue8m0 => {}
            LayoutPass::ColMajorAlign => parts.iter_mut().for_each(|p| reorder(p, false)),
        }
    }
}

/// Scales into column-major order with padded columns, or back.
fn reorder(part: &mut Part, column_major: bool) {
    let (rows, cols) = (part.rows, part.cols);
    let Matrix::Fp8 { scales, order, block_rows, block_cols, .. } = &mut part.matrix else { return };
    let (grid_rows, grid_cols) = (rows.div_ceil(*block_rows), cols.div_ceil(*block_cols));
    let wanted = if column_major { ScaleOrder::aligned(grid_rows) } else { ScaleOrder::RowMajor };
    if *order == wanted {
        return;
    }
    let ((from_down, from_across), (to_down, to_across)) = (order.strides(grid_cols), wanted.strides(grid_cols));
    // The padding is zero: it has to be something, the same on every refit, and no scale is zero.
    let mut turned = vec![0.0; wanted.len(grid_rows, grid_cols)];
    for r in 0..grid_rows {
        for c in 0..grid_cols {
            turned[r * to_down + c * to_across] = scales[r * from_down + c * from_across];
        }
    }
    *scales = turned;
    *order = wanted;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(rows: usize, cols: usize, seed: f32) -> Part {
        let (block_rows, block_cols) = (2, 3);
        let grid = rows.div_ceil(block_rows) * cols.div_ceil(block_cols);
        let matrix = Matrix::Fp8 {
            q: (0..rows * cols).map(|i| i as u8 ^ seed as u8).collect(),
            scales: (0..grid).map(|i| seed + i as f32).collect(),
            order: ScaleOrder::RowMajor,
            block_rows,
            block_cols,
        };
        Part { rows, cols, matrix }
    }

    #[test]
    fn passes_move_what_they_say_and_undo_gives_it_back() {
        use LayoutPass::{ColMajorAlign, SwapW13, Ue8m0};
        let plain = vec![part(5, 7, 1.0), part(5, 7, 100.0), part(5, 7, 200.0), part(5, 7, 300.0)];
        let same = |a: &[Part], b: &[Part]| a.iter().zip(b).all(|(a, b)| a.matrix.bit_equal(&b.matrix));
        for passes in [
            vec![],
            vec![SwapW13],
            vec![ColMajorAlign],
            vec![SwapW13, ColMajorAlign],
            vec![ColMajorAlign, Ue8m0, SwapW13],
        ] {
            let mut parts = plain.clone();
            apply(&passes, &mut parts);
            assert_eq!(same(&parts, &plain), passes.is_empty(), "{passes:?}");
            undo(&passes, &mut parts);
            assert!(same(&parts, &plain), "{passes:?}");
        }
        let mut swapped = plain.clone();
        apply(&[SwapW13], &mut swapped);
        assert!(swapped[0].matrix.bit_equal(&plain[1].matrix) && swapped[3].matrix.bit_equal(&plain[2].matrix));
        let mut turned = vec![plain[0].clone()];
        apply(&[ColMajorAlign], &mut turned);
        // A 3x3 grid: columns of 3 values, padded to 4.
        let Matrix::Fp8 { scales, .. } = &turned[0].matrix else { unreachable!() };
        assert_eq!(scales[..], [1.0, 4.0, 7.0, 0.0, 2.0, 5.0, 8.0, 0.0, 3.0, 6.0, 9.0, 0.0]);
    }
}
