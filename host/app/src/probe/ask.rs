//! Asking for scales, and comparing answers bit for bit.

use patchhost_runtime::hooks::{BlockQuant, Blocks, CastRule, Needs, Scheme};

/// The question that a probe asks: so many blocks in one row, of a tensor with a believable name.
pub(super) const TENSOR: &str = "model.layers.0.mlp.experts.3.down_proj.weight";

/// Scales of `amax`, as a refit would ask for them where the scheme needs no rows.
pub(super) fn scales(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    tensor: &str,
    first_block: usize,
    total: usize,
    amax: &[f32],
) -> Result<Vec<f32>, String> {
    let (block_rows, block_cols) = (scheme.block_rows, scheme.block_cols);
    let cols = total * block_cols;
    let blocks = Blocks { tensor, rows: block_rows, cols, block_rows, block_cols, first_block };
    let answer = match scheme.needs {
        Needs::Moments => {
            // The sum of squares of a block whose values are all as large as its largest, halved.
            let values = (block_rows * block_cols) as f32;
            let squares: Vec<f32> = amax.iter().map(|a| (a * a * values * 0.25).min(f32::MAX)).collect();
            quant.scales_with_moments(&blocks, amax, &squares)
        }
        _ => quant.scales(&blocks, amax),
    };
    answer.map_err(|e| e.to_string())
}

/// Asks for the scales of all of `amax` in one call, as blocks 0, 1, 2 and so on.
pub(super) fn all(quant: &dyn BlockQuant, scheme: &Scheme, amax: &[f32]) -> Result<Vec<f32>, String> {
    scales(quant, scheme, TENSOR, 0, amax.len(), amax)
}

/// An error that names the first place where two answers differ in a bit; none if they are the same.
pub(super) fn differ(what: &str, amax: &[f32], first: &[f32], second: &[f32]) -> Result<(), String> {
    if first.len() != second.len() {
        return Err(format!("{what}: {} numbers, and then {}", first.len(), second.len()));
    }
    match first.iter().zip(second).position(|(a, b)| a.to_bits() != b.to_bits()) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{what}: for amax {} it answered {}, and then {}",
            shown(amax.get(at).copied().unwrap_or(f32::NAN)),
            shown(first[at]),
            shown(second[at])
        )),
    }
}

/// A number as messages show it: with its bits, since two numbers can look alike.
pub(super) fn shown(x: f32) -> String {
    format!("{x:e} ({:#010x})", x.to_bits())
}

/// The scale that the cast stores for what a patch returned.
pub(super) fn stored(scheme: &Scheme, given: f32) -> f32 {
    match scheme.cast.cast {
        CastRule::Multiply => 1.0 / given,
        CastRule::Divide | CastRule::Reciprocal => given,
    }
}
