//! Qwen2-MoE: Qwen2's attention, routed experts, and a shared expert weighed by a sigmoid gate.
use super::{Arch, Attention, Common, qwen_layers, qwen_window, routed};
use crate::config::RawConfig;
use crate::error::Result;

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let qkv_bias = config.flag("qkv_bias", true)?;
    let attention = Attention { qkv_bias, window: qwen_window(config, common.layers)?, ..Attention::default() };
    let shared = config.size_opt(&["shared_expert_intermediate_size"])?;
    let moe = routed(config, "mlp", &["moe_intermediate_size"], config.flag("norm_topk_prob", false)?, shared)?;
    let mlps = qwen_layers(config, common.layers, moe)?;
    Ok(Arch::sparse(common, attention, mlps))
}
