//! Mixtral: Llama's attention, routed experts in every layer; the probabilities are always renormalized.
use super::{Arch, Attention, Common, Field, Mixer, Mlp, count, flag, number, optional, routed, shape, text};
use crate::config::RawConfig;
use crate::error::Result;

/// What `MixtralConfig` of transformers takes for what config.json leaves out.
pub(super) const FIELDS: &[Field] = &[
    shape("vocab_size", 32_000),
    shape("hidden_size", 4096),
    shape("intermediate_size", 14_336),
    shape("num_hidden_layers", 32),
    shape("num_attention_heads", 32),
    shape("num_key_value_heads", 8).or_null(),
    optional("head_dim"),
    text("hidden_act", "silu"),
    count("max_position_embeddings", 131_072),
    number("rms_norm_eps", 1e-5),
    number("rope_theta", 1_000_000.0),
    flag("tie_word_embeddings", false),
    optional("sliding_window"),
    count("num_experts_per_tok", 2),
    shape("num_local_experts", 8),
];

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixer = Mixer::Attention(Attention { window: config.size_opt("sliding_window")?, ..Attention::default() });
    let moe = routed(config, "block_sparse_moe", "num_local_experts", "intermediate_size", true, None)?;
    let layers = common.layers;
    Ok(Arch::new(common, vec![mixer; layers], vec![Mlp::Moe(moe); layers]))
}
