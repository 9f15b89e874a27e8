//! Which layers cause the mismatch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use patchhost::compare::{Class, Only, Subset, layer_of};
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::hooks::Role;
use patchhost_runtime::model::{Rows, Sequence};
use patchhost_runtime::refit::RefitHooks;
use patchhost_runtime::weights::WeightSet;
use serde_json::Value;

use super::compare;
use crate::oracle::hooks;
use crate::support::{copy_model, ids_file, patchhost, tmp};

const QUIET: &(dyn Fn(usize, usize, &str) + Sync) = &|_, _, _| {};
const IDS: [u32; 12] = [11, 48, 85, 122, 159, 3, 40, 77, 114, 151, 20, 57];

pub fn model(name: &str) -> (tempfile::TempDir, PathBuf) {
    let tmp = tmp();
    let folder = copy_model(name, tmp.path());
    std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
    (tmp, folder)
}

fn only(hooks: &RefitHooks, subset: Subset) -> RefitHooks {
    RefitHooks { quant: Some(Arc::new(Only { inner: hooks.quant.clone().unwrap(), subset })), ..hooks.clone() }
}

fn stage(folder: &std::path::Path, hooks: &RefitHooks) -> (Engine, WeightSet) {
    let engine = Engine::open(folder, EngineOptions::default()).unwrap();
    let (set, _) = engine.stage(&Checkpoint::open(folder).unwrap(), hooks, QUIET).unwrap();
    (engine, set)
}

fn bits(set: &WeightSet, param: usize) -> Vec<u32> {
    let parts = set.parts(param).iter();
    let rows = parts.flat_map(|p| {
        let mut out = vec![0.0; p.rows * p.cols];
        out.chunks_exact_mut(p.cols).enumerate().for_each(|(r, row)| p.matrix.row(r, p.cols, row));
        out
    });
    rows.map(f32::to_bits).collect()
}

/// Of each class and of each layer alone: its tensors are FP8, all others the unquantized bits.
#[test]
fn quantizing_only_a_subset_changes_only_that_subset() {
    for name in ["qwen2_moe", "deepseek_v3", "qwen3_moe", "llama"] {
        let (_tmp, folder) = model(name);
        let hooks = if name == "llama" { hooks(&["fp8_block"]) } else { hooks(&["moe_loader", "fp8_block"]) };
        let (engine, plain) = stage(&folder, &RefitHooks { quant: None, ..hooks.clone() });
        let (_, all) = stage(&folder, &hooks);
        let params = engine.registry().params();
        let is_fp8 = |set: &WeightSet, id: usize| set.parts(id).iter().any(|p| p.matrix.is_fp8());
        let classes = [Class::Attention, Class::Experts, Class::Shared, Class::Dense, Class::LmHead, Class::Other];
        let layers = (0..engine.info().layers as usize).map(Subset::Layer);
        let mut changed = BTreeMap::new();
        for subset in classes.into_iter().map(Subset::Class).chain(layers) {
            let (_, set) = stage(&folder, &only(&hooks, subset));
            for (id, decl) in params.iter().enumerate() {
                let inside = match subset {
                    Subset::Class(class) => Class::of(decl.role) == class,
                    Subset::Layer(layer) => layer_of(&decl.name) == Some(layer),
                };
                let expected = if inside && is_fp8(&all, id) { &all } else { &plain };
                assert_eq!(is_fp8(&set, id), inside && is_fp8(&all, id), "{name} {subset:?} {}", decl.name);
                assert_eq!(bits(&set, id), bits(expected, id), "{name} {subset:?} {}", decl.name);
                if is_fp8(&set, id) {
                    *changed.entry(id).or_insert(0) += 1;
                }
            }
        }
        // Classes and layers both cover everything once.
        let quantized = (0..params.len()).filter(|id| is_fp8(&all, *id)).count();
        assert!(quantized > 0 && changed.len() == quantized && changed.values().all(|n| *n == 2), "{name}");
    }
}

fn logits(engine: &Engine, weights: &WeightSet) -> Vec<f32> {
    let mut cache = engine.model().new_cache();
    let out = engine.model().forward(weights, &mut [Sequence { tokens: &IDS, cache: &mut cache }], Rows::All);
    out.unwrap().into_values()
}

fn probabilities(row: &[f32]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
    row.iter().map(|l| f64::from(*l).exp() / sum).collect()
}

