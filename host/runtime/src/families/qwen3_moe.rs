//! Qwen3-MoE: Qwen3's attention, routed experts, no shared expert; the probabilities are renormalized if
//! `norm_topk_prob` says so.
use super::{Arch, Common, Field, count, flag, number, optional, qwen_layers, qwen3, routed, shape, text};
use crate::config::RawConfig;
use crate::error::Result;

/// What `Qwen3MoeConfig` of transformers takes for what config.json leaves out.
pub(super) const FIELDS: &[Field] = &[
    shape("vocab_size", 151_936),
    shape("hidden_size", 2048),
    shape("intermediate_size", 6144),
    shape("num_hidden_layers", 24),
    shape("num_attention_heads", 32),
    shape("num_key_value_heads", 4),
    optional("head_dim"),
    text("hidden_act", "silu"),
    count("max_position_embeddings", 32_768),
    number("rms_norm_eps", 1e-6),
    number("rope_theta", 10_000.0),
    flag("tie_word_embeddings", false),
    flag("attention_bias", false),
    flag("use_sliding_window", false),
    count("sliding_window", 4096).or_null(),
    count("decoder_sparse_step", 1),
    optional("mlp_only_layers"),
    shape("moe_intermediate_size", 768),
    count("num_experts_per_tok", 8),
    shape("num_experts", 128),
    flag("norm_topk_prob", false),
];

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    // Where it is switched on, every layer attends to the window.
    let window = if config.flag("use_sliding_window")? { config.size_opt("sliding_window")? } else { None };
    decoder(config, common, window, config.flag("norm_topk_prob")?)
}

/// The decoder of Qwen3-MoE and Qwen3-VL-MoE.
pub(super) fn decoder(config: &RawConfig, common: Common, window: Option<usize>, renormalize: bool) -> Result<Arch> {
    let mixers = qwen3::mixers(config, vec![window; common.layers])?;
    let moe = routed(config, "mlp", "num_experts", "moe_intermediate_size", renormalize, None)?;
    let mlps = qwen_layers(config, common.layers, moe)?;
    Ok(Arch::new(common, mixers, mlps))
}
