//! Adapters against PEFT (`tests/oracle/make_lora_oracle.py`), in any number of chunks, swapped while a sequence runs, and
//! refused by name where something is missing or too much.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use patchhost::patch::{PatchSet, Reviewing, Sandbox, Terms, resolve};
use patchhost_runtime::assembly::ChunkHeader;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::Engine;
use patchhost_runtime::error::Result;
use patchhost_runtime::hooks::Lora;
use patchhost_runtime::lora::{Adapter, AdapterBuilder};
use patchhost_runtime::model::{Rows, Sequence};
use safetensors::tensor::Dtype;

use crate::oracle::{golden, hooks, loaded};
use crate::support::{Tensor, copy_folder, copy_model, data, evil, patchhost, read, tmp, write};

/// As for the oracles themselves.
const TOLERANCE: f32 = 1e-4;

/// A patch that claims the lora hook.
pub fn lora_patch(name: &str, settings: &[(&str, &str)]) -> Arc<dyn Lora> {
    let candidate = resolve(name).unwrap();
    let terms = Terms::settings(settings.iter().copied());
    let patch = Reviewing::default().start(candidate, &terms, Sandbox::new(2).unwrap()).unwrap();
    let mut set = PatchSet::default();
    set.push(patch).unwrap();
    set.lora().unwrap()
}

/// The base model of a case, loaded, and the folder of the adapter.
pub fn case(name: &str) -> (tempfile::TempDir, Engine, PathBuf) {
    let tmp = tmp();
    let adapter = copy_folder(&data("lora").join(name), &tmp.path().join("adapter"));
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap()).unwrap();
    let base = copy_model(config["base_model_name_or_path"].as_str().unwrap(), tmp.path());
    std::fs::remove_file(base.join("golden.safetensors")).unwrap();
    let engine = loaded(&base, &hooks(&["moe_loader"]));
    (tmp, engine, adapter)
}

/// Sends an adapter in chunks of so many bytes, the last first where `backwards`.
pub fn builder(folder: &Path, name: &str, chunk: usize, backwards: bool) -> AdapterBuilder {
    try_builder(folder, name, chunk, backwards).unwrap()
}

fn try_builder(folder: &Path, name: &str, chunk: usize, backwards: bool) -> Result<AdapterBuilder> {
    let config = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    let tensors = Checkpoint::open(&folder.join("adapter_model.safetensors")).unwrap();
    let mut chunks = Vec::new();
    for t in tensors.tensors() {
        for (i, part) in t.data.load().unwrap().chunks(chunk).enumerate() {
            chunks.push((t, i * chunk, part.to_vec()));
        }
    }
    if backwards {
        chunks.reverse();
    }
    let mut builder = AdapterBuilder::new(name, config);
    for (t, offset, part) in &chunks {
        let header = ChunkHeader { name: &t.name, dtype: t.stored, shape: &t.shape, offset: *offset };
        builder.chunk(&header, part)?;
    }
    Ok(builder)
}

pub fn logits_with(engine: &Engine, adapter: Option<Arc<Adapter>>, ids: &[u32]) -> Vec<f32> {
    let mut cache = engine.model().new_cache_with(adapter);
    let mut batch = [Sequence { tokens: ids, cache: &mut cache }];
    let out = engine.model().forward(&engine.live().unwrap(), &mut batch, Rows::All).unwrap();
    out.into_values()
}

#[test]
fn logits_with_an_adapter_are_those_of_peft() {
    let patch = lora_patch("lora_tensors", &[]);
    let mut tried = 0;
    for entry in std::fs::read_dir(data("lora")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (_tmp, engine, folder) = case(&name);
        let (ids, expected) = golden(&folder);
        let without = logits_with(&engine, None, &ids);
        // FP8 for the base is another matter; here adapters ride on the stored weights.
        let adapter = engine.load_adapter(builder(&folder, "a", 1 << 20, false), patch.as_ref()).unwrap();
        let got = logits_with(&engine, Some(adapter.clone()), &ids);
        let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(got.len() == expected.len() && worst < TOLERANCE, "{name}: {worst}");
        let moved = got.iter().zip(&without).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(moved > 0.5, "{name}: the adapter moves nothing ({moved})");

        // Unloading frees it, and what comes after is what was before.
        assert!(engine.adapters().unload("a") && !engine.adapters().unload("a"));
        assert!(engine.adapters().get("a").is_none());
        assert_eq!(Arc::strong_count(&adapter), 1, "{name}: somebody still holds the unloaded adapter");
        assert_eq!(logits_with(&engine, None, &ids), without);
        tried += 1;
    }
    assert!(tried >= 15, "only {tried} adapters found");
}