#[track_caller]
fn near(got: &Value, expected: f64, what: &str) {
    let got = got.as_f64().unwrap();
    assert!((got - expected).abs() <= 1e-6 * expected.abs() + 1e-12, "{what}: {got}, not {expected}");
}

/// The numbers of the command line against logits and formulas of this file.
#[test]
fn the_distances_are_those_of_the_logits() {
    let (tmp, folder) = model("qwen2_moe");
    let ids = ids_file(tmp.path(), &IDS.map(i64::from));
    let args =
        ["fp8_block", "--against", "bf16", folder.to_str().unwrap(), "--ids", ids.to_str().unwrap(), "--per-layer"];
    let json = compare(&args);
    let ablation = &json["ablation"];
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let (engine, plain) = stage(&folder, &RefitHooks { quant: None, ..hooks.clone() });
    let reference = logits(&engine, &plain);
    let vocab = engine.model().vocab();

    let check = |effect: &Value, hooks: &RefitHooks, what: &str| -> f64 {
        let (engine, set) = stage(&folder, hooks);
        let candidate = logits(&engine, &set);
        let rows: Vec<(Vec<f64>, Vec<f64>)> = reference
            .chunks_exact(vocab)
            .zip(candidate.chunks_exact(vocab))
            .map(|(r, c)| (probabilities(r), probabilities(c)))
            .collect();
        let kl: Vec<f64> =
            rows.iter().map(|(p, q)| p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>()).collect();
        let mean = kl.iter().sum::<f64>() / kl.len() as f64;
        near(&effect["kl_vocab"], mean, what);
        near(&effect["kl_vocab_max"], kl.iter().copied().fold(0.0, f64::max), what);
        let best = |p: &[f64]| (0..p.len()).max_by(|a, b| p[*a].total_cmp(&p[*b])).unwrap();
        let agree = rows.iter().filter(|(p, q)| best(p) == best(q)).count() as f64 / rows.len() as f64;
        near(&effect["top1_agreement"], agree, what);
        // The next token's log-ratio at every position but the last.
        let d: Vec<f64> =
            rows.iter().zip(&IDS[1..]).map(|((p, q), id)| (p[*id as usize] / q[*id as usize]).ln()).collect();
        assert_eq!((&effect["positions"], &effect["tokens"]), (&12.into(), &11.into()));
        near(&effect["kl"], -d.iter().sum::<f64>() / 11.0, what);
        near(&effect["k3_kl"], d.iter().map(|d| d.exp() - d - 1.0).sum::<f64>() / 11.0, what);
        mean
    };

    let all = check(&ablation["a"]["all"], &hooks, "all");
    assert!(all > 0.0);
    let mut seen = Vec::new();
    let mut sum = 0.0;
    for effect in ablation["a"]["classes"].as_array().unwrap() {
        let name = effect["only"]["class"].as_str().unwrap();
        let class = match name {
            "attention" => Class::Attention,
            "experts" => Class::Experts,
            "shared" => Class::Shared,
            other => panic!("{other}"),
        };
        sum += check(effect, &only(&hooks, Subset::Class(class)), name);
        seen.push(name);
    }
    assert_eq!(seen, ["attention", "experts", "shared"]);
    near(&ablation["a"]["sum_of_classes"], sum, "sum of classes");

    let layers = ablation["a"]["layers"].as_array().unwrap();
    assert_eq!(layers.len(), engine.info().layers as usize);
    let mut sum = 0.0;
    for (i, effect) in layers.iter().enumerate() {
        assert_eq!(effect["only"]["layer"], i);
        sum += check(effect, &only(&hooks, Subset::Layer(i)), &format!("layer {i}"));
    }
    near(&ablation["a"]["sum_of_layers"], sum, "sum of layers");

    // Tensors of a class, counted by what the refit does.
    let outcomes = engine.explain(&Checkpoint::open(&folder).unwrap(), &hooks).unwrap();
    for (name, role) in [("attention", Role::Attention), ("experts", Role::Expert), ("shared", Role::SharedExpert)] {
        let expected = outcomes
            .iter()
            .filter(|o| o.role == role && matches!(o.outcome, patchhost_runtime::refit::Outcome::Quantized { .. }));
        let expected = expected.count();
        let effects = ablation["a"]["classes"].as_array().unwrap();
        assert_eq!(effects.iter().find(|e| e["only"]["class"] == name).unwrap()["tensors"], expected);
        let totals = json["classes"].as_array().unwrap();
        assert_eq!(totals.iter().find(|c| c["class"] == name).unwrap()["tensors"], expected);
    }
}

