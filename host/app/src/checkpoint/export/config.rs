//! config.json of an export: the model's own text, with `quantization_config` in the words of the reader.

use std::collections::BTreeSet;

use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::hooks::Role;
use serde_json::{Value, json};

use super::decide::Plan;
use super::{Format, Result};

/// Modules that stay unquantized: every linear module of the checkpoint that was kept, by its full name, and `lm_head`
/// also where it is tied and has no tensor (transformers would convert it). Where no expert of a layer is FP8, the module
/// that holds them is named too: readers that stack experts look for that name.
pub fn unquantized_modules(plan: &Plan) -> Vec<String> {
    let mut kept = BTreeSet::new();
    let mut converted = BTreeSet::new();
    let (mut expert_blocks, mut fp8_blocks) = (BTreeSet::new(), BTreeSet::new());
    for entry in &plan.entries {
        let output = &entry.output;
        let block = output.name.split_once(".experts.").map(|(block, _)| format!("{block}.experts"));
        if let Some(block) = block.filter(|_| output.role == Role::Expert) {
            if entry.is_quantized() {
                fp8_blocks.insert(block)
            } else {
                expert_blocks.insert(block)
            };
        }
        if output.shape.len() < 2 || output.role == Role::Embedding {
            continue;
        }
        let Some(module) = output.name.strip_suffix(".weight") else { continue };
        if entry.is_quantized() {
            converted.insert(module)
        } else {
            kept.insert(module.to_string())
        };
    }
    kept.extend(expert_blocks.difference(&fp8_blocks).cloned());
    if !converted.iter().any(|m| m.split('.').any(|c| c == "lm_head")) {
        let named = kept.iter().any(|m| m.rsplit('.').next() == Some("lm_head"));
        if !named {
            kept.insert("lm_head".to_string());
        }
    }
    kept.into_iter().collect()
}

/// The value of `quantization_config`.
pub fn quantization_config(plan: &Plan) -> Value {
    let kept = unquantized_modules(plan);
    match plan.consumer.format() {
        Format::BlockFp8 => {
            let mut config = json!({
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": plan.block,
            });
            if plan.ue8m0 {
                config["scale_fmt"] = json!("ue8m0");
            }
            // transformers and SGLang read the first name, vLLM looks at the second first.
            config["modules_to_not_convert"] = json!(kept);
            config["ignored_layers"] = json!(kept);
            config
        }
        Format::CompressedTensors => json!({
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": 8, "type": "float", "strategy": "block", "block_structure": plan.block,
                        "symmetric": true, "dynamic": false,
                    },
                    "input_activations": {
                        "num_bits": 8, "type": "float", "strategy": "group", "group_size": plan.block[1],
                        "symmetric": true, "dynamic": true,
                    },
                },
            },
            "ignore": kept,
        }),
    }
}

/// The text of the export's config.json. Other keys keep their text, order and digits, so the key is written into the
/// text: parsing and printing again would change numbers such as 1e-06.
pub fn config_json(original: &str, plan: &Plan) -> Result<String> {
    let bad = |why: &str| {
        RuntimeError::Config(Refusal::new("config.json", why, "use the config.json that belongs to the checkpoint"))
    };
    let parsed: Value = serde_json::from_str(original).map_err(|e| bad(&format!("not valid JSON: {e}")))?;
    let Value::Object(mut keys) = parsed else { return Err(bad("not a JSON object").into()) };
    let config = quantization_config(plan);
    let print = |value: &Value| serde_json::to_string_pretty(value).map_err(|e| bad(&e.to_string()));
    if keys.contains_key("quantization_config") {
        keys.insert("quantization_config".to_string(), config);
        return Ok(print(&Value::Object(keys))? + "\n");
    }
    let body = original.trim_end().strip_suffix('}').ok_or_else(|| bad("not a JSON object"))?.trim_end();
    let comma = if keys.is_empty() { "" } else { "," };
    let indented = print(&config)?.replace('\n', "\n  ");
    Ok(format!("{body}{comma}\n  \"quantization_config\": {indented}\n}}\n"))
}
