//! The small operations that everything is made of. candle_nn's fused norm, rotation and softmax have no backward pass,
//! so they are written out.

use candle_core::{D, Tensor, Var};

use crate::train::error::Result;

/// x [rows, in] times weight [out, in], transposed, plus bias [out].
pub(super) fn linear(x: &Tensor, weight: &Var, bias: Option<&Var>) -> Result<Tensor> {
    let out = x.matmul(&weight.t()?)?;
    Ok(match bias {
        Some(bias) => out.broadcast_add(bias)?,
        None => out,
    })
}

/// RMSNorm over the last dimension.
pub(super) struct Norm {
    pub(super) weight: Var,
    pub(super) eps: f64,
}

impl Norm {
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let width = x.dim(D::Minus1)? as f64;
        let scale = ((x.sqr()?.sum_keepdim(D::Minus1)? / width)? + self.eps)?.sqrt()?.recip()?;
        Ok(x.broadcast_mul(&scale)?.broadcast_mul(&self.weight)?)
    }
}

/// Softmax over the last dimension.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    // Subtracting a constant does not change the result, so the maximum needs no gradient.
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    Ok(shifted.broadcast_mul(&shifted.sum_keepdim(D::Minus1)?.recip()?)?)
}

/// Rotates the first dimensions of every head of x [rows, heads, width]; pairs are halves of them. cos and sin are
/// [rows, 1, half].
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (half, width) = (cos.dim(2)?, x.dim(2)?);
    let (first, second) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let mut parts = vec![
        (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?,
        (second.broadcast_mul(cos)? + first.broadcast_mul(sin)?)?,
    ];
    if 2 * half < width {
        parts.push(x.narrow(2, 2 * half, width - 2 * half)?);
    }
    Ok(Tensor::cat(&parts, 2)?)
}
