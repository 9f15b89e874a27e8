//! Qwen2-MoE: Qwen2's attention, routed experts, and a shared expert weighed by a sigmoid gate.
use super::common::Slides;
use super::{Arch, Common, Field, Shared, count, flag, number, optional, qwen_layers, qwen2, routed, shape, text};
use crate::config::RawConfig;
use crate::error::Result;

/// What `Qwen2MoeConfig` of transformers takes for what config.json leaves out.
pub(super) const FIELDS: &[Field] = &[
    shape("vocab_size", 151_936),
    shape("hidden_size", 2048),
    shape("intermediate_size", 5632),
    shape("num_hidden_layers", 24),
    shape("num_attention_heads", 16),
    shape("num_key_value_heads", 16).or_null(),
    optional("head_dim"),
    text("hidden_act", "silu"),
    count("max_position_embeddings", 32_768),
    number("rms_norm_eps", 1e-6),
    number("rope_theta", 10_000.0),
    flag("tie_word_embeddings", false),
    flag("use_sliding_window", false),
    count("sliding_window", 4096).or_null(),
    count("max_window_layers", 28),
    optional("layer_types"),
    flag("qkv_bias", true),
    count("decoder_sparse_step", 1),
    optional("mlp_only_layers"),
    shape("moe_intermediate_size", 1408),
    shape("shared_expert_intermediate_size", 5632),
    count("num_experts_per_tok", 4),
    shape("num_experts", 60),
    flag("norm_topk_prob", false),
];

/// The shared expert of Qwen2-MoE and Qwen3-Next.
pub(super) fn shared(config: &RawConfig) -> Result<Option<Shared>> {
    let intermediate = config.size("shared_expert_intermediate_size")?;
    Ok(Some(Shared { intermediate, module: "shared_expert", gated: true }))
}

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixers = qwen2::mixers(config, common.layers, config.flag("qkv_bias")?, &Slides::EverySecondBelow)?;
    let renormalize = config.flag("norm_topk_prob")?;
    let moe = routed(config, "mlp", "num_experts", "moe_intermediate_size", renormalize, shared(config)?)?;
    let mlps = qwen_layers(config, common.layers, moe)?;
    Ok(Arch::new(common, mixers, mlps))
}
