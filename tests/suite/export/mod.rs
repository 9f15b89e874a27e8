//! `patchhost export`: what its readers find, and what happens when it is interrupted or misused.

mod content;
mod place;
mod rules;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{
    Ran, Tensor, bf16_bytes, copy_model, data, edit_tensors, f32_bytes, normal, patchhost, read, read_f32, repo, tmp,
    write,
};
use safetensors::tensor::Dtype;
use serde_json::Value;

pub const READERS: [&str; 6] = ["transformers", "vllm@0.10", "vllm@0.11", "sglang", "compressed-tensors", "deepseek"];

/// Exports `model` (the bundled one where none) to `out`.
pub fn export(model: Option<&Path>, out: &Path, reader: &str, extra: &[&str]) -> Ran {
    let mut args: Vec<String> = vec!["export".into()];
    args.extend(model.map(|m| m.display().to_string()));
    args.push(out.display().to_string());
    args.extend(["--component", "fp8_block.wasm", "--for", reader].map(String::from));
    args.extend(extra.iter().map(|s| (*s).to_string()));
    patchhost(args)
}

pub fn config(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
}

pub fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    read(folder).into_iter().map(|t| (t.0.clone(), t)).collect()
}

pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(p).unwrap())).collect()
}

/// Names in a folder, hidden ones too.
pub fn names(folder: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

/// What `explain --for` says about one tensor.
pub fn outcome(explained: &Value, name: &str) -> Value {
    let all = explained["tensors"].as_array().unwrap();
    all.iter().find(|t| t["name"] == name).unwrap_or_else(|| panic!("no {name}"))["outcome"].clone()
}

pub fn explain(model: &Path, reader: &str, extra: &[&str]) -> Value {
    let args = ["explain", model.to_str().unwrap(), "--for", reader, "--format", "json", "--component", "fp8_block"];
    patchhost(args.iter().chain(extra)).good().json()
}

/// A Llama of random weights, every size a multiple of `unit`.
pub fn random_llama(folder: &Path, unit: usize, layers: usize) -> PathBuf {
    let model = folder.join("random");
    std::fs::create_dir_all(&model).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": unit, "intermediate_size": 2 * unit,
        "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": layers, "vocab_size": 256,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "rope_theta": 10000.0,
    });
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    let values = bf16_bytes(&normal(2 * unit * unit, 7));
    let tensor = |name: String, shape: &[usize]| -> Tensor {
        (name, Dtype::BF16, shape.to_vec(), values[..2 * shape.iter().product::<usize>()].to_vec())
    };
    let mut all =
        vec![tensor("model.embed_tokens.weight".into(), &[256, unit]), tensor("model.norm.weight".into(), &[unit])];
    for i in 0..layers {
        let layer = format!("model.layers.{i}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            all.push(tensor(format!("{layer}.{norm}.weight"), &[unit]));
        }
        for p in ["q", "k", "v", "o"] {
            all.push(tensor(format!("{layer}.self_attn.{p}_proj.weight"), &[unit, unit]));
        }
        for (p, shape) in [("gate", [2 * unit, unit]), ("up", [2 * unit, unit]), ("down", [unit, 2 * unit])] {
            all.push(tensor(format!("{layer}.mlp.{p}_proj.weight"), &shape));
        }
    }
    write(&model.join("model.safetensors"), &all);
    model
}
