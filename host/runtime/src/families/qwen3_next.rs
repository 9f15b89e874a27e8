//! Qwen3-Next: gated DeltaNet in most layers, gated attention with partial rotary embedding in the others, routed
//! experts with a gated shared one; every RMSNorm multiplies by 1 + w (but the gated one inside the DeltaNet).
use super::{Arch, Attention, Common, DeltaNet, Mixer, QkNorm, qwen_layers, qwen2_moe, routed};
use crate::config::{RawConfig, refuse};
use crate::error::Result;

pub(super) fn declare(config: &RawConfig, mut common: Common) -> Result<Arch> {
    common.norm_plus_one = true;
    let bias = config.flag("attention_bias", false)?;
    let attention =
        Attention { qkv_bias: bias, o_bias: bias, qk_norm: QkNorm::Head, output_gate: true, ..Attention::default() };
    let delta = DeltaNet {
        key_heads: config.size(&["linear_num_key_heads"])?,
        value_heads: config.size(&["linear_num_value_heads"])?,
        key_dim: config.size(&["linear_key_head_dim"])?,
        value_dim: config.size(&["linear_value_head_dim"])?,
        kernel: config.size(&["linear_conv_kernel_dim"])?,
    };
    if !delta.value_heads.is_multiple_of(delta.key_heads) {
        return Err(refuse(
            "config.json",
            format!(
                "`linear_num_value_heads` {} is not a multiple of `linear_num_key_heads` {}",
                delta.value_heads, delta.key_heads
            ),
        ));
    }
    let types = config.texts("layer_types")?;
    let interval = config.size_opt(&["full_attention_interval"])?.unwrap_or(4);
    let full = |i: usize| match types.get(i).map(String::as_str) {
        Some("full_attention") => Ok(true),
        Some("linear_attention") => Ok(false),
        Some(other) => Err(refuse(
            "config.json",
            format!("`layer_types[{i}]` is `{other}`; known are full_attention and linear_attention"),
        )),
        None => Ok((i + 1).is_multiple_of(interval)),
    };
    let mixers = (0..common.layers)
        .map(|i| Ok(if full(i)? { Mixer::Attention(attention) } else { Mixer::DeltaNet(delta) }))
        .collect::<Result<Vec<_>>>()?;
    let renormalize = config.flag("norm_topk_prob", true)?;
    let moe = routed(config, "mlp", &["moe_intermediate_size"], renormalize, qwen2_moe::shared(config)?)?;
    let mlps = qwen_layers(config, common.layers, moe)?;
    Ok(Arch::new(common, mixers, mlps).ignoring("mtp.", "multi-token prediction; the main model does not use it"))
}
