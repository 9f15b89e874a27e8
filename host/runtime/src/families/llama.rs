//! Llama: GQA without norms on q and k; optional biases.
use super::{Arch, Attention, Common, Mixer};
use crate::config::RawConfig;
use crate::error::Result;

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let bias = config.flag("attention_bias", false)?;
    let mixer = Mixer::Attention(Attention { qkv_bias: bias, o_bias: bias, ..Attention::default() });
    let mixers = vec![mixer; common.layers];
    Ok(Arch::dense(common, mixers, config.size(&["intermediate_size"])?, config.flag("mlp_bias", false)?))
}
