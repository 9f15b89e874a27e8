//! OLMoE: RMSNorm of q and k over the whole projection, optional clipping of q, k and v, routed experts in every layer.
use super::{Arch, Attention, Common, Mixer, Mlp, QkNorm, routed};
use crate::config::{RawConfig, refuse};
use crate::error::Result;

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let bias = config.flag("attention_bias", false)?;
    let clip = config.number("clip_qkv")?.map(|c| c as f32);
    if clip.is_some_and(|c| c <= 0.0) {
        return Err(refuse("config.json", "`clip_qkv` must be above 0".to_string()));
    }
    let mixer = Mixer::Attention(Attention {
        qkv_bias: bias,
        o_bias: bias,
        qk_norm: QkNorm::Full,
        clip,
        ..Attention::default()
    });
    let moe = routed(config, "mlp", &["intermediate_size"], config.flag("norm_topk_prob", false)?, None)?;
    let layers = common.layers;
    Ok(Arch::new(common, vec![mixer; layers], vec![Mlp::Moe(moe); layers]))
}
