//! The text decoder of Qwen3-VL-MoE: Qwen3-MoE under `model.language_model`. For text alone its three-axis rotary
//! embedding is the plain one. The vision tower is not loaded.
use super::{Arch, Common, Field, Names, count, flag, number, optional, qwen3_moe, shape, text};
use crate::config::RawConfig;
use crate::error::Result;

/// What `Qwen3VLMoeTextConfig` of transformers takes for what config.json leaves out.
pub(super) const FIELDS: &[Field] = &[
    shape("vocab_size", 151_936),
    shape("hidden_size", 2048),
    shape("intermediate_size", 5632),
    shape("num_hidden_layers", 24),
    shape("num_attention_heads", 16),
    shape("num_key_value_heads", 16).or_null(),
    optional("head_dim"),
    text("hidden_act", "silu"),
    count("max_position_embeddings", 128_000),
    number("rms_norm_eps", 1e-6),
    number("rope_theta", 500_000.0),
    flag("tie_word_embeddings", true),
    flag("attention_bias", false),
    count("decoder_sparse_step", 1),
    optional("mlp_only_layers"),
    shape("moe_intermediate_size", 1408),
    count("num_experts_per_tok", 4),
    shape("num_experts", 60),
];

pub(super) fn declare(config: &RawConfig, mut common: Common) -> Result<Arch> {
    // The head belongs to the wrapper: its word about tying counts, which is false where it says none.
    common.tied = config.wrapper_tied()?.unwrap_or(false);
    // Its transformers class has no window and always renormalizes, whatever the config says.
    let mut arch = qwen3_moe::decoder(config, common, None, true)?;
    arch.names = Names { decoder: "model.language_model", head: "lm_head" };
    Ok(arch.ignoring("model.visual.", "vision tower; this runtime runs the text decoder"))
}
