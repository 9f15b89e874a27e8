//! Multi-head latent attention (DeepSeek). Keys and values are cached expanded, per head: on a CPU the latent form would
//! save memory and cost a projection of every position at each step.

use patchhost_kernels::attention::{AttentionShape, attend_rows};
use patchhost_kernels::rows::{HeadNorm, HeadSteps, heads, rms_norm};

use super::attention::context;
use super::linear::linear;
use super::work::Work;
use super::{Model, Op, Pass};
use crate::families::Latent;
use crate::hooks::HookError;
use crate::registry::{LatentParams, QueryParams};

/// The norms inside latent attention have this epsilon, whatever config.json says (transformers, vLLM).
const EPS: f32 = 1e-6;

/// Keys and values share one width in the cache: the larger, padded with zeros, which change no sum.
pub(super) fn padded(l: &Latent) -> usize {
    (l.nope + l.rope).max(l.value)
}

impl Model {
    pub(super) fn attend_latent(
        &self,
        pass: &mut Pass<'_, '_>,
        p: &LatentParams,
        work: &mut Work,
    ) -> Result<(), HookError> {
        let (n, l, w, team) = (self.common.heads, &p.shape, pass.weights, pass.team);
        let Work { spans, owners, cos, sin, normed, mixed, quantized, wide, q, k, low, low_normed, inner, .. } = work;
        let (rows, width, key) = (owners.len(), padded(l), l.nope + l.rope);
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
        q.clear();
        q.resize(rows * n * width, 0.0);
        for (head, out) in wide.chunks_exact(key).zip(q.chunks_exact_mut(width)) {
            out[..key].copy_from_slice(head);
        }

        linear(pass, Op::Project, owners, p.kv_a, p.kv_a_bias, normed, quantized, low)?;
        let ld = l.kv_rank + l.rope;
        heads(team, low, ld, l.kv_rank, 1, l.rope, &steps(0));
        k.clear();
        k.extend(low.chunks_exact(ld).flat_map(|row| &row[..l.kv_rank]));
        low_normed.resize(k.len(), 0.0);
        rms_norm(team, k, w.vector(p.kv_a_norm), EPS, low_normed);
        linear(pass, Op::Project, owners, p.kv_b, None, low_normed, quantized, wide)?;
        let per_row = n * (l.nope + l.value);
        for (s, span) in pass.batch.iter_mut().zip(spans.iter()) {
            let Some((keys, values)) = s.cache.extend(pass.layer, span.tokens) else { continue };
            let places = keys.chunks_exact_mut(n * width).zip(values.chunks_exact_mut(n * width));
            for (row, (keys, values)) in (span.row..).zip(places) {
                let rope = &low[row * ld + l.kv_rank..][..l.rope];
                let expanded = wide[row * per_row..][..per_row].chunks_exact(l.nope + l.value);
                let heads = keys.chunks_exact_mut(width).zip(values.chunks_exact_mut(width));
                // What remains of the width stays zero.
                for (expanded, (key, value)) in expanded.zip(heads) {
                    key[..l.nope].copy_from_slice(&expanded[..l.nope]);
                    key[l.nope..l.nope + l.rope].copy_from_slice(rope);
                    value[..l.value].copy_from_slice(&expanded[l.nope..]);
                }
            }
        }
        pass.clock.lap(Op::Heads);
        let shape = AttentionShape { heads: n, kv_heads: n, head_dim: width };
        let scale = self.common.rope.softmax_factor() / (key as f32).sqrt();
        wide.resize(rows * n * width, 0.0);
        let context = context(pass.batch, pass.layer, owners, None);
        attend_rows(team, &shape, q, n * width, &context, scale, wide);
        inner.clear();
        inner.extend(wide.chunks_exact(width).flat_map(|head| &head[..l.value]));
        pass.clock.lap(Op::Attend);
        linear(pass, Op::Project, owners, p.o, p.o_bias, inner, quantized, mixed)
    }
}
