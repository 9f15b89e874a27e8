//! Grouped-query attention.

use candle_core::Tensor;
use candle_nn::ops::{rms_norm, sigmoid};

use super::{Model, Step, values};
use crate::error::Result;
use crate::families::QkNorm;
use crate::ops::AttentionOp;
use crate::registry::{AttentionParams, ParamId};

impl Model {
    pub(super) fn attend(&self, step: &mut Step<'_, '_, '_>, p: &AttentionParams, x: &Tensor) -> Result<Tensor> {
        let c = &self.common;
        let rows = x.dim(0)?;
        let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let qkv = step.linear(p.qkv, p.qkv_bias, x)?;
        // With an output gate every head of q_proj is followed by its gate.
        let (q, gate) = if p.shape.output_gate {
            let both = qkv.narrow(1, 0, 2 * q_width)?.contiguous()?.reshape((rows, c.heads, 2 * c.head_dim))?;
            let half = |i: usize| both.narrow(2, i * c.head_dim, c.head_dim)?.contiguous()?.reshape((rows, q_width));
            (half(0)?, Some(half(1)?))
        } else {
            (qkv.narrow(1, 0, q_width)?.contiguous()?, None)
        };
        let start = if p.shape.output_gate { 2 * q_width } else { q_width };
        let k = qkv.narrow(1, start, kv_width)?.contiguous()?;
        let v = self.clipped(p, qkv.narrow(1, start + kv_width, kv_width)?.contiguous()?)?;
        let q = self.heads(step, p, &q, c.heads, p.q_norm)?;
        let k = self.heads(step, p, &k, c.kv_heads, p.k_norm)?;
        for (s, span) in step.batch.iter_mut().zip(step.spans) {
            s.cache.append(step.layer, &values(&k, span)?, &values(&v, span)?);
        }
        let op = AttentionOp {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            scale: 1.0 / (c.head_dim as f32).sqrt(),
            window: p.shape.window,
            spans: step.spans,
            caches: step.batch.iter().map(|s| s.cache.layer(step.layer)).collect(),
        };
        let mut attended = q.apply_op1_no_bwd(&op)?;
        if let Some(gate) = gate {
            attended = (attended * sigmoid(&gate)?)?;
        }
        step.linear(p.o, p.o_bias, &attended)
    }

    /// Norm, clip and rotation of `n` heads of x [rows, n x head_dim].
    fn heads(
        &self,
        step: &Step<'_, '_, '_>,
        p: &AttentionParams,
        x: &Tensor,
        n: usize,
        norm: Option<ParamId>,
    ) -> Result<Tensor> {
        let c = &self.common;
        let rows = x.dim(0)?;
        let mut h = x.clone();
        if let Some(norm) = norm {
            let weight = step.weights.vector(norm)?;
            let by_head = p.shape.qk_norm == QkNorm::Head;
            h = if by_head { h.reshape((rows * n, c.head_dim))? } else { h };
            h = rms_norm(&h, weight, c.eps as f32)?;
        }
        let h = self.clipped(p, h)?.reshape((rows, n, c.head_dim))?;
        Ok(step.rotary.halves(&h)?.reshape((rows, n * c.head_dim))?)
    }

    fn clipped(&self, p: &AttentionParams, x: Tensor) -> Result<Tensor> {
        match p.shape.clip {
            Some(most) => Ok(x.clamp(-most, most)?),
            None => Ok(x),
        }
    }
}
