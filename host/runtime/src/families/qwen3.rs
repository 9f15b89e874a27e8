//! Qwen3: RMSNorm of q and k per head, explicit head_dim.
use super::{Arch, Attention, Common, qwen_window};
use crate::config::RawConfig;
use crate::error::Result;

pub(super) fn attention(config: &RawConfig, common: &Common) -> Result<Attention> {
    let bias = config.flag("attention_bias", false)?;
    let window = qwen_window(config, common.layers)?;
    Ok(Attention { qkv_bias: bias, o_bias: bias, qk_norm: true, window })
}

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let attention = attention(config, &common)?;
    Ok(Arch::dense(common, attention, config.size(&["intermediate_size"])?, false))
}
