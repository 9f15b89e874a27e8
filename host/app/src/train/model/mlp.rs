//! Feed-forward parts: SwiGLU, and routed experts with or without a shared one.

use candle_core::{Tensor, Var};
use candle_nn::ops::sigmoid;
use patchhost_runtime::families::{Arch, Mlp as Shape, Moe, Scoring};
use patchhost_runtime::hooks::Slot;

use super::blocks::{linear, softmax};
use super::{Source, unsupported};
use crate::train::error::Result;

pub(super) enum Mlp {
    Dense(SwiGlu),
    Moe(Box<Routed>),
}

/// down(silu(gate x) * up x).
pub(super) struct SwiGlu {
    gate: (Var, Option<Var>),
    up: (Var, Option<Var>),
    down: (Var, Option<Var>),
}

impl SwiGlu {
    /// From a module with `gate_up_proj` and `down_proj`.
    fn new(source: &Source<'_>, module: &str, bias: bool) -> Result<Self> {
        let pair = |proj: &str, slot: Slot| -> Result<(Var, Option<Var>)> {
            let of = |leaf: &str| source.part(&format!("{module}.{proj}.{leaf}"), 0, slot);
            Ok((of("weight")?, bias.then(|| of("bias")).transpose()?))
        };
        Ok(Self {
            gate: pair("gate_up_proj", Slot::Gate)?,
            up: pair("gate_up_proj", Slot::Up)?,
            down: pair("down_proj", Slot::Whole)?,
        })
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let gate = linear(x, &self.gate.0, self.gate.1.as_ref())?.silu()?;
        let up = linear(x, &self.up.0, self.up.1.as_ref())?;
        linear(&(gate * up)?, &self.down.0, self.down.1.as_ref())
    }
}

/// Experts that a router chooses from.
pub(super) struct Routed {
    moe: Moe,
    router: Var,
    experts: Vec<SwiGlu>,
    shared: Option<SwiGlu>,
    /// Weighs the shared expert.
    shared_gate: Option<Var>,
}

impl Mlp {
    pub(super) fn new(source: &Source<'_>, layer: &str, arch: &Arch, shape: &Shape) -> Result<Self> {
        let moe = match *shape {
            Shape::Dense { bias, .. } => return Ok(Self::Dense(SwiGlu::new(source, &format!("{layer}.mlp"), bias)?)),
            Shape::Moe(moe) => moe,
        };
        if moe.scoring != Scoring::Softmax || moe.groups.is_some() {
            return Err(unsupported(arch, "its router is no plain softmax over all experts"));
        }
        let block = format!("{layer}.{}", moe.block);
        let expert = |e: usize| -> Result<SwiGlu> {
            let w13 = format!("{block}.experts.w13_weight");
            Ok(SwiGlu {
                gate: (source.part(&w13, e, Slot::W1)?, None),
                up: (source.part(&w13, e, Slot::W3)?, None),
                down: (source.part(&format!("{block}.experts.w2_weight"), e, Slot::W2)?, None),
            })
        };
        let (mut shared, mut shared_gate) = (None, None);
        if let Some(s) = moe.shared {
            let module = format!("{block}.{}", s.module);
            shared = Some(SwiGlu::new(source, &module, false)?);
            shared_gate = s.gated.then(|| source.whole(&format!("{module}_gate.weight"))).transpose()?;
        }
        Ok(Self::Moe(Box::new(Routed {
            moe,
            router: source.whole(&format!("{block}.gate.weight"))?,
            experts: (0..moe.experts).map(expert).collect::<Result<_>>()?,
            shared,
            shared_gate,
        })))
    }

    /// x [rows, hidden] to [rows, hidden].
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Mlp::Dense(dense) => dense.apply(x),
            Mlp::Moe(routed) => routed.apply(x),
        }
    }
}

impl Routed {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, k) = (x.dim(0)?, self.moe.top_k);
        let scores = softmax(&linear(x, &self.router, None)?)?;
        let chosen = choose(&scores, k)?;
        let ids = Tensor::from_slice(&chosen, (rows, k), x.device())?;
        // The choice has no gradient; the weights of the chosen have.
        let mut weights = scores.gather(&ids, 1)?;
        if self.moe.renormalize {
            weights = weights.broadcast_mul(&weights.sum_keepdim(1)?.recip()?)?;
        }
        if self.moe.scale != 1.0 {
            weights = (weights * f64::from(self.moe.scale))?;
        }
        let weights = weights.reshape((rows * k, 1))?;
        let mut out = x.zeros_like()?;
        for (e, expert) in self.experts.iter().enumerate() {
            let picks: Vec<u32> = (0..chosen.len() as u32).filter(|i| chosen[*i as usize] == e as u32).collect();
            if picks.is_empty() {
                continue;
            }
            let owners: Vec<u32> = picks.iter().map(|i| i / k as u32).collect();
            let (picks, owners) = (Tensor::new(picks, x.device())?, Tensor::new(owners, x.device())?);
            let made = expert.apply(&x.index_select(&owners, 0)?)?;
            out = out.index_add(&owners, &made.broadcast_mul(&weights.index_select(&picks, 0)?)?, 0)?;
        }
        let Some(shared) = &self.shared else { return Ok(out) };
        let made = shared.apply(x)?;
        Ok(match &self.shared_gate {
            Some(gate) => (out + made.broadcast_mul(&sigmoid(&linear(x, gate, None)?)?)?)?,
            None => (out + made)?,
        })
    }
}

/// The `k` best experts of each row, best first; the lower index wins a tie, as in the runtime.
fn choose(scores: &Tensor, k: usize) -> Result<Vec<u32>> {
    let mut chosen = Vec::new();
    for row in scores.detach().to_vec2::<f32>()? {
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
        order.truncate(k);
        chosen.extend(order);
    }
    Ok(chosen)
}
