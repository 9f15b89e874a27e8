//! Admits a LoRA adapter that comes as a PEFT config and tensors (verl's `TensorLoRARequest`): checks the config as vLLM's
//! `PEFTHelper` does, and says which part of which runtime tensor each adapter tensor belongs to.

mod config;
mod names;

/// Generated from the WIT.
#[allow(missing_docs, unused, clippy::all)]
mod bindings {
    wit_bindgen::generate!({ path: "../../wit/patch/0.1.0", world: "lora-patch" });
}

use bindings::exports::patchhost::patch::identity::{self, Info, Target};
use bindings::exports::patchhost::patch::lora::{self, Model, Plan, Tensor};
use kit::engines::{PATCHHOST, VLLM};
use std::sync::OnceLock;

/// The largest rank of an adapter (vLLM's `max_lora_rank`).
static MAX_RANK: OnceLock<u32> = OnceLock::new();
const DEFAULT_MAX_RANK: u32 = 512;

struct LoraTensors;

impl identity::Guest for LoraTensors {
    fn describe() -> Info {
        Info {
            name: "lora_tensors".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Admits LoRA adapters that come as tensors with a PEFT config".into(),
            reason: "vLLM loads adapters from a folder only; in RL the trainer sends them as tensors at every step"
                .into(),
            upstream: Some("volcengine/verl: vllm/utils.py, VLLMHijack and TensorLoRARequest".into()),
            remove_when: Some("the engine takes adapters as tensors itself".into()),
            // In vLLM it admits the adapter; vLLM then loads a folder in memory (`load_inplace`) and places it itself.
            targets: [PATCHHOST, VLLM]
                .map(|(engine, versions)| Target {
                    engine: engine.into(),
                    versions: versions.into(),
                    architectures: vec![],
                })
                .into(),
        }
    }

    fn configure(settings: Vec<(String, String)>) -> Result<(), String> {
        for (key, value) in settings {
            if key != "max_lora_rank" {
                return Err(format!("unknown setting `{key}`; known is: max_lora_rank"));
            }
            let rank = value.parse().ok().filter(|r| (1..=512).contains(r));
            let rank = rank.ok_or_else(|| format!("max_lora_rank={value}: give a whole number from 1 to 512"))?;
            MAX_RANK.set(rank).map_err(|_| "max_lora_rank is given twice".to_string())?;
        }
        Ok(())
    }
}

impl lora::Guest for LoraTensors {
    fn admit(_: Model, peft_config: String, registry: Vec<Tensor>, adapter: Vec<Tensor>) -> Result<Plan, String> {
        let most = *MAX_RANK.get().unwrap_or(&DEFAULT_MAX_RANK);
        let config = config::Config::read(&peft_config, most)?;
        let places = adapter.iter().map(|t| names::place(&config, &registry, t)).collect::<Result<Vec<_>, _>>()?;
        Ok(Plan { rank: config.rank, scaling: config.scaling, places })
    }
}

bindings::export!(LoraTensors with_types_in bindings);
