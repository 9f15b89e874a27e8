//! Block FP8 from the amax of each block: decides what is quantized, and answers every amax with a scale by one of the
//! named profiles. It sees no weights and imports nothing.

#[path = "../../kit/glue/block_quant.rs"]
mod glue;

/// Generated from the WIT.
#[allow(missing_docs, unused, clippy::all)]
mod bindings {
    wit_bindgen::generate!({ path: "../../wit/patch/0.1.0", world: "quant-patch" });
}

use bindings::exports::patchhost::patch::block_quant::{
    self, ActivationRule, Blocks, Consumer, Decision, Model, Tensor,
};
use bindings::exports::patchhost::patch::identity::{self, Info, Target};
use kit::engines::{PATCHHOST, SGLANG, VLLM};
use kit::settings::BlockSettings;
use std::sync::OnceLock;

static SETTINGS: OnceLock<BlockSettings> = OnceLock::new();

fn settings() -> &'static BlockSettings {
    SETTINGS.get_or_init(BlockSettings::default)
}

struct Fp8Block;

impl identity::Guest for Fp8Block {
    fn describe() -> Info {
        Info {
            name: "fp8_block".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Block FP8 (e4m3) with a scale per block, from the largest magnitude of each block".into(),
            reason:
                "vLLM quantizes a checkpoint once, at load; in RL the trainer sends bf16 weights every step, so the \
                     rollout engine has to quantize them itself, the same way each time"
                    .into(),
            upstream: Some("volcengine/verl: vllm_fp8_utils.py, FP8 rollout with blockwise quantization".into()),
            remove_when: Some("the trainer sends block FP8 weights with their scales itself".into()),
            // Scales follow from the weights alone, and vLLM and SGLang read block FP8 under the same names: this is
            // verl's quantization for both, with the same bytes.
            targets: [PATCHHOST, VLLM, SGLANG]
                .map(|(engine, versions)| Target {
                    engine: engine.into(),
                    versions: versions.into(),
                    architectures: vec![],
                })
                .into(),
        }
    }

    fn configure(pairs: Vec<(String, String)>) -> Result<(), String> {
        let parsed = BlockSettings::parse(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())))?;
        SETTINGS.set(parsed).map_err(|_| "configure was called twice; it is called once, before any hook".into())
    }
}

impl block_quant::Guest for Fp8Block {
    fn decide(m: Model, _: Consumer, tensors: Vec<Tensor>) -> Result<Vec<Decision>, String> {
        let s = settings();
        glue::decide(&s.scheme(), &s.common.selection, &m, &tensors)
    }

    fn activation(_: Model) -> Option<ActivationRule> {
        let s = settings();
        s.common.activation_rule.then(|| glue::activation(s.activation()))
    }

    fn scales(b: Blocks, amax: Vec<f32>) -> Result<Vec<f32>, String> {
        settings().recipe().scales(&b.tensor, b.first_block, &amax)
    }

    fn scales_with_moments(b: Blocks, amax: Vec<f32>, sum_squares: Vec<f32>) -> Result<Vec<f32>, String> {
        if amax.len() != sum_squares.len() {
            let (a, q) = (amax.len(), sum_squares.len());
            return Err(format!(
                "tensor `{}`: {a} amax but {q} sums of squares; one of each per block is needed",
                b.tensor
            ));
        }
        settings().recipe().scales(&b.tensor, b.first_block, &amax)
    }

    fn activation_scales(amax: Vec<f32>) -> Result<Vec<f32>, String> {
        settings().activation().scales(&amax)
    }
}

bindings::export!(Fp8Block with_types_in bindings);
