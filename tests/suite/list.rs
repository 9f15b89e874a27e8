//! The 25 points that the patched engine's own behaviour gives a host to pass, one test each, named by its number.
//! Most have deeper tests elsewhere; here each is stated once, from outside.

use std::path::PathBuf;

use half::bf16;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::refit::Outcome;
use safetensors::tensor::Dtype;

use crate::oracle::{hooks, hooks_with, logits};
use crate::support::{
    Tensor, bf16_bytes, copy_model, edit_tensors, f32_bytes, normal, patchhost, read, read_f32, tmp, write,
};

const QUIET: &(dyn Fn(usize, usize, &str) + Sync) = &|_, _, _| {};
const IDS: &[u32] = &[11, 48, 85, 122, 159];

fn model(name: &str) -> (tempfile::TempDir, PathBuf) {
    let tmp = tmp();
    let folder = copy_model(name, tmp.path());
    std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
    (tmp, folder)
}

fn engine(folder: &std::path::Path) -> Engine {
    Engine::open(folder, EngineOptions::default()).unwrap()
}

/// The files of a quantized matrix: codes, scales, dimensions of the scales.
fn quantized(rows: usize, cols: usize, values: &[f32], settings: &[&str]) -> (Vec<u8>, Vec<f32>, Vec<usize>) {
    let tmp = tmp();
    let (input, output) = (tmp.path().join("in.safetensors"), tmp.path().join("out.safetensors"));
    write(&input, &[("w".into(), Dtype::BF16, vec![rows, cols], bf16_bytes(values))]);
    let mut args = vec!["quantize", input.to_str().unwrap(), output.to_str().unwrap(), "--component", "fp8_block"];
    settings.iter().for_each(|s| args.extend(["--set", s]));
    patchhost(args).good();
    let made = read(&output);
    let find = |name: &str| made.iter().find(|t| t.0 == name).unwrap().clone();
    let scale = find("w_scale_inv");
    (find("w").3, read_f32(&scale.3), scale.2)
}

/// B12: which runtime tensors have a loader. vLLM 0.8.2 lost those of the experts after the first load.
#[test]
fn item_04_every_runtime_tensor_has_a_loader_after_three_refits() {
    let (_tmp, folder) = model("qwen2_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine =
        Engine::open(&folder, EngineOptions { simulate_loader_loss: true, ..EngineOptions::default() }).unwrap();
    let hooks = hooks(&["moe_loader"]);
    let layer = "model.layers.0";
    for _ in 0..3 {
        engine.refit(&checkpoint, &hooks, QUIET).unwrap();
        let targets: std::collections::BTreeSet<String> =
            engine.explain(&checkpoint, &hooks).unwrap().into_iter().filter_map(|o| o.target).collect();
        for name in [
            "model.embed_tokens.weight".to_string(),
            format!("{layer}.self_attn.qkv_proj.weight"),
            format!("{layer}.self_attn.qkv_proj.bias"),
            format!("{layer}.self_attn.o_proj.weight"),
            format!("{layer}.mlp.gate.weight"),
            format!("{layer}.mlp.shared_expert.gate_up_proj.weight"),
            format!("{layer}.mlp.shared_expert.down_proj.weight"),
            format!("{layer}.mlp.shared_expert_gate.weight"),
            format!("{layer}.input_layernorm.weight"),
            format!("{layer}.post_attention_layernorm.weight"),
            format!("{layer}.mlp.experts.w13_weight"),
            format!("{layer}.mlp.experts.w2_weight"),
        ] {
            assert!(targets.contains(&name), "{name} has no loader");
        }
        let without = engine.refit(&checkpoint, &crate::oracle::hooks(&[]), QUIET).unwrap_err().to_string();
        assert!(without.contains("weight_loader is lost") && without.contains("experts.0"), "{without}");
    }
}

#[test]
fn item_10_nan_and_infinity_follow_the_named_policy() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (_tmp, folder) = model("qwen3_moe");
        let spoil = |tensors: &mut Vec<Tensor>| {
            let t = tensors.iter_mut().find(|t| t.0 == "model.layers.0.self_attn.q_proj.weight").unwrap();
            let at = 2 * (3 * t.2[1] + 2);
            t.3[at..at + 2].copy_from_slice(&bf16::from_f32(bad).to_le_bytes());
        };
        edit_tensors(&folder, spoil);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let strict = engine(&folder).refit(&checkpoint, &hooks(&["moe_loader", "fp8_block"]), QUIET);
        let error = strict.unwrap_err().to_string();
        assert!(
            error.contains("q_proj.weight") && error.contains("[3, 2]") && error.contains("block [0, 0]"),
            "{error}"
        );
    }
}

