//! Causal grouped-query attention.

use candle_core::{Tensor, Var};
use patchhost_runtime::families::{Attention as Shape, Common, QkNorm};
use patchhost_runtime::hooks::Slot;

use super::blocks::{Norm, linear, rotate, softmax};
use super::{Batch, Source};
use crate::train::error::Result;

/// One projection: weight and bias.
struct Projection(Var, Option<Var>);

impl Projection {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.0, self.1.as_ref())
    }
}

pub(super) struct Attention {
    shape: Shape,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
}

impl Attention {
    pub(super) fn new(source: &Source<'_>, module: &str, c: &Common, shape: Shape) -> Result<Self> {
        let qkv = |slot: Slot| -> Result<Projection> {
            let weight = source.part(&format!("{module}.qkv_proj.weight"), 0, slot)?;
            let bias = shape.qkv_bias.then(|| source.part(&format!("{module}.qkv_proj.bias"), 0, slot)).transpose()?;
            Ok(Projection(weight, bias))
        };
        let norm = |leaf: &str| -> Result<Option<Norm>> {
            match shape.qk_norm {
                QkNorm::None => Ok(None),
                _ => Ok(Some(Norm { weight: source.whole(&format!("{module}.{leaf}.weight"))?, eps: c.eps })),
            }
        };
        let o_bias = shape.o_bias.then(|| source.whole(&format!("{module}.o_proj.bias"))).transpose()?;
        Ok(Self {
            shape,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            q: qkv(Slot::Q)?,
            k: qkv(Slot::K)?,
            v: qkv(Slot::V)?,
            o: Projection(source.whole(&format!("{module}.o_proj.weight"))?, o_bias),
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
        })
    }

    /// x [rows, hidden] to [rows, hidden].
    pub(super) fn apply(&self, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        let (b, t) = (batch.len(), batch.longest());
        let (kv, group, d) = (self.kv_heads, self.heads / self.kv_heads, self.head_dim);
        let q = self.heads(&self.q.apply(x)?, self.heads, self.q_norm.as_ref(), batch)?;
        let k = self.heads(&self.k.apply(x)?, kv, self.k_norm.as_ref(), batch)?;
        let v = self.clipped(self.v.apply(x)?)?;
        // The query heads of a group share keys and values: they are more rows of one product.
        let q = batch.padded(&q)?.reshape((b, t, kv, group, d))?.permute((0, 2, 3, 1, 4))?;
        let q = q.contiguous()?.reshape((b, kv, group * t, d))?;
        let split = |x: &Tensor| -> Result<Tensor> {
            Ok(batch.padded(x)?.reshape((b, t, kv, d))?.transpose(1, 2)?.contiguous()?)
        };
        let (k, v) = (split(&k)?, split(&v)?);
        let scores = (q.matmul(&k.t()?)? / (d as f64).sqrt())?.reshape((b, kv, group, t, t))?;
        let shares = softmax(&scores.broadcast_add(&batch.causal(self.shape.window)?)?)?;
        let mixed = shares.reshape((b, kv, group * t, t))?.matmul(&v)?.reshape((b, kv, group, t, d))?;
        let mixed = mixed.permute((0, 3, 1, 2, 4))?.contiguous()?.reshape((b * t, kv * group * d))?;
        self.o.apply(&batch.unpadded(&mixed)?)
    }

    /// Norm, clip and rotation of `n` heads of x [rows, n x head_dim].
    fn heads(&self, x: &Tensor, n: usize, norm: Option<&Norm>, batch: &Batch) -> Result<Tensor> {
        let shape = (x.dim(0)?, n, self.head_dim);
        let x = match norm {
            Some(norm) if self.shape.qk_norm == QkNorm::Full => norm.apply(x)?.reshape(shape)?,
            Some(norm) => norm.apply(&x.reshape(shape)?)?,
            None => x.reshape(shape)?,
        };
        let (cos, sin) = batch.cos_sin();
        Ok(rotate(&self.clipped(x)?, cos, sin)?.flatten_from(1)?)
    }

    fn clipped(&self, x: Tensor) -> Result<Tensor> {
        match self.shape.clip {
            Some(most) => Ok(x.clamp(-most, most)?),
            None => Ok(x),
        }
    }
}
