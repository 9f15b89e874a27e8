//! OLMoE: RMSNorm of q and k over the whole projection, optional clipping of q, k and v, routed experts in every layer.
use super::{Arch, Attention, Common, Field, Mixer, Mlp, QkNorm, count, flag, number, optional, routed, shape, text};
use crate::config::{RawConfig, refuse};
use crate::error::Result;

/// What `OlmoeConfig` of transformers takes for what config.json leaves out.
pub(super) const FIELDS: &[Field] = &[
    shape("vocab_size", 50_304),
    shape("hidden_size", 2048),
    shape("intermediate_size", 2048),
    shape("num_hidden_layers", 16),
    shape("num_attention_heads", 16),
    optional("num_key_value_heads"),
    optional("head_dim"),
    text("hidden_act", "silu"),
    count("max_position_embeddings", 4096),
    number("rms_norm_eps", 1e-5),
    number("rope_theta", 10_000.0),
    flag("tie_word_embeddings", false),
    flag("attention_bias", false),
    optional("clip_qkv"),
    count("num_experts_per_tok", 8),
    shape("num_experts", 64),
    flag("norm_topk_prob", false),
];

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let bias = config.flag("attention_bias")?;
    let clip = config.number_opt("clip_qkv")?.map(|c| c as f32);
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
    let renormalize = config.flag("norm_topk_prob")?;
    let moe = routed(config, "mlp", "num_experts", "intermediate_size", renormalize, None)?;
    let layers = common.layers;
    Ok(Arch::new(common, vec![mixer; layers], vec![Mlp::Moe(moe); layers]))
}
