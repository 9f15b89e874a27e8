//! What stands for a field that config.json leaves out, for every family, against transformers: the defaults of its config class, and
//! logits for each field removed in turn, set to null in turn, and spelled otherwise. `tests/oracle/make_defaults.py` wrote them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::PathBuf;
use std::sync::Arc;

use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::error::Result;
use patchhost_runtime::families::{FAMILIES, Family};
use patchhost_runtime::model::{Rows, Sequence};
use patchhost_runtime::refit::RefitHooks;
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

/// Difference that f32 arithmetic in another order explains.
const TOLERANCE: f32 = 1e-4;
/// Tokens of the prompts.
const PROMPTS: [usize; 3] = [1, 19, 48];
const VOCAB: usize = 96;

/// What a case changes in a config to take a field away.
const ABSENT: &str = "ABSENT";

/// Fields of a config class that change no logits: what trains, generates, is for other programs, or is derived from others.
const NOT_READ: [&str; 24] = [
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "is_encoder_decoder",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "transformers_version",
    "use_cache",
    "architectures",
    "id2label",
    "label2id",
    // Read as `rope_theta` and what stands beside it.
    "rope_parameters",
    // V3's other name.
    "num_mtp_layers",
    // Of latent attention: the width of what is rotated.
    "qk_head_dim",
    "model_type",
];

fn data(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/defaults").join(file)
}

fn facts(family: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data(&format!("{family}.json"))).unwrap()).unwrap()
}

fn family(model_type: &str) -> &'static Family {
    FAMILIES.iter().find(|f| f.model_type == model_type).unwrap()
}

/// The families that transformers has.
fn known() -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter().filter(|f| f.model_type != "kimi_vl")
}

#[test]
fn the_tables_are_those_of_transformers() {
    for family in known() {
        let facts = facts(family.model_type);
        let class = facts["class"].as_object().unwrap();
        for field in family.fields {
            // What the class only takes from the file, or computes.
            let computed = json!({"partial_rotary_factor": 0.25, "full_attention_interval": 4, "num_nextn_predict_layers": 1,
                "moe_layer_freq": 1, "head_dim": null});
            let there = class.get(field.name).or_else(|| computed.get(field.name));
            let there = there.unwrap_or_else(|| panic!("{}: its class has no `{}`", family.model_type, field.name));
            let same = match (there.as_f64(), field.value().as_f64()) {
                (Some(a), Some(b)) => a == b,
                _ => *there == field.value(),
            };
            assert!(same, "{}: `{}` is {there} there, {} here", family.model_type, field.name, field.value());
        }
        let latent = family.fields.iter().any(|f| f.name == "kv_lora_rank");
        for name in class.keys().map(String::as_str) {
            let read = family.fields.iter().any(|f| f.name == name);
            let known = read || NOT_READ.contains(&name) || (latent && name == "head_dim");
            // Never read in V2, whose class does not renormalize.
            let known = known || (family.model_type == "deepseek_v2" && name == "norm_topk_prob");
            assert!(known, "{}: `{name}` of its class is not read", family.model_type);
        }
    }
}

/// The config of a case, as a file would have it.
fn config_of(family: &Family, config: &Map<String, Value>, case: &Value) -> String {
    let mut text = config.clone();
    for (key, value) in case["change"].as_object().unwrap() {
        match value.as_str() {
            Some(ABSENT) => text.remove(key),
            _ => text.insert(key.clone(), value.clone()),
        };
    }
    let mut root = match family.model_type {
        "kimi_vl" | "qwen3_vl_moe" => json!({"text_config": text}),
        _ => Value::Object(text),
    };
    root["architectures"] = json!([family.architecture]);
    root["model_type"] = json!(family.model_type);
    root.as_object_mut().unwrap().extend(case.get("wrapper").and_then(Value::as_object).cloned().unwrap_or_default());
    root.to_string()
}

/// `mean` plus uniform noise of standard deviation `scale`, drawn from the tensor's name: `values` of the script.
fn values(name: &str, len: usize, mean: f64, scale: f64) -> Vec<u8> {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let one = |i: usize| {
        let mut z: u64 = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let unit = (z >> 40) as f64 / (1u64 << 24) as f64;
        ((2.0 * unit - 1.0) * (3f64.sqrt() * scale) + mean) as f32
    };
    (0..len).flat_map(|i| one(i).to_le_bytes()).collect()
}

/// The values of a checkpoint tensor: `drawn` of the script.
fn drawn(name: &str, shape: &[usize], plus_one: bool) -> Vec<u8> {
    let (len, fan) = (shape.iter().product(), (*shape.last().unwrap() as f64).sqrt());
    let (mean, scale) = if shape.len() == 1 && name.contains("norm") {
        (if plus_one && !name.contains("linear_attn.norm") { 0.0 } else { 1.0 }, 0.2)
    } else if name.ends_with("bias") {
        (0.0, 0.3)
    } else if name.ends_with("A_log") || name.ends_with("conv1d.weight") {
        (0.0, 0.5)
    } else if name.contains("embed_tokens") {
        (0.0, 1.7 / fan)
    } else {
        (0.0, if name.ends_with("gate.weight") { 2.0 } else { 1.3 } / fan)
    };
    values(name, len, mean, scale)
}

