//! Qwen3-MoE: Qwen3's attention, routed experts, no shared expert; the probabilities are renormalized if
//! `norm_topk_prob` says so.
use super::{Arch, Common, qwen_layers, qwen3, routed};
use crate::config::RawConfig;
use crate::error::Result;

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixers = qwen3::mixers(config, common.layers)?;
    let moe = routed(config, "mlp", &["moe_intermediate_size"], config.flag("norm_topk_prob", false)?, None)?;
    let mlps = qwen_layers(config, common.layers, moe)?;
    Ok(Arch::new(common, mixers, mlps))
}
