//! The 25 points that the patched engine's own behaviour gives a host to pass, one test each, named by its number.
//! Most have deeper tests elsewhere; here each is stated once, from outside.

use std::path::PathBuf;

use std::sync::Arc;

use half::bf16;
use patchhost::patch::{AttachError, Attached, Attachments, Limits, Patch, Phase, Sandbox, resolve};
use patchhost_runtime::assembly::{ChunkHeader, Duplicates};
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions, ExpertParallel};
use patchhost_runtime::error::RuntimeError;
use patchhost_runtime::kv::KvCache;
use patchhost_runtime::lora::AdapterBuilder;
use patchhost_runtime::model::{Rows, Sequence};
use patchhost_runtime::refit::{Begin, Outcome, RefitHooks};
use patchhost_runtime::weights::Matrix;
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

/// A patch that is ready.
pub fn patch(name: &str, settings: &[(&str, &str)]) -> Arc<Patch> {
    let candidate = resolve(name).unwrap();
    let how = candidate.default_verification();
    let settings: Vec<(String, String)> = settings.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let compiled = candidate.verify(&how).unwrap().audit().unwrap().compile(&Sandbox::new(2).unwrap()).unwrap();
    compiled.ready(&settings, Limits::default()).unwrap()
}

/// Refits a serving engine with a changed checkpoint; the error. The old weights must serve on.
#[track_caller]
fn refused_refit(name: &str, edit: impl FnOnce(&mut Vec<Tensor>)) -> String {
    let (_tmp, folder) = model(name);
    let engine = engine(&folder);
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap();
    let before = (engine.live().unwrap().digest(engine.registry()), logits(&engine, &[IDS]));
    edit_tensors(&folder, edit);
    let error = engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap_err().to_string();
    assert_eq!((engine.live().unwrap().digest(engine.registry()), logits(&engine, &[IDS])), before);
    error
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

/// B2: patches attach only when the engine is up, and not while a refit runs.
#[test]
fn item_01_a_patch_in_the_wrong_phase_is_refused() {
    let (_tmp, folder) = model("qwen3_moe");
    let engine = engine(&folder);
    let mut attached = Attachments::default();
    let arch = "Qwen3MoeForCausalLM";
    let moe_loader = || patch("moe_loader", &[]);
    let early = attached.attach(moe_loader(), Phase::of(None), arch).unwrap_err();
    assert!(
        matches!(&early, AttachError::WrongPhase { patch, is: Phase::Built, .. } if patch == "moe_loader"),
        "{early}"
    );
    assert!(attached.entries().is_empty() && attached.set().loader_map().is_none());
    assert_eq!(attached.attach(moe_loader(), Phase::of(Some(&engine)), arch), Ok(Attached::Now));

    let hooks = RefitHooks { loader: attached.set().loader_map(), ..RefitHooks::default() };
    engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap();
    let before = engine.live().unwrap().digest(engine.registry());
    let refit = engine.begin(Begin::default(), &hooks).unwrap();
    let during = attached.attach(patch("fp8_block", &[]), Phase::of(Some(&engine)), arch).unwrap_err();
    assert!(matches!(during, AttachError::WrongPhase { is: Phase::Refitting, .. }), "{during}");
    let generation = moe_loader().generation();
    assert!(attached.detach(&generation, Phase::of(Some(&engine))).is_err());
    refit.abort();
    assert_eq!(engine.live().unwrap().digest(engine.registry()), before);
    assert_eq!(attached.attach(patch("fp8_block", &[]), Phase::of(Some(&engine)), arch), Ok(Attached::Now));

    let ran = patchhost(["run", "--simulate", "wrong-phase", "--component", "fp8_block"]);
    insta::assert_snapshot!("wrong_phase", ran.refused(1, std::path::Path::new("/nowhere")));
    assert_eq!(ran.stdout, "");
}

#[test]
fn item_02_attaching_twice_is_once_and_detaching_restores_every_bit() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = engine(&folder);
    let mut attached = Attachments::default();
    let arch = engine.info().architecture.clone();
    let refit = |attached: &Attachments| {
        let set = attached.set();
        let hooks = RefitHooks { loader: set.loader_map(), quant: set.block_quant(), ..RefitHooks::default() };
        engine.refit(&checkpoint, &hooks, QUIET).unwrap();
        (engine.live().unwrap().digest(engine.registry()), logits(&engine, &[IDS]))
    };
    attached.attach(patch("moe_loader", &[]), Phase::of(Some(&engine)), &arch).unwrap();
    let plain = refit(&attached);
    let fp8 = patch("fp8_block", &[]);
    attached.attach(fp8.clone(), Phase::of(Some(&engine)), &arch).unwrap();
    let quantized = refit(&attached);
    assert_ne!(quantized, plain);
    assert_eq!(attached.attach(patch("fp8_block", &[]), Phase::of(Some(&engine)), &arch), Ok(Attached::Already));
    assert_eq!(attached.entries().len(), 2);
    assert_eq!(refit(&attached), quantized);
    // Other settings are another generation, and the hook is taken.
    let other = attached.attach(patch("fp8_block", &[("profile", "hf")]), Phase::of(Some(&engine)), &arch);
    assert!(matches!(other, Err(AttachError::Conflict(_))), "{other:?}");
    assert_eq!(attached.detach(&fp8.generation(), Phase::of(Some(&engine))), Ok(true));
    assert_eq!(attached.detach(&fp8.generation(), Phase::of(Some(&engine))), Ok(false));
    assert_eq!(refit(&attached), plain);
}

