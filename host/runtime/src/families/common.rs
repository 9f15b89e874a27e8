//! What several families read from config.json in the same way.

use super::{Common, Mixer, Mlp, Moe, Scoring, Shared};
use crate::config::{RawConfig, refuse};
use crate::error::{Result, RuntimeError};
use crate::rope::RopeConfig;

impl Common {
    pub(super) fn read(config: &RawConfig) -> Result<Self> {
        config.require_silu()?;
        let hidden = config.size("hidden_size")?;
        let heads = config.size("num_attention_heads")?;
        let kv_heads = config.size_opt("num_key_value_heads")?.unwrap_or(heads);
        // Latent attention has head widths of its own; rope works on `qk_rope_head_dim`.
        let latent = config.get("kv_lora_rank").is_some();
        let head_dim = match config.size_opt(if latent { "qk_rope_head_dim" } else { "head_dim" })? {
            Some(d) => d,
            None if hidden % heads == 0 => hidden / heads,
            None => {
                return Err(refuse(
                    "config.json",
                    format!(
                        "`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}, and `head_dim` is absent"
                    ),
                ));
            }
        };
        if heads % kv_heads != 0 {
            return Err(refuse(
                "config.json",
                format!("`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}"),
            ));
        }
        if latent && heads != kv_heads {
            return Err(refuse(
                "config.json",
                format!(
                    "`num_key_value_heads` is {kv_heads}; latent attention has as many as `num_attention_heads`, {heads}"
                ),
            ));
        }
        let layers = config.size("num_hidden_layers")?;
        if layers > 1024 {
            return Err(refuse("config.json", format!("`num_hidden_layers` is {layers}, more than the limit of 1024")));
        }
        let types = config.texts("layer_types")?;
        if !types.is_empty() && types.len() != layers {
            return Err(refuse(
                "config.json",
                format!("`layer_types` has {} entries, and `num_hidden_layers` is {layers}", types.len()),
            ));
        }
        let eps = config.number("rms_norm_eps")?;
        if !(0.0..1.0).contains(&eps) {
            return Err(refuse("config.json", format!("`rms_norm_eps` is {eps}; it must be from 0 to 1")));
        }
        let max_positions = config.size("max_position_embeddings")?;
        let rope = RopeConfig::read(config, max_positions)?;
        let rotated = rope.rotary_dim(head_dim);
        if rotated == 0 || rotated % 2 != 0 {
            return Err(refuse(
                "config.json",
                format!("`head_dim` {head_dim} leaves {rotated} rotated dimensions; rotary embedding needs pairs"),
            ));
        }
        Ok(Self {
            hidden,
            layers,
            vocab: config.size("vocab_size")?,
            heads,
            kv_heads,
            head_dim,
            eps,
            norm_plus_one: false,
            rope,
            tied: config.flag("tie_word_embeddings")?,
            max_positions,
        })
    }
}

/// The routed block that most families share: softmax over all experts, no groups. `experts` and `width` are the fields that
/// have the number of experts and the width of one.
pub(super) fn routed(
    config: &RawConfig,
    block: &'static str,
    experts: &str,
    width: &str,
    renormalize: bool,
    shared: Option<Shared>,
) -> Result<Moe> {
    let experts = config.size(experts)?;
    let top_k = config.size("num_experts_per_tok")?;
    if top_k > experts {
        return Err(refuse("config.json", format!("`num_experts_per_tok` {top_k} is more than the {experts} experts")));
    }
    if experts > 4096 {
        return Err(refuse("config.json", format!("{experts} experts are more than the limit of 4096")));
    }
    let intermediate = config.size(width)?;
    let (scoring, groups, scale) = (Scoring::Softmax, None, 1.0);
    Ok(Moe { block, experts, top_k, intermediate, scoring, groups, renormalize, scale, shared })
}

/// Qwen's choice of sparse layers: every `decoder_sparse_step`-th, except `mlp_only_layers`.
pub(super) fn qwen_layers(config: &RawConfig, layers: usize, moe: Moe) -> Result<Vec<Mlp>> {
    let step = config.size("decoder_sparse_step")?;
    let dense_only = config.indices("mlp_only_layers")?;
    let sparse = |i: usize| !dense_only.contains(&i) && (i + 1).is_multiple_of(step);
    let dense = if (0..layers).all(sparse) {
        None
    } else {
        Some(Mlp::Dense { intermediate: config.size("intermediate_size")?, bias: false })
    };
    Ok((0..layers).map(|i| if sparse(i) { Mlp::Moe(moe) } else { dense.unwrap_or(Mlp::Moe(moe)) }).collect())
}

/// What attends to a window only, where `layer_types` does not say it.
pub(super) enum Slides {
    /// Layers from `max_window_layers` on (Qwen2, Qwen3).
    From,
    /// Every other layer below `max_window_layers`, beginning with the first (Qwen2-MoE).
    EverySecondBelow,
}

/// Qwen's sliding window of each layer: where it is switched on, those that `layer_types` names, or those of `slides`.
pub(super) fn qwen_windows(config: &RawConfig, layers: usize, slides: &Slides) -> Result<Vec<Option<usize>>> {
    let on = config.flag("use_sliding_window")?;
    let window = if on { config.size_opt("sliding_window")? } else { None };
    let types = config.texts("layer_types")?;
    let border = config.number("max_window_layers")?;
    let slides = |i: usize| match (types.get(i).map(String::as_str), slides) {
        (Some("sliding_attention"), _) => Ok(true),
        (Some("full_attention"), _) => Ok(false),
        (Some(other), _) => Err(unknown_layer_type(i, other, "sliding_attention")),
        (None, Slides::From) => Ok(window.is_some() && i as f64 >= border),
        (None, Slides::EverySecondBelow) => Ok(on && i.is_multiple_of(2) && (i as f64) < border),
    };
    let one = |i: usize| match (slides(i)?, window) {
        (false, _) => Ok(None),
        (true, Some(window)) => Ok(Some(window)),
        (true, None) => Err(refuse(
            "config.json",
            format!("layer {i} is to attend to a window, but `use_sliding_window` is {on} or `sliding_window` is null"),
        )),
    };
    (0..layers).map(one).collect()
}

/// Refuses a word of `layer_types`.
pub(super) fn unknown_layer_type(i: usize, word: &str, other: &str) -> RuntimeError {
    refuse("config.json", format!("`layer_types[{i}]` is `{word}`; known are full_attention and {other}"))
}

/// One mixer per layer.
pub(super) fn windowed(windows: Vec<Option<usize>>, mixer: impl Fn(Option<usize>) -> Mixer) -> Vec<Mixer> {
    windows.into_iter().map(mixer).collect()
}
