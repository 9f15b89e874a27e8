//! Qwen2: Llama with a bias on q, k and v.
use super::common::windowed;
use super::{Arch, Attention, Common, Mixer, qwen_windows};
use crate::config::RawConfig;
use crate::error::Result;

pub(super) fn mixers(config: &RawConfig, layers: usize, qkv_bias: bool) -> Result<Vec<Mixer>> {
    let windows = qwen_windows(config, layers)?;
    Ok(windowed(windows, |window| Mixer::Attention(Attention { qkv_bias, window, ..Attention::default() })))
}

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixers = mixers(config, common.layers, true)?;
    Ok(Arch::dense(common, mixers, config.size(&["intermediate_size"])?, false))
}
