//! FP8 checkpoints as other engines write them. The goldens are made by `tests/oracle/make_fp8_oracle.py`.

use std::path::{Path, PathBuf};

use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::refit::{Outcome, RefitHooks};
use safetensors::tensor::Dtype;

use crate::oracle::{golden, hooks, logits};
use crate::support::{Tensor, copy_folder, data, edit_config, edit_tensors, f32_bytes, patchhost, tmp, write};

const QUIET: &(dyn Fn(usize, usize, &str) + Sync) = &|_, _, _| {};
const STYLES: [&str; 5] =
    ["deepseek_style", "weight_scale_small_blocks", "ue8m0_u8", "ue8m0_e8m0", "compressed_tensors_bf16"];

fn model(style: &str) -> (tempfile::TempDir, PathBuf) {
    let tmp = tmp();
    let folder = copy_folder(&data("fp8").join(style), &tmp.path().join(style));
    std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
    (tmp, folder)
}

fn load(folder: &Path, dequantize: bool, hooks: &RefitHooks) -> Engine {
    let engine = Engine::open(folder, EngineOptions { dequantize, ..EngineOptions::default() }).unwrap();
    engine.refit(&Checkpoint::open(folder).unwrap(), hooks, QUIET).unwrap();
    engine
}

fn loader() -> RefitHooks {
    hooks(&["moe_loader"])
}

#[test]
fn dequantized_on_load_they_agree_with_transformers() {
    for style in STYLES {
        let (_tmp, folder) = model(style);
        let (ids, expected) = golden(&data("fp8").join(style));
        let got = logits(&load(&folder, true, &loader()), &[&ids]);
        let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(got.len() == expected.len() && worst < 1e-4, "{style}: {worst}");
    }
}

/// Read as they are, the model is the one whose weights are f32(q) * scale, but for roundings (the kernels scale the sum of
/// a block instead of each weight).
#[test]
fn as_stored_they_are_the_product() {
    for style in STYLES {
        let (_tmp, folder) = model(style);
        let fp8 = load(&folder, false, &loader());
        let live = fp8.live().unwrap();
        let ids = golden(&data("fp8").join(style)).0;
        let mut tensors: Vec<Tensor> = Vec::new();
        for (param, decl) in fp8.registry().params().iter().enumerate() {
            for (i, part) in live.parts(param).iter().enumerate() {
                let mut values = vec![0.0; part.rows * part.cols];
                values.chunks_mut(part.cols).enumerate().for_each(|(r, out)| part.matrix.row(r, part.cols, out));
                let shape = if decl.cols.is_some() { vec![part.rows, part.cols] } else { vec![part.rows] };
                let name = fp8.registry().checkpoint_name_of(param, i).unwrap().to_string();
                tensors.push((name, Dtype::F32, shape, f32_bytes(&values)));
            }
        }
        write(&folder.join("model.safetensors"), &tensors);
        edit_config(&folder, |c| {
            c.as_object_mut().unwrap().remove("quantization_config");
        });
        let plain = load(&folder, false, &loader());
        let (ours, exact) = (logits(&fp8, &[&ids]), logits(&plain, &[&ids]));
        let worst = ours.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(ours.len() == exact.len() && worst < 1e-4, "{style}: {worst}");
        assert!(live.bytes() < plain.live().unwrap().bytes() / 2, "{style}");
    }
}

#[test]
fn nothing_is_requantized_silently() {
    let (_tmp, folder) = model("deepseek_style");
    let both = hooks(&["moe_loader", "fp8_block"]);
    let engine = load(&folder, false, &both);
    let outcomes = engine.explain(&Checkpoint::open(&folder).unwrap(), &both).unwrap();
    let stored = outcomes.iter().filter(|o| matches!(o.outcome, Outcome::AsStored { .. })).count();
    assert!(stored > 20 && !outcomes.iter().any(|o| matches!(o.outcome, Outcome::Quantized { .. })));
    assert!(!outcomes.iter().any(|o| o.name.ends_with("_scale_inv")));
    assert_eq!(engine.live().unwrap().first_difference(&load(&folder, false, &loader()).live().unwrap()), None);
    // W8A8: the patch's rule for activations applies to weights that came as FP8 too.
    let mut weight_only = both.clone();
    weight_only.activation = ActivationMode::None;
    let ids: &[u32] = &[1, 2, 3];
    assert_ne!(logits(&engine, &[ids]), logits(&load(&folder, false, &weight_only), &[ids]));
    // Asked for by name: refused, with the way to do it.
    let path = folder.display().to_string();
    let forced = ["--component", "fp8_block", "--set", "quantize=*q_proj.weight"];
    let ran = patchhost(["explain", &path].iter().chain(&forced));
    assert!(ran.code == 0, "an FP8 tensor is kept whatever a glob says: {}", ran.stderr);
    let again = patchhost(["explain", &path, "--dequantize", "--component", "fp8_block"].iter()).good();
    assert!(again.stdout.contains("quantized verl-torch") && !again.stdout.contains("as stored"), "{}", again.stdout);
}

