//! Qwen3-Next: gated DeltaNet in most layers, gated attention with partial rotary embedding in the others, routed
//! experts with a gated shared one; every RMSNorm multiplies by 1 + w (but the gated one inside the DeltaNet).
use super::common::unknown_layer_type;
use super::{
    Arch, Attention, Common, DeltaNet, Field, Mixer, QkNorm, count, flag, number, optional, qwen_layers, qwen2_moe,
    routed, shape, text,
};
use crate::config::{RawConfig, refuse};
use crate::error::Result;

/// What `Qwen3NextConfig` of transformers takes for what config.json leaves out.
pub(super) const FIELDS: &[Field] = &[
    shape("vocab_size", 151_936),
    shape("hidden_size", 2048),
    shape("intermediate_size", 5632),
    shape("num_hidden_layers", 48),
    shape("num_attention_heads", 16),
    shape("num_key_value_heads", 2),
    shape("head_dim", 256),
    text("hidden_act", "silu"),
    count("max_position_embeddings", 32_768),
    number("rms_norm_eps", 1e-6),
    number("rope_theta", 10_000.0),
    flag("tie_word_embeddings", false),
    number("partial_rotary_factor", 0.25),
    flag("attention_bias", false),
    optional("layer_types"),
    count("full_attention_interval", 4),
    shape("linear_conv_kernel_dim", 4),
    shape("linear_key_head_dim", 128),
    shape("linear_value_head_dim", 128),
    shape("linear_num_key_heads", 16),
    shape("linear_num_value_heads", 32),
    count("decoder_sparse_step", 1),
    optional("mlp_only_layers"),
    shape("moe_intermediate_size", 512),
    shape("shared_expert_intermediate_size", 512),
    count("num_experts_per_tok", 10),
    shape("num_experts", 512),
    flag("norm_topk_prob", true),
];

pub(super) fn declare(config: &RawConfig, mut common: Common) -> Result<Arch> {
    common.norm_plus_one = true;
    let bias = config.flag("attention_bias")?;
    let attention =
        Attention { qkv_bias: bias, o_bias: bias, qk_norm: QkNorm::Head, output_gate: true, ..Attention::default() };
    let delta = DeltaNet {
        key_heads: config.size("linear_num_key_heads")?,
        value_heads: config.size("linear_num_value_heads")?,
        key_dim: config.size("linear_key_head_dim")?,
        value_dim: config.size("linear_value_head_dim")?,
        kernel: config.size("linear_conv_kernel_dim")?,
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
    let interval = config.size("full_attention_interval")?;
    let full = |i: usize| match types.get(i).map(String::as_str) {
        Some("full_attention") => Ok(true),
        Some("linear_attention") => Ok(false),
        Some(other) => Err(unknown_layer_type(i, other, "linear_attention")),
        None => Ok((i + 1).is_multiple_of(interval)),
    };
    let mixers = (0..common.layers)
        .map(|i| Ok(if full(i)? { Mixer::Attention(attention) } else { Mixer::DeltaNet(delta) }))
        .collect::<Result<Vec<_>>>()?;
    let renormalize = config.flag("norm_topk_prob")?;
    let moe = routed(config, "mlp", "num_experts", "moe_intermediate_size", renormalize, qwen2_moe::shared(config)?)?;
    let mlps = qwen_layers(config, common.layers, moe)?;
    Ok(Arch::new(common, mixers, mlps).ignoring("mtp.", "multi-token prediction; the main model does not use it"))
}
