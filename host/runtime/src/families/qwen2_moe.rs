//! Qwen2-MoE: Qwen2's attention, routed experts, and a shared expert weighed by a sigmoid gate.
use super::{Arch, Common, Shared, qwen_layers, qwen2, routed};
use crate::config::RawConfig;
use crate::error::Result;

/// The shared expert of Qwen2-MoE and Qwen3-Next.
pub(super) fn shared(config: &RawConfig) -> Result<Option<Shared>> {
    let width = config.size_opt(&["shared_expert_intermediate_size"])?;
    Ok(width.map(|intermediate| Shared { intermediate, module: "shared_expert", gated: true }))
}

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixers = qwen2::mixers(config, common.layers, config.flag("qkv_bias", true)?)?;
    let renormalize = config.flag("norm_topk_prob", false)?;
    let moe = routed(config, "mlp", &["moe_intermediate_size"], renormalize, shared(config)?)?;
    let mlps = qwen_layers(config, common.layers, moe)?;
    Ok(Arch::new(common, mixers, mlps))
}
