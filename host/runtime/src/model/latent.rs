//! Multi-head latent attention (DeepSeek) in its absorbed form: the cache holds the latent of each position and its rotated
//! shared key, and every head attends to these ([`crate::absorbed`]).

use patchhost_kernels::attention::{AttentionShape, attend_rows};
use patchhost_kernels::heads::{HeadNorm, HeadSteps, heads};
use patchhost_kernels::linear::{PackedMatrix, Product, multiply};
use patchhost_kernels::rows::rms_norm;
use patchhost_kernels::strided::{Strides, copy_heads};

use super::attention::context;
use super::linear::linear;
use super::work::{Owner, Work};
use super::{Model, Op, Pass};
use crate::families::Latent;
use crate::hooks::HookError;
use crate::kv::LayerShape;
use crate::lora::Adapter;
use crate::registry::{LatentParams, QueryParams};

/// The norms inside latent attention have this epsilon, whatever config.json says (transformers, vLLM).
const EPS: f32 = 1e-6;

/// Values of a position in the cache: the latent, then the rotated key.
fn width(l: &Latent) -> usize {
    l.kv_rank + l.rope
}

/// What a sequence remembers in such a layer: the latents are keys and values.
pub(super) fn memory(l: &Latent) -> LayerShape {
    LayerShape::Latent { width: width(l) }
}

impl Model {
    pub(super) fn attend_latent(
        &self,
        pass: &mut Pass<'_, '_>,
        p: &LatentParams,
        work: &mut Work,
    ) -> Result<(), HookError> {
        let (n, l, w, team) = (self.common.heads, &p.shape, pass.weights, pass.team);
        let absorbed = w.absorbed(p.kv_b);
        let Work {
            spans,
            owners,
            cos,
            sin,
            normed,
            mixed,
            quantized,
            wide,
            q,
            k,
            low,
            low_normed,
            inner,
            by_head,
            head_out,
            head_products: products,
            ..
        } = work;
        let (rows, key, width) = (owners.len(), l.nope + l.rope, width(l));
        let steps = |skip: usize| HeadSteps {
            norm: HeadNorm::None,
            eps: EPS,
            clip: None,
            cos,
            sin,
            half: l.rope / 2,
            skip,
            neighbors: l.interleaved,
        };
        match &p.query {
            QueryParams::Direct(param) => linear(pass, Op::Project, owners, *param, None, normed, quantized, wide)?,
            QueryParams::LowRank { a, a_bias, norm, b } => {
                linear(pass, Op::Project, owners, *a, *a_bias, normed, quantized, low)?;
                low_normed.resize(low.len(), 0.0);
                rms_norm(team, low, w.vector(*norm), EPS, low_normed);
                linear(pass, Op::Project, owners, *b, None, low_normed, quantized, wide)?;
            }
        }
        heads(team, wide, n * key, 0, n, key, &steps(l.nope));
        linear(pass, Op::Project, owners, p.kv_a, p.kv_a_bias, normed, quantized, low)?;
        heads(team, low, width, l.kv_rank, 1, l.rope, &steps(0));
        k.clear();
        k.extend(low.chunks_exact(width).flat_map(|row| &row[..l.kv_rank]));
        low_normed.resize(k.len(), 0.0);
        rms_norm(team, k, w.vector(p.kv_a_norm), EPS, low_normed);
        for (s, span) in pass.batch.iter_mut().zip(spans.iter()) {
            let Some((keys, _)) = s.cache.extend(pass.layer, span.tokens) else { continue };
            let keys = &mut keys[span.past * width..];
            for (row, key) in (span.row..).zip(keys.chunks_exact_mut(width)) {
                let (latent, rope) = key.split_at_mut(l.kv_rank);
                latent.copy_from_slice(&low_normed[row * l.kv_rank..][..l.kv_rank]);
                rope.copy_from_slice(&low[row * width + l.kv_rank..][..l.rope]);
            }
        }

        // Queries: what has no rope is turned into the space of the latents, the rest stays.
        by_head.resize(n * rows * l.nope, 0.0);
        let (in_wide, in_q) = (Strides::rows(n, key), Strides::rows(n, width));
        copy_heads(team, [rows, n, l.nope], wide, in_wide, by_head, Strides::heads(rows, l.nope));
        pass.clock.lap(Op::Heads);
        head_out.resize(n * rows * l.kv_rank, 0.0);
        products_of(pass, products, &absorbed.keys, rows, by_head, head_out);
        adapt(pass, owners, n, by_head, head_out, |adapter, head, x, out| {
            let first = p.expansion.rows(head).start;
            adapter.add_transposed(p.kv_b, 0, first..first + l.nope, x, out);
        });
        pass.clock.lap(Op::Project);
        q.resize(rows * n * width, 0.0);
        copy_heads(team, [rows, n, l.kv_rank], head_out, Strides::heads(rows, l.kv_rank), q, in_q);
        copy_heads(team, [rows, n, l.rope], &wide[l.nope..], in_wide, &mut q[l.kv_rank..], in_q);
        pass.clock.lap(Op::Heads);

        let shape = AttentionShape::shared(n, width, l.kv_rank);
        let scale = self.common.rope.softmax_factor() / (key as f32).sqrt();
        wide.resize(rows * n * l.kv_rank, 0.0);
        let context = context(pass.batch, pass.layer, owners, None);
        attend_rows(team, &shape, q, n * width, &context, scale, wide);
        pass.clock.lap(Op::Attend);

        // The sums of latents become values.
        by_head.resize(n * rows * l.kv_rank, 0.0);
        let heads_in = Strides::heads(rows, l.kv_rank);
        copy_heads(team, [rows, n, l.kv_rank], wide, Strides::rows(n, l.kv_rank), by_head, heads_in);
        pass.clock.lap(Op::Heads);
        head_out.resize(n * rows * l.value, 0.0);
        products_of(pass, products, &absorbed.values, rows, by_head, head_out);
        adapt(pass, owners, n, by_head, head_out, |adapter, head, x, out| {
            let rows = p.expansion.rows(head);
            adapter.add_rows(p.kv_b, 0, rows.start + l.nope..rows.end, x, out);
        });
        pass.clock.lap(Op::Project);
        inner.resize(rows * n * l.value, 0.0);
        let (heads_out, in_rows) = (Strides::heads(rows, l.value), Strides::rows(n, l.value));
        copy_heads(team, [rows, n, l.value], head_out, heads_out, inner, in_rows);
        pass.clock.lap(Op::Heads);
        linear(pass, Op::Project, owners, p.o, p.o_bias, inner, quantized, mixed)
    }
}