#[test]
fn item_11_golden_vectors() {
    // All of them, through the sandbox: tests/golden.rs. Here the one that the seed's own path made, on its own.
    let golden = read(&crate::support::data("quant/fp8_block_golden.safetensors"));
    let find = |name: String| golden.iter().find(|t| t.0 == name).unwrap_or_else(|| panic!("no {name}")).clone();
    let mut tried = 0;
    for input in golden.iter().filter(|t| t.0.ends_with("/input") && t.1 == Dtype::BF16) {
        let stem = input.0.trim_end_matches("/input");
        let values: Vec<f32> = input.3.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
        let (q, s, shape) = quantized(input.2[0], input.2[1], &values, &["edges=seed-torch"]);
        let (weight, scale) = (find(format!("{stem}/verl_torch/weight")), find(format!("{stem}/verl_torch/scale_inv")));
        assert_eq!((q, f32_bytes(&s), shape), (weight.3, scale.3, scale.2), "{stem}");
        tried += 1;
    }
    assert!(tried > 0);
}

#[test]
fn item_12_shapes_from_1x1_to_576x7168_and_empty_ones() {
    for (rows, cols) in
        [(1, 1), (1, 700), (700, 1), (300, 130), (576, 7168), (2112, 7168), (0, 128), (40, 96), (256, 128)]
    {
        let values = normal(rows * cols, (rows * 7 + cols) as u64);
        let (q, s, shape) = quantized(rows, cols, &values, &[]);
        assert_eq!(shape, [rows.div_ceil(128), cols.div_ceil(128)], "{rows}x{cols}");
        assert_eq!((q.len(), s.len()), (rows * cols, shape[0] * shape[1]), "{rows}x{cols}");
        // Each value is within half a step of its own: 2^-4 of its size, or half of the least step of its block.
        for (i, (value, code)) in values.iter().zip(&q).enumerate() {
            let value = bf16::from_f32(*value).to_f32();
            let scale = s[i / cols / 128 * shape[1] + i % cols / 128];
            let back = patchhost_kernels::e4m3::decode(*code) * scale;
            let room = (value.abs() / 16.0).max(scale / 1024.0) * 1.000_01;
            assert!((back - value).abs() <= room, "{rows}x{cols} at {i}: {value} became {back}, scale {scale}");
        }
    }
}

/// H8: `squeeze(-1)` made the scale of a matrix with one column of blocks 1-D.
#[test]
fn item_13_the_scale_of_a_narrow_matrix_stays_two_dimensional() {
    for cols in [1, 64, 127, 128] {
        assert_eq!(quantized(300, cols, &normal(300 * cols, cols as u64), &[]).2, [3, 1], "{cols}");
    }
}

