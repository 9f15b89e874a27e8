//! DeepSeek-V3 and R1, Kimi-K2: latent attention; sigmoid router whose choice a bias corrects, within the best groups;
//! shared experts; the first layers are dense. Multi-token-prediction layers stand behind the last and are not loaded.
use super::deepseek_v2::{latent, layers, shared};
use super::{Arch, Common, Field, GroupScore, Groups, Scoring, count, flag, number, routed, shape, text};
use crate::config::{RawConfig, refuse};
use crate::error::Result;

/// What `DeepseekV3Config` of transformers takes for what config.json leaves out.
pub(super) const FIELDS: &[Field] = &[
    shape("vocab_size", 129_280),
    shape("hidden_size", 7168),
    shape("intermediate_size", 18_432),
    shape("num_hidden_layers", 61),
    shape("num_attention_heads", 128),
    shape("num_key_value_heads", 128).or_null(),
    text("hidden_act", "silu"),
    count("max_position_embeddings", 4096),
    number("rms_norm_eps", 1e-6),
    number("rope_theta", 10_000.0),
    flag("tie_word_embeddings", false),
    flag("rope_interleave", true).or_null(),
    flag("attention_bias", false),
    shape("q_lora_rank", 1536).or_null(),
    shape("kv_lora_rank", 512),
    shape("qk_nope_head_dim", 128),
    shape("qk_rope_head_dim", 64),
    shape("v_head_dim", 128).or_null(),
    number("first_k_dense_replace", 3.0).or_null(),
    count("moe_layer_freq", 1),
    shape("moe_intermediate_size", 2048),
    shape("n_routed_experts", 256),
    shape("n_shared_experts", 1).or_null(),
    count("num_experts_per_tok", 8).or_null(),
    count("n_group", 8).or_null(),
    count("topk_group", 4).or_null(),
    number("routed_scaling_factor", 2.5),
    flag("norm_topk_prob", true).or_null(),
    number("num_nextn_predict_layers", 1.0),
];

/// Other names of its fields.
pub(super) const ALIASES: &[(&str, &str)] =
    &[("num_local_experts", "n_routed_experts"), ("num_mtp_layers", "num_nextn_predict_layers")];

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixer = latent(config, config.flag("rope_interleave")?)?;
    let renormalize = config.flag("norm_topk_prob")?;
    let mut moe = routed(config, "mlp", "n_routed_experts", "moe_intermediate_size", renormalize, shared(config)?)?;
    if let Some(method) = config.get("topk_method").filter(|m| m.as_str() != Some("noaux_tc")) {
        return Err(refuse("config.json", format!("`topk_method` is {method}; DeepSeek-V3's is noaux_tc")));
    }
    if let Some(scoring) = config.get("scoring_func").filter(|m| m.as_str() != Some("sigmoid")) {
        return Err(refuse("config.json", format!("`scoring_func` is {scoring}; DeepSeek-V3's is sigmoid")));
    }
    moe.scoring = Scoring::SigmoidWithBias;
    moe.groups = Groups::read(config, &moe, GroupScore::TopTwo)?;
    moe.scale = config.number("routed_scaling_factor")? as f32;
    let mlps = layers(config, common.layers, moe, false)?;
    let count = common.layers;
    let mut arch = Arch::new(common, vec![mixer; count], mlps);
    let extra = config.number("num_nextn_predict_layers")?;
    for i in 0..extra.clamp(0.0, 16.0) as usize {
        let prefix = format!("model.layers.{}.", count + i);
        arch = arch.ignoring(prefix, "multi-token prediction layer; the main model does not use it");
    }
    Ok(arch)
}
