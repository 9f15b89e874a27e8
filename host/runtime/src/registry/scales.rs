//! Scales that checkpoints carry beside those of weights: of a quantized KV cache and of activations. Their names are those of
//! llm-compressor (compressed-tensors), ModelOpt, AutoFP8 and Quark, as vLLM and SGLang read them.

use super::Spare;

/// Last components of the names of scales of keys, values, queries and attention probabilities.
const CACHE: [&str; 14] = [
    "k_scale",
    "v_scale",
    "q_scale",
    "kv_scale",
    "prob_scale",
    "k_zero_point",
    "v_zero_point",
    "q_zero_point",
    "k_cache_scale",
    "v_cache_scale",
    "kv_cache_scale",
    "kv_cache_scaling_factor",
    "prob_output_scale",
    "softmax_scale",
];
/// The same of what goes into a matrix, or comes out of it.
const ACTIVATIONS: [&str; 12] = [
    "input_scale",
    "input_scale_inv",
    "input_zero_point",
    "input_global_scale",
    "input_scale_ub",
    "activation_scale",
    "activation_scale_ub",
    "act_scale",
    "in_scale",
    "out_scale",
    "output_scale",
    "output_zero_point",
];

/// What a name says: a scale that is not used here, or none of these.
pub(super) fn unused(name: &str) -> Option<Spare<'static>> {
    let (module, leaf) = name.rsplit_once('.')?;
    // What comes out of these is what the cache holds (AutoFP8, Quark).
    let cached = [".k_proj", ".v_proj", ".qkv_proj", ".kv_proj"].iter().any(|projection| module.ends_with(projection));
    match leaf {
        _ if CACHE.contains(&leaf) => Some(Spare::CacheScale),
        "output_scale" | "output_zero_point" | "out_scale" if cached => Some(Spare::CacheScale),
        _ if ACTIVATIONS.contains(&leaf) => Some(Spare::ActivationScale),
        _ => None,
    }
}

impl Spare<'_> {
    /// Why a scale is not used.
    pub(crate) fn of_scale(&self) -> Option<&'static str> {
        match self {
            Spare::CacheScale => Some("scale of a quantized KV cache; the cache is not quantized here"),
            Spare::ActivationScale => {
                Some("scale of activations; they are scaled here by what they are when they come, if at all")
            }
            Spare::Outside(_) | Spare::Frequencies(_) | Spare::TiedHead(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_told_by_their_last_component() {
        for name in ["a.self_attn.k_scale", "a.self_attn.attn.v_scale", "a.k_proj.k_scale", "a.v_proj.output_scale"] {
            assert!(matches!(unused(name), Some(Spare::CacheScale)), "{name}");
        }
        for name in ["a.q_proj.input_scale", "a.experts.0.up_proj.input_scale", "a.o_proj.output_scale"] {
            assert!(matches!(unused(name), Some(Spare::ActivationScale)), "{name}");
        }
        for name in ["a.weight_scale", "a.weight_scale_inv", "k_scale", "a.k_scale.weight", "a.layer_scale"] {
            assert!(unused(name).is_none(), "{name}");
        }
    }
}
