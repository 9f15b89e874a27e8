//! The text decoder of Qwen3-VL-MoE: Qwen3-MoE under `model.language_model`. For text alone its three-axis rotary
//! embedding is the plain one. The vision tower is not loaded.
use super::{Arch, Common, Names, qwen3_moe};
use crate::config::RawConfig;
use crate::error::Result;

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    // Its transformers class always renormalizes, whatever the config says.
    let mut arch = qwen3_moe::declare(config, common)?;
    for mlp in &mut arch.mlps {
        if let super::Mlp::Moe(moe) = mlp {
            moe.renormalize = true;
        }
    }
    arch.names = Names { decoder: "model.language_model", head: "lm_head" };
    Ok(arch.ignoring("model.visual.", "vision tower; this runtime runs the text decoder"))
}
