//! DeepSeek-V2: latent attention (with or without a low-rank query), softmax router, greedy or within the best groups.
use super::{
    Arch, Common, Field, GroupScore, Groups, Latent, Mixer, Mlp, Moe, Shared, count, flag, number, optional, routed,
    shape, text,
};
use crate::config::{RawConfig, refuse};
use crate::error::Result;

/// What `DeepseekV2Config` of transformers takes for what config.json leaves out.
pub(super) const FIELDS: &[Field] = &[
    shape("vocab_size", 102_400),
    shape("hidden_size", 4096),
    shape("intermediate_size", 11_008),
    shape("num_hidden_layers", 32),
    shape("num_attention_heads", 32),
    optional("num_key_value_heads"),
    text("hidden_act", "silu"),
    count("max_position_embeddings", 2048),
    number("rms_norm_eps", 1e-6),
    number("rope_theta", 10_000.0),
    flag("tie_word_embeddings", false),
    flag("attention_bias", false),
    flag("mlp_bias", false),
    shape("q_lora_rank", 1536).or_null(),
    shape("kv_lora_rank", 512),
    shape("qk_nope_head_dim", 128),
    shape("qk_rope_head_dim", 64),
    shape("v_head_dim", 128),
    number("first_k_dense_replace", 0.0),
    count("moe_layer_freq", 1),
    shape("moe_intermediate_size", 1407),
    shape("n_routed_experts", 64),
    shape("n_shared_experts", 2).or_null(),
    optional("num_experts_per_tok"),
    text("topk_method", "greedy").or_null(),
    optional("n_group"),
    optional("topk_group"),
    number("routed_scaling_factor", 1.0),
];

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixer = latent(config, true)?;
    // transformers never renormalizes here, whatever `norm_topk_prob` says; published configs say false.
    let mut moe = routed(config, "mlp", "n_routed_experts", "moe_intermediate_size", false, shared(config)?)?;
    moe.groups = match config.word("topk_method")? {
        Some("greedy") => None,
        Some("group_limited_greedy") => Groups::read(config, &moe, GroupScore::Max)?,
        other => {
            return Err(refuse(
                "config.json",
                format!(
                    "`topk_method` is `{}`; DeepSeek-V2 has greedy and group_limited_greedy",
                    other.unwrap_or("null")
                ),
            ));
        }
    };
    moe.scale = config.number("routed_scaling_factor")? as f32;
    let mlps = layers(config, common.layers, moe, config.flag("mlp_bias")?)?;
    let count = common.layers;
    Ok(Arch::new(common, vec![mixer; count], mlps))
}

/// The latent attention of a DeepSeek config.
pub(super) fn latent(config: &RawConfig, interleaved: bool) -> Result<Mixer> {
    Ok(Mixer::Latent(Latent {
        q_rank: config.size_opt("q_lora_rank")?,
        kv_rank: config.size("kv_lora_rank")?,
        nope: config.size("qk_nope_head_dim")?,
        rope: config.size("qk_rope_head_dim")?,
        value: config.size("v_head_dim")?,
        bias: config.flag("attention_bias")?,
        interleaved,
    }))
}

/// The shared experts, which stand in the checkpoint as one of their summed width.
pub(super) fn shared(config: &RawConfig) -> Result<Option<Shared>> {
    let count = config.number_opt("n_shared_experts")?.unwrap_or(0.0);
    if !(0.0..=1024.0).contains(&count) {
        return Err(refuse("config.json", format!("`n_shared_experts` is {count}; it must be from 0 to 1024")));
    }
    let intermediate = config.size("moe_intermediate_size")? * count as usize;
    Ok((intermediate > 0).then_some(Shared { intermediate, module: "shared_experts", gated: false }))
}

/// Dense first layers, then every `moe_layer_freq`-th sparse.
pub(super) fn layers(config: &RawConfig, layers: usize, moe: Moe, bias: bool) -> Result<Vec<Mlp>> {
    let first = config.number("first_k_dense_replace")?;
    let every = config.size("moe_layer_freq")?;
    let dense = Mlp::Dense { intermediate: config.size("intermediate_size")?, bias };
    let sparse = |i: usize| i as f64 >= first && i.is_multiple_of(every);
    Ok((0..layers).map(|i| if sparse(i) { Mlp::Moe(moe) } else { dense }).collect())
}

impl Groups {
    /// `n_group` and `topk_group`; `None` where there is one group.
    pub(super) fn read(config: &RawConfig, moe: &Moe, score: GroupScore) -> Result<Option<Self>> {
        let (count, chosen) = (config.size("n_group")?, config.size("topk_group")?);
        let size = moe.experts / count;
        let least = if score == GroupScore::TopTwo { 2 } else { 1 };
        if !moe.experts.is_multiple_of(count) || size < least || chosen > count || chosen * size < moe.top_k {
            return Err(refuse(
                "config.json",
                format!(
                    "`n_group` {count} with `topk_group` {chosen} does not fit `n_routed_experts` {}, `num_experts_per_tok` {}",
                    moe.experts, moe.top_k
                ),
            ));
        }
        Ok((count > 1).then_some(Self { count, chosen, score }))
    }
}