#[test]
fn item_14_ue8m0_scales_are_powers_of_two_and_requantizing_them_changes_nothing() {
    let values = normal(300 * 200, 14);
    for profile in ["verl-torch", "verl-triton", "deepseek", "vllm-group", "hf", "deepgemm", "slime"] {
        let profile = format!("profile={profile}");
        let (q, s, shape) = quantized(300, 200, &values, &[&profile, "scale_format=ue8m0"]);
        assert!(s.iter().all(|s| s.to_bits() & 0x007f_ffff == 0 && *s > 0.0), "{profile}: {s:?}");
        let dequantized: Vec<f32> = q
            .iter()
            .enumerate()
            .map(|(i, code)| patchhost_kernels::e4m3::decode(*code) * s[i / 200 / 128 * shape[1] + i % 200 / 128])
            .collect();
        let (again, scales, _) = quantized(300, 200, &dequantized, &[&profile, "scale_format=ue8m0"]);
        assert_eq!(scales, s, "{profile}");
        assert_eq!(again, q, "{profile}");
    }
}

#[test]
fn item_17_routers_and_shared_expert_gates_are_never_quantized() {
    let quantizing = hooks(&["moe_loader", "fp8_block"]);
    for name in ["qwen2_moe", "qwen3_moe", "mixtral"] {
        let (_tmp, folder) = model(name);
        let outcomes = engine(&folder).explain(&Checkpoint::open(&folder).unwrap(), &quantizing).unwrap();
        let gates: Vec<_> = outcomes
            .iter()
            .filter(|o| o.name.ends_with(".gate.weight") || o.name.ends_with(".shared_expert_gate.weight"))
            .collect();
        assert!(gates.len() >= 2, "{name}");
        for gate in gates {
            assert!(matches!(&gate.outcome, Outcome::Kept { reason } if reason.contains("router")), "{gate:?}");
        }
        assert!(outcomes.iter().any(|o| matches!(o.outcome, Outcome::Quantized { .. })), "{name}");
    }
}

#[test]
fn item_22_another_quantizer_changes_only_later_refits() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = engine(&folder);
    engine.refit(&checkpoint, &hooks(&["moe_loader", "fp8_block"]), QUIET).unwrap();
    let (first, says) = (engine.live().unwrap(), logits(&engine, &[IDS]));
    // A request that runs meanwhile holds the weights that it began with.
    let held = engine.live().unwrap();
    let pow2 = hooks_with(&[("moe_loader", &[]), ("fp8_block", &[("scale_format", "ue8m0")])]);
    assert_eq!(logits(&engine, &[IDS]), says, "staging a patch changes nothing");
    engine.refit(&checkpoint, &pow2, QUIET).unwrap();
    assert_ne!(logits(&engine, &[IDS]), says);
    assert_eq!(held.first_difference(&first), None);
    assert!(engine.live().unwrap().first_difference(&first).is_some());
    engine.refit(&checkpoint, &hooks(&["moe_loader", "fp8_block"]), QUIET).unwrap();
    assert_eq!(logits(&engine, &[IDS]), says);
}

#[test]
fn item_24_fused_expert_names_equal_per_expert_names() {
    let set = |name: &str| {
        let (_tmp, folder) = model(name);
        let engine = engine(&folder);
        engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks(&["moe_loader", "fp8_block"]), QUIET).unwrap();
        engine.live().unwrap()
    };
    assert_eq!(set("qwen3_moe").first_difference(&set("qwen3_moe_fused")), None);
}

#[test]
fn item_25_a_second_model_in_one_process_gets_its_own_decisions() {
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let ((_a, moe), (_b, dense)) = (model("qwen3_moe"), model("qwen3"));
    let alone = engine(&dense);
    alone.refit(&Checkpoint::open(&dense).unwrap(), &crate::oracle::hooks(&["fp8_block"]), QUIET).unwrap();
    let first = engine(&moe);
    first.refit(&Checkpoint::open(&moe).unwrap(), &hooks, QUIET).unwrap();
    let second = engine(&dense);
    second.refit(&Checkpoint::open(&dense).unwrap(), &hooks, QUIET).unwrap();
    assert_eq!(second.live().unwrap().first_difference(&alone.live().unwrap()), None);
}
