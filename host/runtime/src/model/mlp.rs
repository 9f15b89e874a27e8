//! Feed-forward parts: SwiGLU, and routed experts with or without a shared one.

use candle_core::Tensor;
use candle_nn::ops::{sigmoid, silu};

use super::{Model, Step};
use crate::error::Result;
use crate::moe::MoeOp;
use crate::registry::MlpParams;

impl Model {
    pub(super) fn mlp(&self, step: &Step<'_, '_, '_>, p: &MlpParams, x: &Tensor) -> Result<Tensor> {
        match p {
            MlpParams::Dense { gate_up, gate_up_bias, down, down_bias } => {
                let gated = swiglu(&step.linear(*gate_up, *gate_up_bias, x)?)?;
                step.linear(*down, *down_bias, &gated)
            }
            MlpParams::Moe { router, bias, w13, w2, shared, moe } => {
                let router_logits = step.linear(*router, None, x)?;
                let bias = bias.map(|b| step.weights.vector(b)).transpose()?.map(Tensor::to_vec1).transpose()?;
                let op = MoeOp { weights: step.weights, w13: *w13, w2: *w2, bias, moe, pass: step.pass };
                let routed = x.apply_op2_no_bwd(&router_logits, &op)?;
                let Some(shared) = shared else { return Ok(routed) };
                let gated = swiglu(&step.linear(shared.gate_up, None, x)?)?;
                let out = step.linear(shared.down, None, &gated)?;
                Ok(match shared.gate {
                    Some(gate) => (routed + out.broadcast_mul(&sigmoid(&step.linear(gate, None, x)?)?)?)?,
                    None => (routed + out)?,
                })
            }
        }
    }
}

/// silu(gate) * up of [rows, 2 * width], gate first.
fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let width = gate_up.dim(1)? / 2;
    let gate = gate_up.narrow(1, 0, width)?.contiguous()?;
    let up = gate_up.narrow(1, width, width)?;
    Ok((silu(&gate)? * up)?)
}
