//! The loader map of fused experts: says where each expert tensor of a mixture-of-experts checkpoint goes, on every
//! refit. All other tensors are the host's own business.

mod experts;
mod name;

/// Generated from the WIT.
#[allow(missing_docs, unused, clippy::all)]
mod bindings {
    wit_bindgen::generate!({ path: "../../wit/patch/0.1.0", world: "loader-patch" });
}

use bindings::exports::patchhost::patch::identity::{self, Info, Target};
use bindings::exports::patchhost::patch::loader_map::{self, Model, Placement, Tensor};
use kit::engines::{PATCHHOST, VLLM};

/// The architectures whose experts this patch knows by name.
const ARCHITECTURES: [&str; 9] = [
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "KimiVLForConditionalGeneration",
    "MixtralForCausalLM",
    "OlmoeForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3NextForCausalLM",
    "Qwen3VLMoeForConditionalGeneration",
];

struct MoeLoader;

impl identity::Guest for MoeLoader {
    fn describe() -> Info {
        Info {
            name: "moe_loader".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Loads expert weights of mixture-of-experts checkpoints into fused w13 and w2 tensors".into(),
            reason: "vLLM rebuilt the fused expert parameters after loading and dropped their weight_loader, so the \
                     first load worked and the first refit failed; verl's patch.py puts the loader back, this patch \
                     supplies the map itself"
                .into(),
            upstream: Some("vllm-project/vllm: 'Parameter' object has no attribute 'weight_loader'".into()),
            remove_when: Some(
                "the engine's own loader maps fused experts on every refit, not only on the first load".into(),
            ),
            // The fused tensors are vLLM's own, in its order and before it packs them. There the map proves that a stream
            // has every expert once; vLLM writes the tensors itself. SGLang's registry was not looked at.
            targets: [PATCHHOST, VLLM]
                .map(|(engine, versions)| Target {
                    engine: engine.into(),
                    versions: versions.into(),
                    architectures: ARCHITECTURES.map(String::from).into(),
                })
                .into(),
        }
    }

    fn configure(settings: Vec<(String, String)>) -> Result<(), String> {
        match settings.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("unknown setting `{key}`; known are: none, moe_loader has no settings")),
        }
    }
}

impl loader_map::Guest for MoeLoader {
    fn resolve(m: Model, registry: Vec<Tensor>, checkpoint: Vec<Tensor>) -> Result<Vec<Placement>, String> {
        experts::resolve(&m, &registry, &checkpoint)
    }
}

bindings::export!(MoeLoader with_types_in bindings);