/// H2: a patch that does not know the model does nothing and says nothing. Here it says so.
#[test]
fn item_03_a_patch_for_other_models_is_visibly_not_applicable() {
    let mut attached = Attachments::default();
    let answer = attached.attach(patch("moe_loader", &[]), Phase::EngineUp, "LlamaForCausalLM").unwrap();
    assert!(matches!(&answer, Attached::NotApplicable { reason } if reason.contains("LlamaForCausalLM")), "{answer:?}");
    assert!(attached.set().loader_map().is_none());
    let (_tmp, folder) = model("llama");
    let args = ["explain", folder.to_str().unwrap(), "--component", "moe_loader", "--format", "json"];
    let ran = patchhost(args.iter()).good().json();
    let row = &ran["patches"][0];
    assert_eq!((row["name"].as_str(), row["state"].as_str()), (Some("moe_loader"), Some("not applicable")));
    assert!(row["reason"].as_str().unwrap().contains("LlamaForCausalLM"), "{row}");
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

/// H13: the seed post-processes once, after the first load, and a refit loses it. Every family, every combination.
#[test]
fn item_05_a_refit_equals_a_fresh_load_for_every_family_and_layout() {
    let mut tried = 0;
    for entry in std::fs::read_dir(crate::support::data("oracle")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (_tmp, folder) = model(&name);
        let ran = patchhost(["verify-refit", folder.to_str().unwrap(), "--format", "json"]).good().json();
        let combinations = ran["combinations"].as_array().unwrap();
        assert_eq!(combinations.len(), 8, "{name}");
        assert_eq!(ran["equal"], true, "{name}");
        let changed = |passes: &[&str]| {
            let found = combinations.iter().find(|c| c["passes"] == serde_json::json!(passes)).unwrap();
            (found["tensors"].as_u64().unwrap(), found["sha256"].as_str().unwrap().to_string())
        };
        // A pass that changes nothing would prove nothing.
        let plain = changed(&[]).1;
        for pass in ["ue8m0", "col-major-align"] {
            let (tensors, sha256) = changed(&[pass]);
            assert!(tensors > 0 && sha256 != plain, "{name}: {pass}");
        }
        let experts = combinations[0]["params"]
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["name"].as_str().unwrap().ends_with(".w13_weight"));
        assert_eq!(changed(&["swap-w13"]).1 != plain, experts, "{name}");
        tried += 1;
    }
    assert!(tried >= 33);
}

#[test]
fn item_06_an_expert_without_w3_is_refused_and_the_old_weights_serve() {
    let name = "model.layers.1.mlp.experts.2.up_proj.weight";
    let error = refused_refit("qwen3_moe", |t| t.retain(|t| t.0 != name));
    assert!(error.contains(&format!("nothing writes `{name}`")), "{error}");
}

