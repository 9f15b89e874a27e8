//! Multi-head latent attention (DeepSeek). Keys and values are cached expanded, per head: on a CPU the latent form would
//! save memory and cost a projection of every position at each step.

use candle_core::Tensor;
use candle_nn::ops::rms_norm;

use super::{Model, Step, values};
use crate::error::Result;
use crate::families::Latent;
use crate::ops::AttentionOp;
use crate::registry::{LatentParams, QueryParams};

/// The norms inside latent attention have this epsilon, whatever config.json says (transformers, vLLM).
const EPS: f32 = 1e-6;

/// Keys and values share one width in the cache: the larger, padded with zeros, which change no sum.
pub(super) fn padded(l: &Latent) -> usize {
    (l.nope + l.rope).max(l.value)
}

impl Model {
    pub(super) fn attend_latent(&self, step: &mut Step<'_, '_, '_>, p: &LatentParams, x: &Tensor) -> Result<Tensor> {
        let (heads, l, w) = (self.common.heads, &p.shape, step.weights);
        let rows = x.dim(0)?;
        let width = padded(l);
        let q = match &p.query {
            QueryParams::Direct(q) => step.linear(*q, None, x)?,
            QueryParams::LowRank { a, a_bias, norm, b } => {
                let low = rms_norm(&step.linear(*a, *a_bias, x)?, w.vector(*norm)?, EPS)?;
                step.linear(*b, None, &low)?
            }
        };
        let q = q.reshape((rows, heads, l.nope + l.rope))?;
        let q_rope = self.rotated(step, l, &q.narrow(2, l.nope, l.rope)?.contiguous()?)?;

        let compressed = step.linear(p.kv_a, p.kv_a_bias, x)?;
        let k_rope = compressed.narrow(1, l.kv_rank, l.rope)?.contiguous()?.reshape((rows, 1, l.rope))?;
        let k_rope = self.rotated(step, l, &k_rope)?.broadcast_as((rows, heads, l.rope))?;
        let latent = compressed.narrow(1, 0, l.kv_rank)?.contiguous()?;
        let latent = rms_norm(&latent, w.vector(p.kv_a_norm)?, EPS)?;
        let kv = step.linear(p.kv_b, None, &latent)?.reshape((rows, heads, l.nope + l.value))?;

        let joined = |nope: &Tensor, rope: &Tensor| -> Result<Tensor> {
            pad(&Tensor::cat(&[&nope.narrow(2, 0, l.nope)?, rope], 2)?, width)
        };
        let (q, k) = (joined(&q, &q_rope)?, joined(&kv, &k_rope)?);
        let v = pad(&kv.narrow(2, l.nope, l.value)?, width)?;
        for (s, span) in step.batch.iter_mut().zip(step.spans) {
            s.cache.append(step.layer, &values(&k, span)?, &values(&v, span)?);
        }
        let op = AttentionOp {
            heads,
            kv_heads: heads,
            head_dim: width,
            scale: self.common.rope.softmax_factor() / ((l.nope + l.rope) as f32).sqrt(),
            window: None,
            spans: step.spans,
            caches: step.batch.iter().map(|s| s.cache.layer(step.layer)).collect(),
        };
        let attended = q.apply_op1_no_bwd(&op)?.reshape((rows, heads, width))?;
        let attended = attended.narrow(2, 0, l.value)?.contiguous()?.reshape((rows, heads * l.value))?;
        step.linear(p.o, p.o_bias, &attended)
    }

    fn rotated(&self, step: &Step<'_, '_, '_>, l: &Latent, x: &Tensor) -> Result<Tensor> {
        if l.interleaved { step.rotary.neighbors(x) } else { step.rotary.halves(x) }
    }
}

/// x [rows, heads, n] as [rows, heads x width], each head padded with zeros.
fn pad(x: &Tensor, width: usize) -> Result<Tensor> {
    let (rows, heads, n) = x.dims3()?;
    Ok(x.pad_with_zeros(2, 0, width - n)?.contiguous()?.reshape((rows, heads * width))?)
}
