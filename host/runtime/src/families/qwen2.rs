//! Qwen2: Llama with a bias on q, k and v.
use super::common::{Slides, qwen_windows, windowed};
use super::{Arch, Attention, Common, Field, Mixer, count, flag, number, optional, shape, text};
use crate::config::RawConfig;
use crate::error::Result;

/// What `Qwen2Config` of transformers takes for what config.json leaves out.
pub(super) const FIELDS: &[Field] = &[
    shape("vocab_size", 151_936),
    shape("hidden_size", 4096),
    shape("intermediate_size", 22_016),
    shape("num_hidden_layers", 32),
    shape("num_attention_heads", 32),
    shape("num_key_value_heads", 32).or_null(),
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
];

pub(super) fn mixers(config: &RawConfig, layers: usize, qkv_bias: bool, slides: &Slides) -> Result<Vec<Mixer>> {
    let windows = qwen_windows(config, layers, slides)?;
    Ok(windowed(windows, |window| Mixer::Attention(Attention { qkv_bias, window, ..Attention::default() })))
}

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixers = mixers(config, common.layers, true, &Slides::From)?;
    Ok(Arch::dense(common, mixers, config.size("intermediate_size")?, false))
}