#[test]
fn item_07_an_fp8_weight_without_its_scale_is_refused() {
    let tmp = tmp();
    let folder = crate::support::copy_folder(&crate::support::data("fp8/deepseek_style"), &tmp.path().join("m"));
    std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
    let engine = engine(&folder);
    let hooks = hooks(&["moe_loader"]);
    engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap();
    let before = engine.live().unwrap().digest(engine.registry());
    let mut dropped = String::new();
    edit_tensors(&folder, |tensors| {
        let at = tensors.iter().position(|t| t.0.ends_with("_scale_inv")).unwrap();
        dropped = tensors.remove(at).0;
    });
    let error = engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap_err().to_string();
    let weight = dropped.trim_end_matches("_scale_inv");
    assert!(error.contains(&format!("`{weight}`")) && error.contains("its scale is missing"), "{error}");
    assert_eq!(engine.live().unwrap().digest(engine.registry()), before);
}

#[test]
fn item_08_a_duplicate_is_refused_or_the_last_wins_if_asked() {
    let (_tmp, folder) = model("llama");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = engine(&folder);
    engine.refit(&checkpoint, &RefitHooks::default(), QUIET).unwrap();
    let norm = checkpoint.get("model.norm.weight").unwrap();
    let zeros = vec![0u8; norm.data.len()];
    let header = ChunkHeader { name: &norm.name, dtype: norm.stored, shape: &norm.shape, offset: 0 };
    let send = |duplicates, last: &[u8]| {
        let begin = Begin { duplicates, ..Begin::default() };
        let mut refit = engine.begin(begin, &RefitHooks::default()).unwrap();
        checkpoint.tensors().for_each(|t| refit.tensor(t).unwrap());
        refit.chunk(&header, last)?;
        Ok(refit.finish(QUIET).unwrap().publish())
    };
    let before = engine.live().unwrap().digest(engine.registry());
    let error: RuntimeError = send(Duplicates::Refuse, &zeros).unwrap_err();
    assert!(error.to_string().contains("`model.norm.weight`") && error.to_string().contains("twice"), "{error}");
    assert_eq!(engine.live().unwrap().digest(engine.registry()), before);
    send(Duplicates::LastWins, &zeros).unwrap();
    assert_ne!(engine.live().unwrap().digest(engine.registry()), before);
    send(Duplicates::LastWins, &norm.data).unwrap();
    assert_eq!(engine.live().unwrap().digest(engine.registry()), before);
}