/// A checkpoint of the shapes that the engine takes, and the number of its values.
fn checkpoint(engine: &Engine) -> (Checkpoint, usize) {
    let registry = engine.registry();
    let plus_one = engine.info().model_type == "qwen3_next";
    let mut count = 0;
    let mut tensors = Vec::new();
    for (param, decl) in registry.params().iter().enumerate() {
        for part in 0..decl.part_count() {
            let name = registry.checkpoint_name_of(param, part).unwrap();
            let rows = decl.part(part).rows;
            let shape = decl.stored.clone().unwrap_or_else(|| std::iter::once(rows).chain(decl.cols).collect());
            let bytes = drawn(name.trim_start_matches("language_model."), &shape, plus_one);
            count += bytes.len() / 4;
            let len = bytes.len();
            let data = TensorBytes::new(Arc::new(bytes), 0..len).unwrap();
            tensors.push(CheckpointTensor::new(name, Dtype::F32, shape, data));
        }
    }
    (Checkpoint::from_tensors(tensors).unwrap(), count)
}

/// The logits that are kept of each prompt, and the number of values of the model.
fn evaluate(config: &str) -> Result<(Vec<Vec<f32>>, usize)> {
    // The host's own expert loaders, for the first load: no patch is needed here.
    let options = EngineOptions { simulate_loader_loss: true, ..EngineOptions::default() };
    let engine = Engine::new(config, options)?;
    let (checkpoint, count) = checkpoint(&engine);
    engine.refit(&checkpoint, &RefitHooks::default(), &|_, _, _| {})?;
    let weights = engine.live().unwrap();
    let one = |length: &usize| {
        let tokens: Vec<u32> = (0..*length).map(|i| ((i * 37 + 11) % VOCAB) as u32).collect();
        let mut cache = engine.model().new_cache();
        let mut batch = [Sequence { tokens: &tokens, cache: &mut cache }];
        Ok(engine.model().forward(&weights, &mut batch, Rows::Last)?.into_values()[..64].to_vec())
    };
    Ok((PROMPTS.iter().map(one).collect::<Result<_>>()?, count))
}

/// Whether a refusal names a field that the case changes.
fn named(case: &Value, message: &str) -> bool {
    case["change"].as_object().unwrap().keys().any(|key| message.contains(key.as_str()))
}

/// What transformers computes and this runtime refuses: 8 experts per token of the 4 that the best groups have, so that the rest is
/// chosen among experts of the same score, minus infinity; and a share that stands in two places with two values.
const REFUSED_HERE: [(&str, &str); 2] =
    [("deepseek_v3", "without num_experts_per_tok"), ("qwen3_next", "partial beside")];

/// Compares every case of a family's goldens; `as_family` runs them under its own names. How many had logits, and what is wrong.
fn compare(golden_of: &str, as_family: &Family) -> (usize, Vec<String>) {
    let facts = facts(golden_of);
    let bytes = std::fs::read(data(&format!("{golden_of}.safetensors"))).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let row = |case: &str, i: usize| -> Option<Vec<f32>> {
        let values = golden.tensor(&format!("{case}.{i}")).ok()?.data().as_chunks::<4>().0.to_vec();
        Some(values.into_iter().map(f32::from_le_bytes).collect())
    };
    let may_refuse = |case: &str| as_family.model_type == "kimi_vl" || REFUSED_HERE.contains(&(golden_of, case));
    let mut wrong = Vec::new();
    let mut compared = 0;
    for case in facts["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let label = format!("{}, {name}", as_family.model_type);
        let there = case.get("refused").and_then(Value::as_str);
        match (evaluate(&config_of(as_family, facts["config"].as_object().unwrap(), case)), there) {
            (Ok((rows, count)), None) => {
                compared += 1;
                let apart: Vec<f32> = (0..PROMPTS.len())
                    .flat_map(|i| {
                        let expected = row(name, i).or_else(|| row("as it is", i)).unwrap();
                        rows[i].iter().zip(expected).map(|(a, b)| (a - b).abs()).collect::<Vec<_>>()
                    })
                    .collect();
                let near = apart.iter().all(|a| *a < TOLERANCE);
                if !near || Some(count as u64) != case["parameters"].as_u64() {
                    let worst = apart.iter().copied().fold(0.0, f32::max);
                    wrong.push(format!("{label}: {worst}, {count} values of {}", case["parameters"]));
                }
            }
            (Err(e), None) if !may_refuse(name) || !named(case, &e.to_string()) => {
                wrong.push(format!("{label}: transformers takes it, but: {e}"));
            }
            (Err(_), None) => {}
            (Err(e), Some(there)) if !named(case, &e.to_string()) => {
                wrong.push(format!("{label}: no field is named ({there}): {e}"));
            }
            (Err(_), Some(_)) => {}
            // Where a class does not take null, it is the same as leaving the field out.
            (Ok(_), Some(_)) if name.starts_with("null ") => {}
            (Ok(_), Some(there)) => wrong.push(format!("{label}: transformers refuses it ({there})")),
        }
    }
    (compared, wrong)
}

#[test]
fn every_field_removed_in_turn_gives_the_logits_of_transformers() {
    let (compared, wrong): (Vec<usize>, Vec<Vec<String>>) = known().map(|f| compare(f.model_type, f)).unzip();
    assert!(wrong.iter().all(Vec::is_empty), "{}", wrong.concat().join("\n"));
    assert!(compared.iter().sum::<usize>() >= 400, "{compared:?}");
}

/// Kimi-VL has no class in transformers: its text model is DeepSeek-V3's, and where that is not said, it is refused.
#[test]
fn kimi_is_deepseek_v3_or_refused_by_name() {
    let (compared, wrong) = compare("deepseek_v3", family("kimi_vl"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared >= 30, "{compared}");
}
