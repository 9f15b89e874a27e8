//! Feed-forward parts: SwiGLU, and routed experts with or without a shared one.

use patchhost_kernels::rows::{add, swiglu};

use super::linear::linear;
use super::work::Work;
use super::{Model, Op, Pass};
use crate::hooks::HookError;
use crate::registry::MlpParams;

impl Model {
    pub(super) fn mlp(&self, pass: &Pass<'_, '_>, p: &MlpParams, work: &mut Work) -> Result<(), HookError> {
        let team = pass.team;
        match p {
            MlpParams::Dense { gate_up, gate_up_bias, down, down_bias } => {
                let Work { owners, normed, mixed, quantized, wide, inner, .. } = work;
                linear(pass, Op::Mlp, owners, *gate_up, *gate_up_bias, normed, quantized, wide)?;
                inner.resize(wide.len() / 2, 0.0);
                swiglu(team, wide, inner.len() / owners.len().max(1), false, inner);
                pass.clock.lap(Op::Gate);
                linear(pass, Op::Mlp, owners, *down, *down_bias, inner, quantized, mixed)
            }
            MlpParams::Moe { router, bias, w13, w2, shared, moe } => {
                let Work { owners, normed, quantized, experts, .. } = &mut *work;
                linear(pass, Op::Route, owners, *router, None, normed, quantized, &mut experts.router)?;
                self.experts(pass, *w13, *w2, *bias, moe, work)?;
                let Some(shared) = shared else { return Ok(()) };
                let Work { owners, normed, mixed, quantized, wide, inner, gate, q, .. } = work;
                linear(pass, Op::Mlp, owners, shared.gate_up, None, normed, quantized, wide)?;
                inner.resize(wide.len() / 2, 0.0);
                swiglu(team, wide, inner.len() / owners.len().max(1), false, inner);
                pass.clock.lap(Op::Gate);
                linear(pass, Op::Mlp, owners, shared.down, None, inner, quantized, q)?;
                if let Some(param) = shared.gate {
                    linear(pass, Op::Mlp, owners, param, None, normed, quantized, gate)?;
                    let hidden = q.len() / owners.len().max(1);
                    for (row, gate) in q.chunks_exact_mut(hidden.max(1)).zip(gate.iter()) {
                        let weight = 1.0 / (1.0 + (-gate).exp());
                        row.iter_mut().for_each(|x| *x *= weight);
                    }
                }
                add(team, mixed, q);
                pass.clock.lap(Op::Gate);
                Ok(())
            }
        }
    }
}
