//! DeepSeek-V3 and R1, Kimi-K2: latent attention; sigmoid router whose choice a bias corrects, within the best groups;
//! shared experts; the first layers are dense. Multi-token-prediction layers stand behind the last and are not loaded.
use super::deepseek_v2::{latent, layers, shared};
use super::{Arch, Common, GroupScore, Groups, Scoring, routed};
use crate::config::{RawConfig, refuse};
use crate::error::Result;

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mixer = latent(config, config.flag("rope_interleave", true)?)?;
    let renormalize = config.flag("norm_topk_prob", true)?;
    let mut moe = routed(config, "mlp", &["moe_intermediate_size"], renormalize, shared(config)?)?;
    if let Some(method) = config.get("topk_method").filter(|m| m.as_str() != Some("noaux_tc")) {
        return Err(refuse("config.json", format!("`topk_method` is {method}; DeepSeek-V3's is noaux_tc")));
    }
    if let Some(scoring) = config.get("scoring_func").filter(|m| m.as_str() != Some("sigmoid")) {
        return Err(refuse("config.json", format!("`scoring_func` is {scoring}; DeepSeek-V3's is sigmoid")));
    }
    moe.scoring = Scoring::SigmoidWithBias;
    moe.groups = Groups::read(config, &moe, GroupScore::TopTwo)?;
    moe.scale = config.number("routed_scaling_factor")?.unwrap_or(1.0) as f32;
    let mlps = layers(config, common.layers, moe)?;
    let count = common.layers;
    let mut arch = Arch::new(common, vec![mixer; count], mlps);
    let extra = config.number("num_nextn_predict_layers")?.unwrap_or(1.0);
    for i in 0..extra.clamp(0.0, 16.0) as usize {
        let prefix = format!("model.layers.{}.", count + i);
        arch = arch.ignoring(prefix, "multi-token prediction layer; the main model does not use it");
    }
    Ok(arch)
}
