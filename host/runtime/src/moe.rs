//! Routed experts: the router's choice, and one GEMM per expert over the tokens that chose it.

mod route;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape};
use route::route;

use crate::families::Moe;
use crate::hooks::HookError;
use crate::ops::{Pass, apply_parts, contiguous};
use crate::registry::ParamId;
use crate::weights::WeightSet;

/// x [tokens, hidden] and router logits [tokens, experts] to the weighted sum of the chosen experts [tokens, hidden].
pub(crate) struct MoeOp<'a> {
    pub(crate) weights: &'a WeightSet,
    pub(crate) w13: ParamId,
    pub(crate) w2: ParamId,
    /// `e_score_correction_bias`.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) moe: &'a Moe,
    pub(crate) pass: &'a Pass,
}

impl CustomOp2 for MoeOp<'_> {
    fn name(&self) -> &'static str {
        "patchhost-moe"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, tokens, hidden) = contiguous(s1, l1)?;
        let (logits, _, _) = contiguous(s2, l2)?;
        let out = self.run(x, logits, tokens, hidden).map_err(|e| self.pass.fail(e))?;
        Ok((CpuStorage::F32(out), Shape::from((tokens, hidden))))
    }
}

impl MoeOp<'_> {
    fn run(&self, x: &[f32], logits: &[f32], tokens: usize, hidden: usize) -> std::result::Result<Vec<f32>, HookError> {
        let k = self.moe.top_k;
        // chosen[t * k + slot]: the expert and its weight, best first.
        let chosen: Vec<(usize, f32)> =
            logits.chunks_exact(self.moe.experts).flat_map(|row| route(row, self.bias.as_deref(), self.moe)).collect();
        let mut results = vec![0.0; chosen.len() * hidden];
        for expert in 0..self.moe.experts {
            let picks: Vec<usize> = (0..chosen.len()).filter(|i| chosen[*i].0 == expert).collect();
            if picks.is_empty() {
                continue;
            }
            let gathered: Vec<f32> =
                picks.iter().flat_map(|i| &x[i / k * hidden..(i / k + 1) * hidden]).copied().collect();
            let rows: Vec<usize> = picks.iter().map(|i| i / k).collect();
            let out = self.expert(expert, &gathered, &rows, hidden)?;
            for (i, row) in picks.iter().zip(out.chunks_exact(hidden)) {
                results[i * hidden..(i + 1) * hidden].copy_from_slice(row);
            }
        }
        // Summed slot by slot, so that a token's sum does not depend on which other tokens are in the batch.
        let mut out = vec![0.0; tokens * hidden];
        for (t, row) in out.chunks_exact_mut(hidden).enumerate() {
            for slot in 0..k {
                let i = t * k + slot;
                let weight = chosen[i].1;
                for (o, r) in row.iter_mut().zip(&results[i * hidden..(i + 1) * hidden]) {
                    *o += weight * r;
                }
            }
        }
        Ok(out)
    }

    /// down(silu(gate x) * up x) of one expert for the gathered `rows` of the pass.
    fn expert(
        &self,
        expert: usize,
        x: &[f32],
        rows: &[usize],
        hidden: usize,
    ) -> std::result::Result<Vec<f32>, HookError> {
        let (width, m) = (self.moe.intermediate, rows.len());
        let mut gate_up = vec![0.0; m * 2 * width];
        let w13 = &self.weights.parts(self.w13)[expert * 2..expert * 2 + 2];
        apply_parts(self.weights, w13, None, x, m, hidden, &mut gate_up)?;
        let swapped = self.weights.swapped(self.w13);
        for (i, both) in gate_up.chunks_exact_mut(2 * width).enumerate() {
            if let Some(adapter) = self.pass.adapter(rows[i]) {
                let (first, second) = both.split_at_mut(width);
                let (gate, up) = if swapped { (second, first) } else { (first, second) };
                let x = &x[i * hidden..(i + 1) * hidden];
                adapter.add(self.w13, expert * 2, x, gate);
                adapter.add(self.w13, expert * 2 + 1, x, up);
            }
        }
        let mut gated = vec![0.0; m * width];
        for (row, both) in gated.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
            let (first, second) = both.split_at(width);
            let (gate, up) = if swapped { (second, first) } else { (first, second) };
            for (o, (g, u)) in row.iter_mut().zip(gate.iter().zip(up)) {
                *o = g / (1.0 + (-g).exp()) * u;
            }
        }
        let mut out = vec![0.0; m * hidden];
        let w2 = &self.weights.parts(self.w2)[expert..expert + 1];
        apply_parts(self.weights, w2, None, &gated, m, width, &mut out)?;
        for (i, out) in out.chunks_exact_mut(hidden).enumerate() {
            if let Some(adapter) = self.pass.adapter(rows[i]) {
                adapter.add(self.w2, expert, &gated[i * width..(i + 1) * width], out);
            }
        }
        Ok(out)
    }
}
