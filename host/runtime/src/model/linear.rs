//! Products with runtime tensors: quantized activations for FP8, and adapters.

use patchhost_kernels::linear::Product;

use super::work::Owner;
use super::{Op, Pass};
use crate::hooks::HookError;
use crate::lora::Adapter;
use crate::registry::ParamId;
use crate::weights::Part;

impl Pass<'_, '_> {
    /// The adapter of a row.
    pub(super) fn adapter(&self, owner: &Owner) -> Option<&Adapter> {
        self.batch[owner.sequence].cache.adapter().map(|a| &**a)
    }

    /// x [m, k] as FP8 parts see it, where that is another: `quantized` holds it then.
    pub(super) fn quantize<'q>(
        &self,
        parts: &[Part],
        x: &[f32],
        m: usize,
        quantized: &'q mut Vec<f32>,
    ) -> Result<Option<&'q [f32]>, HookError> {
        let fp8 = parts.iter().any(|p| p.matrix.is_fp8());
        let k = parts.first().map_or(0, |p| p.cols);
        let done = fp8 && self.weights.activation().quantize(self.team, x, m, k, quantized)?;
        Ok(done.then_some(&quantized[..]))
    }
}

/// x [m, k] times the stacked parts of a runtime tensor, transposed, into out [m, sum of rows].
pub(super) fn linear(
    pass: &Pass<'_, '_>,
    op: Op,
    owners: &[Owner],
    param: ParamId,
    bias: Option<ParamId>,
    x: &[f32],
    quantized: &mut Vec<f32>,
    out: &mut Vec<f32>,
) -> Result<(), HookError> {
    let m = owners.len();
    let parts = pass.weights.parts(param);
    let n: usize = parts.iter().map(|p| p.rows).sum();
    out.resize(m * n, 0.0);
    let x_fp8 = pass.quantize(parts, x, m, quantized)?;
    pass.clock.lap(Op::Quantize);
    let bias = bias.map(|b| pass.weights.vector(b));
    pass.multiply(&mut [Product { x, x_fp8, m, parts, bias, out, ldo: n }]);
    let k = x.len() / m.max(1);
    for (row, owner) in owners.iter().enumerate() {
        let Some(adapter) = pass.adapter(owner) else { continue };
        let mut first = row * n;
        for (i, part) in parts.iter().enumerate() {
            adapter.add(param, i, &x[row * k..(row + 1) * k], &mut out[first..first + part.rows]);
            first += part.rows;
        }
    }
    pass.clock.lap(op);
    Ok(())
}