#[track_caller]
fn refused(style: &str, edit: impl FnOnce(&mut Vec<Tensor>)) -> String {
    let (_tmp, folder) = model(style);
    edit_tensors(&folder, edit);
    let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
    let error = engine.refit(&Checkpoint::open(&folder).unwrap(), &loader(), QUIET).unwrap_err().to_string();
    assert!(engine.live().is_err() && error.contains("why: ") && error.contains("next: "), "{error}");
    error
}

fn find<'a>(tensors: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    tensors.iter_mut().find(|t| t.0 == name).unwrap()
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    const W: &str = "model.layers.0.mlp.experts.1.up_proj.weight";
    let scale = format!("{W}_scale_inv");
    let all = [
        refused("deepseek_style", |t| t.retain(|t| t.0 != scale)),
        refused("deepseek_style", |t| t.retain(|t| t.0 != W)),
        refused("deepseek_style", |t| find(t, &scale).2 = vec![1]),
        refused("deepseek_style", |t| find(t, &scale).3 = f32_bytes(&[f32::NAN])),
        refused("deepseek_style", |t| find(t, &scale).3 = f32_bytes(&[-1.0])),
        refused("deepseek_style", |t| find(t, W).3[7] = 0xff),
        refused("ue8m0_u8", |t| find(t, &scale).3[0] = 255),
        refused("deepseek_style", |t| t.push((format!("{W}_scale"), Dtype::F32, vec![1, 1], f32_bytes(&[1.0])))),
        refused("deepseek_style", |t| {
            let norm = find(t, "model.norm.weight");
            norm.1 = Dtype::F8_E4M3;
            norm.3.truncate(norm.2[0]);
        }),
    ];
    for error in &all[..8] {
        assert!(error.contains("experts.1.up_proj.weight"), "{error}");
    }
    insta::assert_snapshot!(all.join("\n\n"));
}

#[test]
fn a_config_that_says_nothing_or_something_else_is_refused() {
    let (_tmp, folder) = model("deepseek_style");
    edit_config(&folder, |c| {
        c.as_object_mut().unwrap().remove("quantization_config");
    });
    let path = folder.display().to_string();
    let says_nothing = patchhost(["run", &path]).refused(2, &folder);
    edit_config(&folder, |c| c["quantization_config"] = serde_json::json!({"quant_method": "gptq", "bits": 4}));
    let gptq = patchhost(["run", &path]).refused(2, &folder);
    insta::assert_snapshot!([says_nothing, gptq].join("\n\n"));
}

/// Fused experts in FP8, plain and transposed, are the per-expert ones.
#[test]
fn fused_fp8_experts_equal_per_expert_ones() {
    for (style, leaf, turned) in
        [("weight_scale_small_blocks", "weight_scale", false), ("ue8m0_u8", "weight_scale_inv", true)]
    {
        let (_tmp, folder) = model(style);
        let single = load(&folder, false, &loader());
        edit_tensors(&folder, |tensors| {
            for layer in 0..2 {
                let stem = format!("model.layers.{layer}.mlp.experts");
                for leaf in ["weight", leaf] {
                    fuse(tensors, &stem, leaf, "gate_up_proj", &["gate_proj", "up_proj"], turned);
                    fuse(tensors, &stem, leaf, "down_proj", &["down_proj"], turned);
                }
            }
            assert!(!tensors.iter().any(|t| t.0.contains("experts.0.")));
        });
        let fused = load(&folder, false, &loader());
        assert_eq!(fused.live().unwrap().first_difference(&single.live().unwrap()), None, "{style}");
    }
}

/// Makes `stem.name` of the per-expert tensors `stem.{e}.{projection}.{leaf}`.
fn fuse(tensors: &mut Vec<Tensor>, stem: &str, leaf: &str, name: &str, projections: &[&str], turned: bool) {
    let mut fused: Tensor = (String::new(), Dtype::U8, vec![4, 0, 0], Vec::new());
    for e in 0..4 {
        for p in projections {
            let at = tensors.iter().position(|t| t.0 == format!("{stem}.{e}.{p}.{leaf}")).unwrap();
            let t = tensors.swap_remove(at);
            fused.1 = t.1;
            fused.2[1] += if e == 0 { t.2[0] } else { 0 };
            fused.2[2] = t.2[1];
            fused.3.extend(t.3);
        }
    }
    fused.0 = format!("{stem}.{name}{}", if leaf == "weight" { "" } else { "_scale_inv" });
    if turned {
        turn(&mut fused);
    }
    tensors.push(fused);
}

/// [n, rows, cols] of bytes becomes [n, cols, rows].
fn turn(t: &mut Tensor) {
    let [n, rows, cols] = t.2[..] else { unreachable!() };
    let old = t.3.clone();
    t.3 = (0..n)
        .flat_map(|e| (0..cols).flat_map(move |c| (0..rows).map(move |r| (e * rows + r) * cols + c)))
        .map(|at| old[at])
        .collect();
    t.2 = vec![n, cols, rows];
}