#[test]
fn any_chunks_in_any_order_make_the_same_adapter() {
    let patch = lora_patch("lora_tensors", &[]);
    for name in ["llama", "qwen3_moe_experts", "llama_bf16"] {
        let (_tmp, engine, folder) = case(name);
        let ids = golden(&folder).0;
        let load = |chunk, backwards| {
            let adapter = engine.load_adapter(builder(&folder, "a", chunk, backwards), patch.as_ref()).unwrap();
            logits_with(&engine, Some(adapter), &ids)
        };
        let one = load(1 << 20, false);
        for (chunk, backwards) in [(1 << 20, true), (1000, false), (37, true), (1, false)] {
            assert_eq!(load(chunk, backwards), one, "{name} in chunks of {chunk}");
        }
    }
}

/// An adapter whose tensors were changed; the error.
#[track_caller]
fn refused(edit: impl FnOnce(&mut Vec<Tensor>)) -> String {
    let (_tmp, engine, folder) = case("qwen3_moe_attention");
    let patch = lora_patch("lora_tensors", &[]);
    engine.load_adapter(builder(&folder, "a", 1 << 20, false), patch.as_ref()).unwrap();
    let ids = golden(&folder).0;
    let before = logits_with(&engine, engine.adapters().get("a"), &ids);
    let file = folder.join("adapter_model.safetensors");
    let mut tensors = read(&file);
    edit(&mut tensors);
    write(&file, &tensors);
    let loaded = try_builder(&folder, "a", 1 << 20, false).and_then(|b| engine.load_adapter(b, patch.as_ref()));
    let error = loaded.map(|a| a.version()).unwrap_err().to_string();
    assert!(error.contains("why: ") && error.contains("next: "), "{error}");
    assert_eq!(logits_with(&engine, engine.adapters().get("a"), &ids), before, "the adapter that served must serve on");
    error
}

const K_A: &str = "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight";

fn find<'a>(tensors: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    tensors.iter_mut().find(|t| t.0 == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn a_missing_tensor_is_named() {
    let error = refused(|t| t.retain(|t| t.0 != K_A));
    assert!(error.contains(K_A) && error.contains("missing"), "{error}");
    // Both halves of one module: found by target_modules × layers.
    let error = refused(|t| t.retain(|t| !t.0.contains("layers.0.self_attn.o_proj")));
    assert!(error.contains("model.layers.0.self_attn.o_proj.lora_A.weight"), "{error}");
    let (_tmp, engine, folder) = case("qwen3_moe_attention");
    let config = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    let nothing = engine.load_adapter(AdapterBuilder::new("a", config), lora_patch("lora_tensors", &[]).as_ref());
    let error = nothing.map(|a| a.version()).unwrap_err().to_string();
    assert!(error.contains("no tensors"), "{error}");
}

#[test]
fn a_tensor_too_much_is_named() {
    for (name, says) in [
        ("base_model.model.model.layers.9.self_attn.k_proj.lora_A.weight", "no linear module"),
        ("base_model.model.model.layers.0.mlp.gate.lora_A.weight", "target_modules"),
        ("base_model.model.model.layers.0.self_attn.k_proj.lora_C.weight", "unexpected name"),
        ("model.layers.0.self_attn.k_proj.lora_A.weight", "unexpected name"),
        ("base_model.model.model.layers.1.self_attn.k_proj.lora_A.default.weight", "same half"),
    ] {
        let error = refused(|t| {
            let mut stray = find(t, K_A).clone();
            stray.0 = name.to_string();
            t.push(stray);
        });
        // Of two that are the same half, either may be named.
        assert!(error.contains(says) && (error.contains(name) || error.contains(K_A)), "{name}: {error}");
    }
}

