//! Llama: GQA without norms on q and k; optional biases.
use super::{Arch, Attention, Common, Field, Mixer, count, flag, number, optional, shape, text};
use crate::config::RawConfig;
use crate::error::Result;

/// What `LlamaConfig` of transformers takes for what config.json leaves out.
pub(super) const FIELDS: &[Field] = &[
    shape("vocab_size", 32_000),
    shape("hidden_size", 4096),
    shape("intermediate_size", 11_008),
    shape("num_hidden_layers", 32),
    shape("num_attention_heads", 32),
    optional("num_key_value_heads"),
    optional("head_dim"),
    text("hidden_act", "silu"),
    count("max_position_embeddings", 2048),
    number("rms_norm_eps", 1e-6),
    number("rope_theta", 10_000.0),
    flag("tie_word_embeddings", false),
    flag("attention_bias", false),
    flag("mlp_bias", false),
];

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let bias = config.flag("attention_bias")?;
    let mixer = Mixer::Attention(Attention { qkv_bias: bias, o_bias: bias, ..Attention::default() });
    let mixers = vec![mixer; common.layers];
    Ok(Arch::dense(common, mixers, config.size("intermediate_size")?, config.flag("mlp_bias")?))
}