/// B15: an expert that another rank holds is no error.
#[test]
fn item_09_experts_of_other_ranks_are_skipped_and_counted() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let whole = engine(&folder);
    whole.refit(&checkpoint, &hooks, QUIET).unwrap();
    let whole = whole.live().unwrap();
    for (rank, size) in [(0, 2), (1, 2), (2, 4), (1, 3)] {
        let options =
            EngineOptions { expert_parallel: Some(ExpertParallel { rank, size }), ..EngineOptions::default() };
        let engine = Engine::open(&folder, options).unwrap();
        let report = engine.refit(&checkpoint, &hooks, QUIET).unwrap();
        let live = engine.live().unwrap();
        let local = live.local_experts().unwrap();
        // Two layers of four experts with three matrices each.
        assert_eq!(report.not_local, 2 * 3 * (4 - local.len()), "{rank}/{size}");
        let w13 = engine.registry().find("model.layers.0.mlp.experts.w13_weight").unwrap();
        for (i, part) in live.parts(w13).iter().enumerate() {
            let held = local.contains(&(i / 2));
            assert_eq!(part.matrix.bytes() > 0, held, "{rank}/{size}: part {i}");
            assert!(!held || part.matrix.bit_equal(&whole.parts(w13)[i].matrix), "{rank}/{size}: part {i}");
        }
        let mut cache = engine.model().new_cache();
        let mut batch = [Sequence { tokens: IDS, cache: &mut cache }];
        let error = engine.model().forward(&live, &mut batch, Rows::Last).unwrap_err().to_string();
        assert!(error.contains("expert parallelism"), "{error}");
    }
    // A missing expert of one's own is an error still.
    let options =
        EngineOptions { expert_parallel: Some(ExpertParallel { rank: 1, size: 2 }), ..EngineOptions::default() };
    for (expert, fails) in [(0, false), (3, true)] {
        let name = format!("model.layers.0.mlp.experts.{expert}.down_proj.weight");
        let some = Checkpoint::from_tensors(checkpoint.tensors().filter(|t| t.name != name).cloned()).unwrap();
        let result = Engine::open(&folder, options).unwrap().refit(&some, &hooks, QUIET);
        assert_eq!(result.is_err_and(|e| e.to_string().contains(&name)), fails, "{name}");
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

/// vLLM's FlashInfer kernels want [up; gate]. Swapping moves weight and scale alike, twice is nothing, and the model says
/// the same.
#[test]
fn item_15_the_swap_of_w13_is_an_involution_on_weight_and_scale() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let fp8 = hooks(&["moe_loader", "fp8_block"]);
    let plain = engine(&folder);
    plain.refit(&checkpoint, &fp8, QUIET).unwrap();
    let says = logits(&plain, &[IDS]);
    let layout = patch("gpu_layout", &[("passes", "swap-w13,col-major-align")]).layout();
    let engine = engine(&folder);
    engine.refit(&checkpoint, &RefitHooks { layout, ..fp8 }, QUIET).unwrap();
    let (live, before) = (engine.live().unwrap(), plain.live().unwrap());
    let mut swapped = 0;
    for (param, decl) in engine.registry().params().iter().enumerate() {
        let back = live.checkpoint_parts(param);
        assert!(back.iter().zip(before.parts(param)).all(|(a, b)| a.matrix.bit_equal(&b.matrix)), "{}", decl.name);
        if live.swapped(param) {
            let Matrix::Fp8 { q, scales, .. } = &live.parts(param)[0].matrix else { panic!("{}", decl.name) };
            let Matrix::Fp8 { q: up, scales: up_scales, .. } = &before.parts(param)[1].matrix else { panic!() };
            assert!(q == up && scales[0] == up_scales[0], "{}", decl.name);
            swapped += 1;
        }
    }
    assert_eq!(swapped, 2);
    assert_eq!(logits(&engine, &[IDS]), says, "another order in memory is the same model, bit for bit");
}

/// H19: verl's sender cast everything, and the router bias became bf16.
#[test]
fn item_16_the_f32_router_bias_stays_f32() {
    let (_tmp, folder) = model("deepseek_v3");
    let name = "e_score_correction_bias";
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = engine(&folder);
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    engine.refit(&checkpoint, &hooks, QUIET).unwrap();
    let param = engine.registry().params().iter().position(|p| p.name.ends_with(name)).unwrap();
    let stored = checkpoint.tensors().find(|t| t.name.ends_with(name)).unwrap();
    let live = engine.live().unwrap();
    let Matrix::F32(values) = &live.parts(param)[0].matrix else { panic!("not f32") };
    assert_eq!(f32_bytes(values), stored.data[..]);
    assert!(values.iter().any(|v| bf16::from_f32(*v).to_f32() != *v), "bf16 would have kept these values");

    let before = engine.live().unwrap().digest(engine.registry());
    edit_tensors(&folder, |tensors| {
        for t in tensors.iter_mut().filter(|t| t.0.ends_with(name)) {
            (t.1, t.3) = (Dtype::BF16, bf16_bytes(&read_f32(&t.3)));
        }
    });
    let narrowed = Checkpoint::open(&folder).unwrap();
    let error = engine.refit(&narrowed, &hooks, QUIET).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("bits would be lost"), "{error}");
    assert_eq!(engine.live().unwrap().digest(engine.registry()), before);
    let mut refit = engine.begin(Begin { allow_narrowing: true, ..Begin::default() }, &hooks).unwrap();
    narrowed.tensors().for_each(|t| refit.tensor(t).unwrap());
    refit.finish(QUIET).unwrap().publish();
    assert!(matches!(&engine.live().unwrap().parts(param)[0].matrix, Matrix::Bf16(_)));
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
fn item_18_an_adapter_in_three_chunks_equals_one() {
    // Any number and order of chunks, and every adapter: tests/suite/lora.rs. Here the number that the list says.
    let (_tmp, folder) = model("qwen3_moe");
    let engine = crate::oracle::loaded(&folder, &hooks(&["moe_loader"]));
    let adapter = crate::support::data("lora/qwen3_moe_attention");
    let config = std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    let tensors = Checkpoint::open(&adapter.join("adapter_model.safetensors")).unwrap();
    let says = |chunks: usize| {
        let mut builder = AdapterBuilder::new("a", config.clone());
        for t in tensors.tensors() {
            let size = t.data.len().div_ceil(chunks);
            for (i, part) in t.data.chunks(size).enumerate() {
                let header = ChunkHeader { name: &t.name, dtype: t.stored, shape: &t.shape, offset: i * size };
                builder.chunk(&header, part).unwrap();
            }
        }
        let patch = crate::lora::lora_patch("lora_tensors", &[]);
        let adapter = engine.load_adapter(builder, patch.as_ref()).unwrap();
        crate::lora::logits_with(&engine, Some(adapter), IDS)
    };
    assert_eq!(says(3), says(1));
    assert_ne!(says(1), logits(&engine, &[IDS]));
}

