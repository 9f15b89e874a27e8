//! Qwen3: RMSNorm of q and k per head, explicit head_dim.
use super::common::{Slides, qwen_windows, windowed};
use super::{Arch, Attention, Common, Field, Mixer, QkNorm, count, flag, number, optional, shape, text};
use crate::config::RawConfig;
use crate::error::Result;

/// What `Qwen3Config` of transformers takes for what config.json leaves out.
pub(super) const FIELDS: &[Field] = &[
    shape("vocab_size", 151_936),
    shape("hidden_size", 4096),
    shape("intermediate_size", 22_016),
    shape("num_hidden_layers", 32),
    shape("num_attention_heads", 32),
    shape("num_key_value_heads", 32).or_null(),
    shape("head_dim", 128),
    text("hidden_act", "silu"),
    count("max_position_embeddings", 32_768),
    number("rms_norm_eps", 1e-6),
    number("rope_theta", 10_000.0),
    flag("tie_word_embeddings", false),
    flag("attention_bias", false),
    flag("use_sliding_window", false),
    count("sliding_window", 4096).or_null(),
    count("max_window_layers", 28),
    optional("layer_types"),
];

/// Its attention, one per layer: each with its window.
pub(super) fn mixers(config: &RawConfig, windows: Vec<Option<usize>>) -> Result<Vec<Mixer>> {
    let bias = config.flag("attention_bias")?;
    Ok(windowed(windows, |window| {
        let attention =
            Attention { qkv_bias: bias, o_bias: bias, qk_norm: QkNorm::Head, window, ..Attention::default() };
        Mixer::Attention(attention)
    }))
}

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixers = mixers(config, qwen_windows(config, common.layers, &Slides::From)?)?;
    Ok(Arch::dense(common, mixers, config.size("intermediate_size")?, false))
}
