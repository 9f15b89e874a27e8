//! The text decoder of Kimi-VL: DeepSeek-V3's, under `language_model`. Vision tower and projector are not loaded.
use super::{Arch, Common, Names, deepseek_v3};
use crate::config::RawConfig;
use crate::error::Result;

pub(super) fn declare(config: &RawConfig, common: Common) -> Result<Arch> {
    let mut arch = deepseek_v3::declare(config, common)?;
    arch.names = Names { decoder: "language_model.model", head: "language_model.lm_head" };
    for ignored in &mut arch.ignored {
        ignored.prefix = format!("language_model.{}", ignored.prefix);
    }
    Ok(arch
        .ignoring("vision_tower.", "vision tower; this runtime runs the text decoder")
        .ignoring("multi_modal_projector.", "projector of images; this runtime runs the text decoder"))
}
