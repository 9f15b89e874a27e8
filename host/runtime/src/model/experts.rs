//! Routed experts: one product per chosen expert over the tokens that chose it, all in one call.

use patchhost_kernels::linear::Product;
use patchhost_kernels::rows::{combine, swiglu};

use super::route::route;
use super::work::{Experts, Pick, Work};
use super::{Model, Op, Pass};
use crate::families::Moe;
use crate::hooks::HookError;
use crate::registry::ParamId;
use crate::weights::Part;

impl Model {
    /// The weighted sum of the chosen experts, [rows, hidden], from the router's logits.
    pub(super) fn experts(
        &self,
        pass: &Pass<'_, '_>,
        w13: ParamId,
        w2: ParamId,
        bias: Option<ParamId>,
        moe: &Moe,
        work: &mut Work,
    ) -> Result<(), HookError> {
        let (hidden, width, team) = (self.common.hidden, moe.intermediate, pass.team);
        let Work { owners, normed, mixed, quantized, experts, .. } = work;
        let Experts { router, scores, choice, picks, order, places, x, x_fp8, both, gated, gated_fp8, out, products } =
            experts;
        let bias = bias.map(|b| pass.weights.vector(b));
        picks.clear();
        for row in router.chunks_exact(moe.experts) {
            route(row, bias, moe, scores, choice, picks);
        }
        // By expert, so that its tokens are rows of one product; then by token, which changes no bit.
        order.clear();
        order.extend(0..picks.len());
        order.sort_unstable_by_key(|i| (picks[*i].expert, *i));
        places.clear();
        places.resize(picks.len(), (0, 0.0));
        for (place, i) in order.iter().enumerate() {
            places[*i] = (place, picks[*i].weight);
        }
        pass.clock.lap(Op::Route);
        let (up, down) = (pass.weights.parts(w13), pass.weights.parts(w2));
        // Quantized once per token, not once per expert: groups lie within a row.
        let fp8 = pass.quantize(up, normed, owners.len(), quantized)?.is_some();
        pass.clock.lap(Op::Quantize);
        gather(normed, hidden, order, moe.top_k, x);
        if fp8 {
            gather(quantized, hidden, order, moe.top_k, x_fp8);
        }
        pass.clock.lap(Op::Gate);
        both.resize(picks.len() * 2 * width, 0.0);
        let x_fp8 = fp8.then_some(&x_fp8[..]);
        products_of(pass, products, up, 2, picks, order, x, x_fp8, both);
        let swapped = pass.weights.swapped(w13);
        for (place, i) in order.iter().enumerate() {
            let Some(adapter) = pass.adapter(&owners[i / moe.top_k]) else { continue };
            let (first, second) = both[place * 2 * width..][..2 * width].split_at_mut(width);
            let (gate, up) = if swapped { (second, first) } else { (first, second) };
            let x = &x[place * hidden..][..hidden];
            adapter.add(w13, picks[*i].expert * 2, x, gate);
            adapter.add(w13, picks[*i].expert * 2 + 1, x, up);
        }
        pass.clock.lap(Op::Experts);
        gated.resize(picks.len() * width, 0.0);
        swiglu(team, both, width, swapped, gated);
        pass.clock.lap(Op::Gate);
        let x_fp8 = pass.quantize(down, gated, picks.len(), gated_fp8)?;
        pass.clock.lap(Op::Quantize);
        out.resize(picks.len() * hidden, 0.0);
        products_of(pass, products, down, 1, picks, order, gated, x_fp8, out);
        for (place, i) in order.iter().enumerate() {
            if let Some(adapter) = pass.adapter(&owners[i / moe.top_k]) {
                let x = &gated[place * width..][..width];
                adapter.add(w2, picks[*i].expert, x, &mut out[place * hidden..][..hidden]);
            }
        }
        pass.clock.lap(Op::Experts);
        mixed.resize(owners.len() * hidden, 0.0);
        combine(team, out, places, moe.top_k, hidden, mixed);
        pass.clock.lap(Op::Gate);
        Ok(())
    }
}

/// The rows of the tokens of the picks, in this order.
fn gather(x: &[f32], hidden: usize, order: &[usize], top_k: usize, out: &mut Vec<f32>) {
    out.clear();
    for i in order {
        out.extend_from_slice(&x[i / top_k * hidden..][..hidden]);
    }
}

/// The products of the experts that were picked: `parts` has `each` matrices per expert; `x` and `out` are in the order of
/// the picks.
fn products_of(
    pass: &Pass<'_, '_>,
    kept: &mut Vec<Product<'static, Part>>,
    parts: &[Part],
    each: usize,
    picks: &[Pick],
    order: &[usize],
    x: &[f32],
    x_fp8: Option<&[f32]>,
    out: &mut [f32],
) {
    let mut products: Vec<Product<'_, Part>> = std::mem::take(kept);
    let (wide, mut left) = (x.len() / order.len().max(1), out);
    let mut place = 0;
    for run in order.chunk_by(|a, b| picks[*a].expert == picks[*b].expert) {
        let (expert, m) = (picks[run[0]].expert, run.len());
        let parts = &parts[expert * each..(expert + 1) * each];
        let n: usize = parts.iter().map(|p| p.rows).sum();
        let (mine, rest) = left.split_at_mut(m * n);
        left = rest;
        let rows = place * wide..(place + m) * wide;
        let (x, x_fp8) = (&x[rows.clone()], x_fp8.map(|x| &x[rows]));
        products.push(Product { x, x_fp8, m, parts, bias: None, out: mine, ldo: n });
        place += m;
    }
    pass.multiply(&mut products);
    *kept = Product::recycle(products);
}
