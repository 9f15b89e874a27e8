//! Qwen2: Llama with a bias on q, k and v.
use super::{Arch, Attention, Common, qwen_window};
use crate::config::RawConfig;
use crate::error::Result;

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let window = qwen_window(config, common.layers)?;
    let attention = Attention { qkv_bias: true, window, ..Attention::default() };
    Ok(Arch::dense(common, attention, config.size(&["intermediate_size"])?, false))
}
