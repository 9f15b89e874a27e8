//! Mixtral: Llama's attention, routed experts in every layer; the probabilities are always renormalized.
use super::{Arch, Attention, Common, Mixer, Mlp, routed};
use crate::config::RawConfig;
use crate::error::Result;

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixer = Mixer::Attention(Attention { window: config.size_opt(&["sliding_window"])?, ..Attention::default() });
    let moe = routed(config, "block_sparse_moe", &["intermediate_size"], true, None)?;
    let layers = common.layers;
    Ok(Arch::new(common, vec![mixer; layers], vec![Mlp::Moe(moe); layers]))
}
