//! Other tensors that say again what the model has from elsewhere.

use std::sync::Arc;

use patchhost_runtime::hooks::{HookError, LoaderMap, ModelInfo, Placement, TensorInfo};
use patchhost_runtime::refit::{Outcome, RefitHooks};
use safetensors::tensor::Dtype;

use super::{push, tensors_of};
use crate::list::{engine, model};
use crate::oracle::hooks;
use crate::support::{Tensor, f32_bytes};

/// A patch that ignores every head.
struct Ignores;

impl LoaderMap for Ignores {
    fn name(&self) -> &str {
        "ignores"
    }

    fn resolve(&self, _: &ModelInfo, _: &[TensorInfo], tensors: &[TensorInfo]) -> Result<Vec<Placement>, HookError> {
        let place = |t: &TensorInfo| match t.name.contains("lm_head") {
            true => Placement::Ignore("nobody needs it".into()),
            false => Placement::Native,
        };
        Ok(tensors.iter().map(place).collect())
    }
}

fn named(tensors: &[Tensor], from: &str, name: &str, change: bool) -> Tensor {
    let mut t = tensors.iter().find(|t| t.0 == from).unwrap().clone();
    t.0 = name.into();
    t.3[0] ^= u8::from(change);
    t
}

#[test]
fn a_patch_cannot_ignore_a_head_that_differs() {
    let (_tmp, folder) = model("qwen2");
    let hooks = RefitHooks { loader: Some(Arc::new(Ignores)), ..RefitHooks::default() };
    let own = tensors_of(&folder);
    for (change, taken) in [(false, true), (true, false)] {
        let mut all = own.clone();
        all.push(named(&own, "model.embed_tokens.weight", "lm_head.weight", change));
        assert_eq!(push(&engine(&folder), &hooks, &all, false).is_ok(), taken);
    }
}

/// Fused beside unfused, and the same names under a wrapper's prefix: none is ignored, so none goes uncompared.
#[test]
fn a_second_spelling_of_a_tensor_is_refused_by_name() {
    for (family, from, name) in [
        ("qwen2", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.qkv_proj.weight"),
        ("qwen2", "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.gate_up_proj.weight"),
        ("qwen2", "model.embed_tokens.weight", "embed_tokens.weight"),
        ("qwen2", "model.embed_tokens.weight", "model.lm_head.weight"),
        ("qwen2", "model.embed_tokens.weight", "model.model.embed_tokens.weight"),
        ("qwen2", "model.norm.weight", "base_model.model.model.norm.weight"),
        ("qwen2", "model.norm.weight", "module.model.norm.weight"),
        ("qwen3_vl_moe", "model.language_model.norm.weight", "language_model.norm.weight"),
        ("kimi_vl", "language_model.lm_head.weight", "lm_head.weight"),
        ("qwen3_moe", "model.layers.0.mlp.gate.weight", "model.layers.0.mlp.router.weight"),
    ] {
        let hooks = hooks(&["moe_loader"]);
        let (_tmp, folder) = model(family);
        let own = tensors_of(&folder);
        let engine = engine(&folder);
        push(&engine, &hooks, &own, false).unwrap();
        let mut all = own.clone();
        all.push(named(&own, from, name, true));
        let error = push(&engine, &hooks, &all, false).unwrap_err().to_string();
        assert!(error.contains(&format!("tensor `{name}`")), "{family}: {error}");
    }
}

/// Rotary frequencies are computed from config.json, whatever the file says (so does transformers): where the file says
/// something else, that is told.
#[test]
fn rotary_frequencies_that_differ_from_the_config_are_told() {
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    let (_tmp, folder) = model("llama3_rope");
    let own = tensors_of(&folder);
    let engine = engine(&folder);
    let config: serde_json::Value = serde_json::from_str(&engine.info().config).unwrap();
    let rope = config.get("rope_parameters").unwrap_or(&config);
    let theta = rope["rope_theta"].as_f64().unwrap_or(10_000.0);
    let (hidden, heads) = (config["hidden_size"].as_f64().unwrap(), config["num_attention_heads"].as_f64().unwrap());
    let dim = config["head_dim"].as_u64().unwrap_or((hidden / heads) as u64) as usize;
    let at = |theta: f64| -> Vec<f32> {
        (0..dim / 2).map(|i| (1.0 / theta.powf(2.0 * i as f64 / dim as f64)) as f32).collect()
    };
    let with = |values: Vec<f32>| {
        let mut all = own.clone();
        all.push((name.into(), Dtype::F32, vec![values.len()], f32_bytes(&values)));
        let bf16 = super::cast(all.last().unwrap(), Dtype::BF16);
        let report = push(&engine, &RefitHooks::default(), &all, false).unwrap();
        *all.last_mut().unwrap() = bf16;
        let low = push(&engine, &RefitHooks::default(), &all, false).unwrap();
        assert_eq!(report.notes.len(), low.notes.len());
        report.notes
    };
    assert!(with(at(theta)).is_empty(), "as they were before they were stretched");
    for (values, says) in [(at(theta * 2.0), "check `rope_theta`"), (vec![1.0; 3], "it has 3 values")] {
        let notes = with(values);
        assert!(notes.len() == 1 && notes[0].contains(name) && notes[0].contains(says), "{notes:?}");
    }
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("x.safetensors");
    let mut all = own.clone();
    all.push((name.into(), Dtype::F32, vec![dim / 2], f32_bytes(&at(theta * 2.0))));
    crate::support::write(&path, &all);
    let file = patchhost_runtime::checkpoint::Checkpoint::open(&path).unwrap();
    let outcomes = engine.explain(&file, &RefitHooks::default()).unwrap();
    let found = outcomes.iter().find(|o| o.name == name).unwrap();
    assert!(
        matches!(&found.outcome, Outcome::Ignored { reason } if reason.starts_with("recomputed from config.json; its value"))
    );
}
