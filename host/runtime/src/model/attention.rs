//! Grouped-query attention.

use patchhost_kernels::attention::{AttentionShape, Context, attend_rows, put_key, put_value};
use patchhost_kernels::heads::{HeadNorm, HeadSteps, heads};
use patchhost_kernels::rows::gate;

use super::linear::linear;
use super::work::{Owner, Work};
use super::{Model, Op, Pass, Sequence};
use crate::families::QkNorm;
use crate::hooks::HookError;
use crate::registry::{AttentionParams, ParamId};

impl Model {
    pub(super) fn attend(
        &self,
        pass: &mut Pass<'_, '_>,
        p: &AttentionParams,
        work: &mut Work,
    ) -> Result<(), HookError> {
        let (c, team) = (&self.common, pass.team);
        let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let Work { spans, owners, cos, sin, normed, mixed, quantized, wide, q, gate: gates, inner, .. } = work;
        linear(pass, Op::Project, owners, p.qkv, p.qkv_bias, normed, quantized, wide)?;
        // With an output gate every head of q_proj is followed by its gate.
        let start = if p.shape.output_gate { 2 * q_width } else { q_width };
        let ld = start + 2 * kv_width;
        let weights = pass.weights;
        let steps = |norm: Option<ParamId>| HeadSteps {
            norm: match norm.map(|n| weights.vector(n)) {
                None => HeadNorm::None,
                Some(w) if p.shape.qk_norm == QkNorm::Head => HeadNorm::Each(w),
                Some(w) => HeadNorm::All(w),
            },
            eps: c.eps as f32,
            clip: p.shape.clip,
            cos,
            sin,
            half: self.rotary_dim / 2,
            skip: 0,
            neighbors: false,
        };
        let ldq = if p.shape.output_gate {
            q.clear();
            gates.clear();
            for row in wide.chunks_exact(ld) {
                for both in row[..start].chunks_exact(2 * c.head_dim) {
                    q.extend_from_slice(&both[..c.head_dim]);
                    gates.extend_from_slice(&both[c.head_dim..]);
                }
            }
            heads(team, q, q_width, 0, c.heads, c.head_dim, &steps(p.q_norm));
            q_width
        } else {
            heads(team, wide, ld, 0, c.heads, c.head_dim, &steps(p.q_norm));
            ld
        };
        heads(team, wide, ld, start, c.kv_heads, c.head_dim, &steps(p.k_norm));
        for (s, span) in pass.batch.iter_mut().zip(spans.iter()) {
            let Some((keys, values)) = s.cache.extend(pass.layer, span.tokens) else { continue };
            let rows = wide[span.row * ld..].chunks_exact_mut(ld).take(span.tokens);
            for (position, row) in (span.past..).zip(rows) {
                let (key, value) = row[start..].split_at_mut(kv_width);
                if let Some(most) = p.shape.clip {
                    value.iter_mut().for_each(|v| *v = v.clamp(-most, most));
                }
                put_key(keys, position, key);
                put_value(values, position, c.head_dim, value);
            }
        }
        pass.clock.lap(Op::Heads);
        inner.resize(owners.len() * q_width, 0.0);
        let shape = AttentionShape::grouped(c.heads, c.kv_heads, c.head_dim);
        let q = if p.shape.output_gate { &*q } else { &*wide };
        let scale = 1.0 / (c.head_dim as f32).sqrt();
        let context = context(pass.batch, pass.layer, owners, p.shape.window);
        attend_rows(team, &shape, q, ldq, &context, scale, inner);
        if p.shape.output_gate {
            gate(team, inner, gates);
        }
        pass.clock.lap(Op::Attend);
        linear(pass, Op::Project, owners, p.o, p.o_bias, inner, quantized, mixed)
    }
}

/// What each row attends to.
pub(super) fn context<'a>(
    batch: &'a [Sequence<'_>],
    layer: usize,
    owners: &'a [Owner],
    window: Option<usize>,
) -> impl Fn(usize) -> Context<'a> + Sync {
    move |row| {
        let Owner { sequence, len } = owners[row];
        let (keys, values) = batch[sequence].cache.layer(layer);
        Context { keys, values, first: window.map_or(0, |w| len.saturating_sub(w)), len }
    }
}