#[test]
fn wrong_shapes_types_and_values_are_named() {
    let error = refused(|t| find(t, K_A).2.swap(0, 1));
    assert!(error.contains(K_A) && error.contains("r = 4"), "{error}");
    let error = refused(|t| {
        let t = find(t, K_A);
        (t.1, t.2, t.3) = (Dtype::I64, vec![t.2[0], t.2[1] / 2], t.3.clone());
    });
    assert!(error.contains(K_A) && error.contains("I64"), "{error}");
    let error = refused(|t| find(t, K_A).3[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    assert!(error.contains(K_A) && error.contains("NaN"), "{error}");
}

/// PEFT rewrites expert targets to parameters of the stacked experts; such an adapter is refused for that.
#[test]
fn an_adapter_of_stacked_parameters_says_so() {
    let (_tmp, engine, folder) = case("qwen3_moe_attention");
    let config = folder.join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let (old, new) = ("\"target_parameters\": []", "\"target_parameters\": [\"mlp.experts.gate_up_proj\"]");
    assert!(text.contains(old));
    std::fs::write(&config, text.replace(old, new)).unwrap();
    let loaded = engine.load_adapter(builder(&folder, "a", 1 << 20, false), lora_patch("lora_tensors", &[]).as_ref());
    let error = loaded.map(|a| a.version()).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json") && error.contains("`target_parameters`"), "{error}");
}

#[test]
fn a_chunk_that_never_came_is_found() {
    let (_tmp, engine, folder) = case("llama");
    let config = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    let mut builder = AdapterBuilder::new("a", config);
    let tensors = Checkpoint::open(&folder.join("adapter_model.safetensors")).unwrap();
    let mut first = None;
    for t in tensors.tensors() {
        let header = ChunkHeader { name: &t.name, dtype: t.stored, shape: &t.shape, offset: 0 };
        let whole = first.is_some();
        builder.chunk(&header, &t.data.load().unwrap()[..t.data.len() - if whole { 0 } else { 8 }]).unwrap();
        first.get_or_insert(t.name.clone());
    }
    let error = engine.load_adapter(builder, lora_patch("lora_tensors", &[]).as_ref()).unwrap_err().to_string();
    assert!(error.contains(&first.unwrap()) && error.contains("bytes arrived"), "{error}");
    assert!(engine.adapters().get("a").is_none());
}

/// Each lie of a patch that admits adapters is found by the host.
#[test]
fn what_the_patch_says_is_checked() {
    let (_tmp, engine, folder) = case("qwen3_moe_attention");
    let load = |fault: &str| {
        let patch = lora_patch(&evil("any_hook"), &[("fault", fault)]);
        engine.load_adapter(builder(&folder, "a", 1 << 20, false), patch.as_ref())
    };
    load("none").unwrap();
    let ids = golden(&folder).0;
    let before = logits_with(&engine, engine.adapters().get("a"), &ids);
    for (fault, says) in [
        ("lora-spin", "fuel"),
        ("lora-short", "places"),
        ("lora-target", "which the runtime does not have"),
        ("lora-norm", "no linear layer"),
        ("lora-slot", "slot"),
        ("lora-expert", "expert"),
        ("lora-twice", "its shape is"),
        ("lora-sides", "its shape is"),
        ("lora-rank", "rank"),
        ("lora-rank-huge", "rank"),
        ("lora-scaling", "scaling"),
        ("lora-scaling-nan", "scaling"),
    ] {
        let error = load(fault).map(|a| a.version()).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("why: "), "{fault}: {error}");
        assert_eq!(logits_with(&engine, engine.adapters().get("a"), &ids), before, "{fault}");
    }
}

#[test]
fn on_the_command_line() {
    let tmp = tmp();
    let base = copy_model("qwen3_moe", tmp.path());
    std::fs::remove_file(base.join("golden.safetensors")).unwrap();
    let adapter = copy_folder(&data("lora/qwen3_moe_experts"), &tmp.path().join("adapter"));
    let (ids, out) = (adapter.join("golden.safetensors"), tmp.path().join("out.safetensors"));
    let run = |more: &[&str]| {
        let mut args = vec!["logits", base.to_str().unwrap(), "--ids", ids.to_str().unwrap()];
        args.extend(["--out", out.to_str().unwrap(), "--lora"]);
        args.extend(more);
        patchhost(args)
    };
    let ran = run(&[adapter.to_str().unwrap(), "--format", "json"]).good().json();
    let lora = ran["patches"].as_array().unwrap().iter().find(|p| p["name"] == "lora_tensors").unwrap().clone();
    assert_eq!((lora["calls"].as_u64(), lora["state"].as_str()), (Some(1), Some("applied")));
    let expected = golden(&adapter).1;
    let got = crate::support::read_f32(&read(&out).into_iter().find(|t| t.0 == "logits").unwrap().3);
    let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < TOLERANCE, "{worst}");

    let nowhere = tmp.path().join("nowhere");
    insta::assert_snapshot!("no_adapter", run(&[nowhere.to_str().unwrap()]).refused(2, tmp.path()));
    let no_patch = run(&[adapter.to_str().unwrap(), "--no-default-patches", "--component", "moe_loader"]);
    insta::assert_snapshot!("no_lora_patch", no_patch.refused(2, tmp.path()));
    let rank = run(&[adapter.to_str().unwrap(), "--component", "lora_tensors", "--set", "max_lora_rank=1"]);
    insta::assert_snapshot!("rank_too_large", rank.refused(1, tmp.path()));
}
