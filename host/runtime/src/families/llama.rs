//! Llama: GQA without norms on q and k; optional biases.
use super::{Arch, Attention, Common};
use crate::config::RawConfig;
use crate::error::Result;

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let bias = config.flag("attention_bias", false)?;
    let attention = Attention { qkv_bias: bias, o_bias: bias, ..Attention::default() };
    Ok(Arch::dense(common, attention, config.size(&["intermediate_size"])?, config.flag("mlp_bias", false)?))
}