/// Each head's rows times its matrix, all heads in one call.
fn products_of(
    pass: &Pass<'_, '_>,
    kept: &mut Vec<Product<'static, PackedMatrix>>,
    matrices: &[PackedMatrix],
    m: usize,
    x: &[f32],
    out: &mut [f32],
) {
    let mut products: Vec<Product<'_, PackedMatrix>> = std::mem::take(kept);
    let mut left = (x, out);
    for matrix in matrices {
        let (x, x_left) = left.0.split_at(m * matrix.k());
        let (out, out_left) = left.1.split_at_mut(m * matrix.n());
        left = (x_left, out_left);
        let parts = std::slice::from_ref(matrix);
        products.push(Product { x, x_fp8: None, m, parts, bias: None, out, ldo: matrix.n() });
    }
    multiply(pass.team, &mut products);
    *kept = Product::recycle(products);
}

/// Calls `add` with the adapter of every row that has one, for each head with its inputs and outputs.
fn adapt(
    pass: &Pass<'_, '_>,
    owners: &[Owner],
    heads: usize,
    x: &[f32],
    out: &mut [f32],
    add: impl Fn(&Adapter, usize, &[f32], &mut [f32]),
) {
    let rows = owners.len();
    let (x_width, out_width) = (x.len() / (heads * rows).max(1), out.len() / (heads * rows).max(1));
    for (row, owner) in owners.iter().enumerate() {
        let Some(adapter) = pass.adapter(owner) else { continue };
        for head in 0..heads {
            let at = head * rows + row;
            add(adapter, head, &x[at * x_width..][..x_width], &mut out[at * out_width..][..out_width]);
        }
    }
}