/// B45: the seed removes the adapter and adds the next, with a window between. Here a sequence keeps the one it began with.
#[test]
fn item_19_a_sequence_keeps_its_adapter_and_says_which() {
    let (_tmp, folder) = model("qwen3_moe");
    let engine = crate::oracle::loaded(&folder, &hooks(&["moe_loader"]));
    let patch = crate::lora::lora_patch("lora_tensors", &[]);
    let load = |factor: f32| {
        let adapter = crate::support::data("lora/qwen3_moe_attention");
        let config = std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
        let mut builder = AdapterBuilder::new("a", config);
        for (name, dtype, shape, bytes) in read(&adapter.join("adapter_model.safetensors")) {
            let scaled: Vec<f32> = read_f32(&bytes).iter().map(|v| v * factor).collect();
            let header = ChunkHeader { name: &name, dtype, shape: &shape, offset: 0 };
            builder.chunk(&header, &f32_bytes(&scaled)).unwrap();
        }
        engine.load_adapter(builder, patch.as_ref()).unwrap()
    };
    let weights = engine.live().unwrap();
    let step = |cache: &mut KvCache, tokens: &[u32]| -> Vec<f32> {
        let mut batch = [Sequence { tokens, cache }];
        engine.model().forward(&weights, &mut batch, Rows::Last).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let first = load(1.0);
    let mut undisturbed = engine.model().new_cache_with(Some(first.clone()));
    let expected = (step(&mut undisturbed, &IDS[..3]), step(&mut undisturbed, &IDS[3..]));
    let mut running = engine.model().new_cache_with(engine.adapters().get("a"));
    let before = step(&mut running, &IDS[..3]);
    let second = load(-0.5);
    assert!(second.version() > first.version());
    assert_eq!((before, step(&mut running, &IDS[3..])), expected, "the running sequence kept its adapter");
    assert_eq!(running.adapter().unwrap().version(), first.version());
    let mut fresh = engine.model().new_cache_with(engine.adapters().get("a"));
    assert_ne!(step(&mut fresh, &IDS[..3]), expected.0);
    assert_eq!(fresh.adapter().unwrap().version(), second.version());
}

/// B47: padding rows of the vocabulary. The model is made to want nothing else.
#[test]
fn item_20_ids_beyond_the_vocabulary_are_never_sampled() {
    let tmp = tmp();
    let folder =
        crate::support::copy_folder(&crate::support::repo().join("models/tiny-shakespeare-moe"), &tmp.path().join("m"));
    // 64 rows more, each a large multiple of a row that exists: one of them is the most likely token everywhere.
    let mut vocabulary = 0;
    edit_tensors(&folder, |tensors| {
        for t in tensors.iter_mut().filter(|t| t.0 == "lm_head.weight" || t.0 == "model.embed_tokens.weight") {
            let cols = t.2[1];
            vocabulary = t.2[0];
            let values: Vec<f32> = t.3.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
            let rows = values.chunks_exact(cols).take(64).flatten();
            let padding: Vec<f32> =
                rows.enumerate().map(|(i, v)| v * if i / cols % 2 == 0 { 9.0 } else { -9.0 }).collect();
            t.3.extend(bf16_bytes(&padding));
            t.2[0] += 64;
        }
    });
    crate::support::edit_config(&folder, |c| c["vocab_size"] = (vocabulary + 64).into());
    let run = |more: &[&str]| {
        let mut args =
            vec!["run", folder.to_str().unwrap(), "--prompt", "KING", "--max-tokens", "12", "--format", "json"];
        args.extend(more);
        patchhost(args)
    };
    let ids = |ran: serde_json::Value| -> Vec<u64> {
        ran["completions"][0]["token_ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect()
    };
    for settings in [&["--temperature", "0"][..], &["--temperature", "1.5", "--seed", "3"]] {
        let ran = run(settings).good().json();
        assert_eq!(ran["masked_ids"], 64);
        let sampled = ids(ran);
        assert!(sampled.len() == 12 && sampled.iter().all(|id| *id < vocabulary as u64), "{sampled:?}");
        let without = run(&[settings, &["--no-default-patches", "--component", "moe_loader"]].concat());
        // Without the patch such an id is sampled, and cannot be decoded.
        assert!(without.code != 0 || ids(without.json()).iter().any(|id| *id >= vocabulary as u64));
    }
    let banned = run(&["--temperature", "0", "--component", "vocab_mask", "--set", "banned=3,4,5"]).good().json();
    assert_eq!(banned["masked_ids"], 67);
}

#[test]
fn item_21_a_guest_that_fails_in_a_refit_rolls_it_back() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = engine(&folder);
    engine.refit(&checkpoint, &hooks(&["moe_loader", "fp8_block"]), QUIET).unwrap();
    let (before, says) = (engine.live().unwrap().digest(engine.registry()), logits(&engine, &[IDS]));
    let evil = |name: &str| crate::support::evil(name);
    for (name, settings, word) in [
        ("trap_nth", &[("n", "3")][..], "unreachable"),
        ("spin", &[], "fuel"),
        ("grow", &[], "memory"),
        ("saturating", &[], "contract"),
    ] {
        let hooks = hooks_with(&[("moe_loader", &[]), (&evil(name), settings)]);
        let error = engine.refit(&checkpoint, &hooks, QUIET).unwrap_err().to_string();
        assert!(error.contains(word), "{name}: {error}");
        assert_eq!(engine.live().unwrap().digest(engine.registry()), before, "{name}");
        assert_eq!(logits(&engine, &[IDS]), says, "{name}");
        assert_eq!(engine.version(), 1, "{name}");
    }
    engine.refit(&checkpoint, &hooks(&["moe_loader", "fp8_block"]), QUIET).unwrap();
    assert_eq!(engine.live().unwrap().digest(engine.registry()), before);
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
fn item_23_caches_of_old_weights_are_invalid_after_a_publish() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = engine(&folder);
    let fp8 = hooks(&["moe_loader", "fp8_block"]);
    engine.refit(&checkpoint, &fp8, QUIET).unwrap();
    let run = |cache: &mut KvCache, tokens: &[u32]| {
        let mut batch = [Sequence { tokens, cache }];
        engine.model().forward(&engine.live().unwrap(), &mut batch, Rows::Last).map(|_| ())
    };
    let (mut cache, mut kept) = (engine.model().new_cache(), engine.model().new_cache());
    run(&mut cache, &IDS[..3]).unwrap();
    run(&mut kept, &IDS[..3]).unwrap();
    run(&mut cache, &IDS[3..4]).unwrap();
    engine.refit(&checkpoint, &fp8, QUIET).unwrap();
    // Even if the new weights are the same: the publish counts.
    let error = run(&mut cache, &IDS[4..]).unwrap_err().to_string();
    assert!(error.contains("weights version 1") && error.contains("2 is published"), "{error}");
    assert_eq!(cache.len(), 4, "a refused pass changes nothing");
    kept.keep_across_publishes();
    run(&mut kept, &IDS[3..]).unwrap();
    run(&mut engine.model().new_cache(), IDS).unwrap();
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
