//! DeepSeek-V2: latent attention (with or without a low-rank query), softmax router, greedy or within the best groups.
use super::{Arch, Common, GroupScore, Groups, Latent, Mixer, Mlp, Moe, Shared, routed};
use crate::config::{RawConfig, refuse};
use crate::error::Result;

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixer = latent(config, true)?;
    // transformers never renormalizes here, whatever `norm_topk_prob` says; published configs say false.
    let mut moe = routed(config, "mlp", &["moe_intermediate_size"], false, shared(config)?)?;
    let method = config.get("topk_method").and_then(|m| m.as_str()).unwrap_or("greedy");
    moe.groups = match method {
        "greedy" => None,
        "group_limited_greedy" => Groups::read(config, &moe, GroupScore::Max)?,
        other => {
            return Err(refuse(
                "config.json",
                format!("`topk_method` is `{other}`; DeepSeek-V2 has greedy and group_limited_greedy"),
            ));
        }
    };
    moe.scale = config.number("routed_scaling_factor")?.unwrap_or(1.0) as f32;
    let mlps = layers(config, common.layers, moe)?;
    let count = common.layers;
    Ok(Arch::new(common, vec![mixer; count], mlps))
}

/// The latent attention of a DeepSeek config.
pub(super) fn latent(config: &RawConfig, interleaved: bool) -> Result<Mixer> {
    Ok(Mixer::Latent(Latent {
        q_rank: config.size_opt(&["q_lora_rank"])?,
        kv_rank: config.size(&["kv_lora_rank"])?,
        nope: config.size(&["qk_nope_head_dim"])?,
        rope: config.size(&["qk_rope_head_dim"])?,
        value: config.size(&["v_head_dim"])?,
        bias: config.flag("attention_bias", false)?,
        interleaved,
    }))
}

/// The shared experts, which stand in the checkpoint as one of their summed width.
pub(super) fn shared(config: &RawConfig) -> Result<Option<Shared>> {
    let count = config.number("n_shared_experts")?.unwrap_or(0.0);
    if !(0.0..=1024.0).contains(&count) {
        return Err(refuse("config.json", format!("`n_shared_experts` is {count}; it must be from 0 to 1024")));
    }
    let intermediate = config.size(&["moe_intermediate_size"])? * count as usize;
    Ok((intermediate > 0).then_some(Shared { intermediate, module: "shared_experts", gated: false }))
}

/// Dense first layers, then every `moe_layer_freq`-th sparse.
pub(super) fn layers(config: &RawConfig, layers: usize, moe: Moe) -> Result<Vec<Mlp>> {
    let first = config.number("first_k_dense_replace")?.unwrap_or(0.0);
    let every = config.size_opt(&["moe_layer_freq"])?.unwrap_or(1);
    let dense =
        Mlp::Dense { intermediate: config.size(&["intermediate_size"])?, bias: config.flag("mlp_bias", false)? };
    let sparse = |i: usize| i as f64 >= first && i.is_multiple_of(every);
    Ok((0..layers).map(|i| if sparse(i) { Mlp::Moe(moe) } else { dense }).collect())
}

impl Groups {
    /// `n_group` and `topk_group`; `None` where there is one group.
    pub(super) fn read(config: &RawConfig, moe: &Moe, score: GroupScore) -> Result<Option<Self>> {
        let count = config.size_opt(&["n_group"])?.unwrap_or(1);
        let chosen = config.size_opt(&["topk_group"])?.unwrap_or(count);
        if count == 1 {
            return Ok(None);
        }
        let size = moe.experts / count;
        let least = if score == GroupScore::TopTwo { 2 } else { 1 };
        if !moe.experts.is_multiple_of(count) || size < least || chosen > count || chosen * size < moe.top_k {
            return Err(refuse(
                "config.json",
                format!(
                    "`n_group` {count} with `topk_group` {chosen} does not fit {} experts, {} per token",
                    moe.experts, moe.top_k
                ),
            ));
        }
        Ok(Some(Self { count, chosen, score }))
    }
}
