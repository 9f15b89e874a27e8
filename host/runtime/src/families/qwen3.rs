//! Qwen3: RMSNorm of q and k per head, explicit head_dim.
use super::common::windowed;
use super::{Arch, Attention, Common, Mixer, QkNorm, qwen_windows};
use crate::config::RawConfig;
use crate::error::Result;

pub(super) fn mixers(config: &RawConfig, layers: usize) -> Result<Vec<Mixer>> {
    let bias = config.flag("attention_bias", false)?;
    let windows = qwen_windows(config, layers)?;
    Ok(windowed(windows, |window| {
        let attention =
            Attention { qkv_bias: bias, o_bias: bias, qk_norm: QkNorm::Head, window, ..Attention::default() };
        Mixer::Attention(attention)
    }))
}

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixers = mixers(config, common.layers)?;
    Ok(Arch::dense(common, mixers, config.size(&["intermediate_size"])?, false))
}
