//! The text decoder of Kimi-VL: DeepSeek-V3's, under `language_model`. Vision tower and projector are not loaded.
use super::{Arch, Common, Field, Names, deepseek_v3};
use crate::config::{RawConfig, refuse};
use crate::error::Result;

/// Those of the text model's class.
pub(super) const FIELDS: &[Field] = deepseek_v3::FIELDS;

/// Fields whose defaults are DeepSeek-V3's own. Kimi-VL has no class in transformers, so config.json must give them.
const ROUTING: [&str; 8] = [
    "n_routed_experts",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "n_shared_experts",
    "first_k_dense_replace",
    "routed_scaling_factor",
    "norm_topk_prob",
];

pub(super) fn declare(config: &RawConfig, mut common: Common) -> Result<Arch> {
    if let Some(field) = ROUTING.into_iter().find(|field| config.given(field).is_none()) {
        return Err(refuse("config.json", format!("`{field}` is missing, and Kimi-VL has no default for it")));
    }
    common.tied = config.wrapper_tied()?.unwrap_or(common.tied);
    let mut arch = deepseek_v3::declare(config, common)?;
    arch.names = Names { decoder: "language_model.model", head: "language_model.lm_head" };
    for ignored in &mut arch.ignored {
        ignored.prefix = format!("language_model.{}", ignored.prefix);
    }
    Ok(arch
        .ignoring("vision_tower.", "vision tower; this runtime runs the text decoder")
        .ignoring("multi_modal_projector.", "projector of images; this runtime runs the text decoder"))
}