#[test]
fn one_class_alone_is_the_whole_where_the_patch_keeps_the_others() {
    let args = ["fp8_block", "fp8_block", "--set-a", "keep=*.self_attn.*", "--per-layer"];
    let json = compare(&args);
    let (a, b) = (&json["ablation"]["a"], &json["ablation"]["b"]);
    let classes = a["classes"].as_array().unwrap();
    assert_eq!(classes.len(), 1);
    for key in ["kl_vocab", "kl_vocab_max", "k3_kl", "kl", "top1_agreement"] {
        assert_eq!(classes[0][key], a["all"][key], "{key}");
        // B quantizes more; its experts alone are what A is.
        let experts = b["classes"].as_array().unwrap().iter().find(|c| c["only"]["class"] == "experts").unwrap();
        assert_eq!(experts[key], a["all"][key], "{key}");
    }
    assert_eq!(a["sum_of_classes"], a["all"]["kl_vocab"]);
    assert_eq!(b["classes"].as_array().unwrap().len(), 2);
    assert!(b["all"]["kl_vocab"].as_f64().unwrap() > 0.0);
    assert!(json["ablation"]["between"]["kl_vocab"].as_f64().unwrap() > 0.0);
    assert_eq!(json["total"]["only_b"], 16);
}

#[test]
fn equal_sides_have_equal_effects_and_native_is_one_of_them() {
    let (tmp, folder) = model("deepseek_v3");
    let ids = ids_file(tmp.path(), &IDS.map(i64::from));
    let path = folder.to_str().unwrap();
    let json = compare(&["fp8_block", "--against", "native", path, "--ids", ids.to_str().unwrap()]);
    let ablation = &json["ablation"];
    assert_eq!(ablation["a"], ablation["b"]);
    assert_eq!(ablation["between"]["kl_vocab"], 0.0);
    assert_eq!(ablation["between"]["top1_agreement"], 1.0);
    let names: Vec<&Value> = ablation["a"]["classes"].as_array().unwrap().iter().map(|c| &c["only"]["class"]).collect();
    assert_eq!(names, ["attention", "experts", "shared", "dense"]);
    assert_eq!(json["total"]["weight_bytes"]["differing"], 0);
}

#[test]
fn activations_are_part_of_the_effect_and_can_be_left_out() {
    let all = |extra: &[&str]| {
        let json = compare(&[&["fp8_block", "--against", "bf16"], extra].concat());
        json["ablation"]["a"]["all"]["kl_vocab"].as_f64().unwrap()
    };
    let (with, without) = (all(&[]), all(&["--fp8-activation", "none"]));
    assert!(with > 0.0 && without > 0.0 && with != without, "{with} {without}");
}

/// Fused experts, stored transposed or not, are compared as the refit quantizes them.
#[test]
fn fused_and_separate_experts_have_the_same_sums() {
    let sums = |name: &str| {
        let (_tmp, folder) = model(name);
        let args =
            ["fp8_block", "fp8_block", folder.to_str().unwrap(), "--tensors-only", "--set-b", "profile=vllm-group"];
        let json = compare(&args);
        assert_eq!(json["ablation"], Value::Null);
        let classes = json["classes"].as_array().unwrap().clone();
        let experts = classes.iter().find(|c| c["class"] == "experts").unwrap().clone();
        ["elements", "scales", "weight_bytes", "max_abs_difference"].map(|key| experts[key].clone())
    };
    assert_eq!(sums("qwen3_moe"), sums("qwen3_moe_fused"));
}

#[test]
fn every_family_can_be_compared() {
    for name in ["mixtral", "olmoe", "qwen3", "qwen3_next", "qwen3_vl_moe", "kimi_vl", "qwen3_moe_sharded"] {
        let (tmp, folder) = model(name);
        let ids = ids_file(tmp.path(), &[5, 9, 2]);
        let args =
            ["compare", "fp8_block", "--against", "native", folder.to_str().unwrap(), "--ids", ids.to_str().unwrap()];
        let ran = patchhost(args).good();
        assert!(ran.stdout.contains("What quantizing only one class does"), "{name}: {}", ran.stdout);
    }
}
