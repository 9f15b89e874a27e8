//! `guests/evil`, mirrored: each patch that misbehaves ends in an error of three parts and exit 3, the process lives, and
//! no output is written. Every guest of the folder must be named here.

use std::collections::BTreeSet;

use crate::support::{data, evil, matrix_file, patchhost, repo, tmp};

/// (guest, `--set`, words that the error must have), tried with `patchhost quantize`.
pub const QUANT: &[(&str, &[&str], &[&str])] = &[
    ("spin", &[], &["scales", "fuel"]),
    ("grow", &[], &["scales", "memory"]),
    ("recurse", &[], &["scales", "stack"]),
    ("too_many", &[], &["scales"]),
    ("too_few", &[], &["scales"]),
    ("huge_list", &[], &["scales"]),
    ("huge_length", &[], &["scales"]),
    ("nan_scales", &[], &["NaN"]),
    ("inf_scales", &[], &["inf"]),
    ("negative", &[], &["block ["]),
    ("zero", &[], &["block ["]),
    ("saturating", &[], &["block [", "448"]),
    ("crushing", &[], &["block [", "448"]),
    ("subtle", &[], &["block [", "448"]),
    ("not_pow2", &[], &["block [", "power of two"]),
    ("trap_nth", &["n=3"], &["scales"]),
    ("trap_configure", &[], &["configure"]),
    ("spin_describe", &[], &["describe", "fuel"]),
    ("wrong_decisions", &[], &["decide"]),
    ("bad_scheme", &[], &["decide"]),
    ("big_floor", &[], &["decide", "floor.eps"]),
    ("long_name", &[], &["describe"]),
    ("error_spam", &[], &["scales"]),
];

/// The same for loader maps, tried with `patchhost run` on a model with experts; the exit code, since a map that does
/// not fit is refused (1) and a map that breaks the interface has failed (3).
const LOADERS: &[(&str, i32, &[&str])] = &[
    ("loader_wrong_target", 1, &["which the runtime does not have"]),
    ("loader_overlap", 1, &["already writes"]),
    ("loader_short", 3, &["resolve"]),
    ("loader_spin", 3, &["resolve", "fuel"]),
];

/// Activation scales, tried with `patchhost run`.
const ACTIVATION: &[(&str, &[&str])] = &[
    ("activation_rule", &["activation rule", "divisor"]),
    ("activation_saturating", &["activation-scales", "[224, 448]"]),
    ("activation_short", &["activation-scales"]),
    ("activation_spin", &["activation-scales", "fuel"]),
];

/// `any_hook` and its faults in a layout, a mask or an observer, tried with `patchhost run`; the exit code (1: it breaks no
/// rule of the interface, and is refused; 3: it failed). Its lies about adapters: `lora.rs`.
const HOOKS: &[(&str, i32, &[&str])] = &[
    ("none", 0, &[]),
    ("layout-spin", 3, &["passes", "fuel"]),
    ("layout-short", 3, &["passes", "lists of passes for"]),
    ("layout-twice", 3, &["passes", "stands twice"]),
    ("layout-swap-everything", 1, &["swap-w13", "only fused expert weights"]),
    ("layout-align-everything", 1, &["col-major-align", "only FP8 weights"]),
    ("mask-spin", 3, &["masked", "fuel"]),
    ("mask-overlap", 3, &["masked", "range 1 is 4..6"]),
    ("mask-descending", 3, &["masked", "ascending"]),
    ("mask-empty", 3, &["masked", "range 0 is 3..3"]),
    ("mask-backwards", 3, &["masked", "range 0 is 5..3"]),
    ("mask-beyond", 3, &["masked", "below"]),
    ("mask-all", 3, &["masked", "nothing could be sampled"]),
    ("mask-many", 3, &["masked"]),
    ("observer-spin", 3, &["begin", "fuel"]),
    ("observer-trap-begin", 3, &["begin"]),
    ("observer-trap-tensors", 3, &["tensors"]),
    ("observer-veto-begin", 1, &["vetoes it: not today"]),
    ("observer-veto-tensors", 1, &["vetoes it: I do not like model.embed_tokens.weight"]),
    ("observer-veto-finish", 1, &["vetoes it: one too many"]),
    ("observer-long-reason", 3, &["begin", "5000 bytes"]),
    ("observer-huge-reason", 3, &["begin"]),
    ("observer-control-characters", 1, &["vetoes it: \\u{1b}[2J"]),
];

#[test]
fn hooks_that_lie_are_refused() {
    let any_hook = evil("any_hook");
    for (fault, code, words) in HOOKS {
        let setting = format!("any_hook.fault={fault}");
        let args = ["run", "--max-tokens", "2", "--no-kl", "--component", "fp8_block", "--component", &any_hook];
        let ran = patchhost(args.iter().copied().chain(["--set", &setting]));
        if *code == 0 {
            ran.good();
            continue;
        }
        let error = ran.refused(*code, std::path::Path::new("/nowhere"));
        for word in *words {
            assert!(error.contains(word), "{fault}: `{word}` is not in {error}");
        }
        assert!(!ran.stderr.contains('\u{1b}'), "{fault}: control characters reach the terminal");
    }
}

#[test]
fn every_evil_guest_is_tried() {
    let built: BTreeSet<String> = std::fs::read_dir(repo().join("guests/evil"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|x| x == "wasm"))
        .map(|p| p.file_stem().unwrap().to_str().unwrap().to_string())
        .collect();
    let tried: BTreeSet<String> = QUANT
        .iter()
        .map(|q| q.0)
        .chain(LOADERS.iter().map(|l| l.0))
        .chain(ACTIVATION.iter().map(|a| a.0))
        // `any_state` is tried in `state.rs`.
        .chain(["any_hook", "any_state", "any_wasi"])
        .map(str::to_string)
        .collect();
    assert_eq!(built, tried);
}

#[test]
fn quantize_survives_each() {
    let tmp = tmp();
    let input = matrix_file(tmp.path(), 1024, 300);
    let out = tmp.path().join("out.safetensors");
    for (guest, settings, words) in QUANT {
        let mut args = vec![
            "quantize".into(),
            input.display().to_string(),
            out.display().to_string(),
            "--component".into(),
            evil(guest),
        ];
        for s in *settings {
            args.extend(["--set".to_string(), s.to_string()]);
        }
        let ran = patchhost(&args);
        let text = ran.refused(3, tmp.path());
        for word in *words {
            assert!(text.contains(word), "{guest}: no `{word}` in {text}");
        }
        assert!(text.len() < 4096, "{guest}: {} bytes", text.len());
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{guest}: control characters");
        assert!(!out.exists(), "{guest}: half-written output");
    }
    let left: Vec<_> = std::fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["in.safetensors"], "temporary files were left behind");
}

#[test]
fn wrong_activation_scales_end_the_run() {
    for (guest, words) in ACTIVATION {
        let text = patchhost(["run", "--component", &evil(guest), "--max-tokens", "4"]).refused(3, &repo());
        for word in *words {
            assert!(text.contains(word), "{guest}: no `{word}` in {text}");
        }
    }
}

#[test]
fn an_output_that_existed_stays_as_it_was() {
    let tmp = tmp();
    let input = matrix_file(tmp.path(), 256, 256);
    let out = tmp.path().join("out.safetensors");
    std::fs::write(&out, b"precious").unwrap();
    let args = [
        "quantize".into(),
        input.display().to_string(),
        out.display().to_string(),
        "--component".into(),
        evil("trap_nth"),
    ];
    patchhost(args.iter().map(String::as_str).chain(["--set", "n=1", "--force"])).refused(3, tmp.path());
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
}

#[test]
fn loader_maps_that_lie_are_refused() {
    let tmp = tmp();
    let model = crate::support::copy_model("qwen3_moe", tmp.path());
    std::fs::remove_file(model.join("golden.safetensors")).unwrap();
    let ids = crate::support::ids_file(tmp.path(), &[1, 2, 3]);
    let out = tmp.path().join("out.safetensors");
    for (guest, code, words) in LOADERS {
        let ran = patchhost([
            "logits",
            &model.display().to_string(),
            "--ids",
            &ids.display().to_string(),
            "--out",
            &out.display().to_string(),
            "--component",
            &evil(guest),
        ]);
        let text = ran.refused(*code, tmp.path());
        for word in *words {
            assert!(text.contains(word), "{guest}: no `{word}` in {text}");
        }
        assert!(!out.exists());
    }
}

/// The host goes on after each failure: the same process loads a good patch and answers.
#[test]
fn the_process_lives_and_the_next_honest_call_works() {
    use patchhost::patch::{Candidate, Reviewing, Sandbox, Terms};
    use patchhost_runtime::hooks::Blocks;
    let sandbox = Sandbox::new(2).unwrap();
    let blocks = Blocks { tensor: "w", rows: 128, cols: 256, block_rows: 128, block_cols: 128, first_block: 0 };
    let start = |path: String, settings: &[(String, String)]| {
        let (candidate, terms) = (Candidate::from_file(path.as_ref()).unwrap(), Terms::settings(settings.to_vec()));
        Reviewing::default().start(candidate, &terms, &sandbox)
    };
    for guest in ["spin", "grow", "recurse", "huge_list"] {
        let patch = start(evil(guest), &[]).unwrap();
        let quant = patch.block_quant().unwrap();
        for _ in 0..3 {
            assert!(quant.scales(&blocks, &[1.0, 2.0]).is_err(), "{guest}");
        }
        assert!(patch.stats().instances_dropped >= 3, "{guest}: a trapped instance was kept");
    }
    // It traps on every third call of an instance: with a fresh instance after each trap, the others answer.
    let nth = start(evil("trap_nth"), &[("n".into(), "3".into())]).unwrap().block_quant().unwrap();
    let answers: Vec<bool> = (0..9).map(|_| nth.scales(&blocks, &[1.0, 2.0]).is_ok()).collect();
    assert_eq!(answers, [true, true, false, true, true, false, true, true, false]);
    let good = start(repo().join("guests/fp8_block.wasm").display().to_string(), &[]).unwrap().block_quant().unwrap();
    assert_eq!(good.scales(&blocks, &[448.0, 0.0]).unwrap(), [1.0, 1.0]);
}

#[test]
fn a_trap_in_the_middle_of_a_refit_leaves_the_old_weights() {
    use patchhost_runtime::checkpoint::Checkpoint;
    let folder = data("oracle").join("llama");
    let checkpoint = Checkpoint::open(&folder.join("model.safetensors")).unwrap();
    let engine = crate::oracle::loaded(&folder_without_golden(&folder).1, &crate::oracle::hooks(&["fp8_block"]));
    let before = engine.live().unwrap();
    let bad = crate::oracle::hooks(&[&evil("subtle")]);
    assert!(engine.refit(&checkpoint, &bad, &|_, _, _| {}).is_err());
    assert_eq!(engine.live().unwrap().first_difference(&before), None);
}

fn folder_without_golden(folder: &std::path::Path) -> (tempfile::TempDir, std::path::PathBuf) {
    let tmp = tmp();
    let to = crate::support::copy_model(folder.file_name().unwrap().to_str().unwrap(), tmp.path());
    std::fs::remove_file(to.join("golden.safetensors")).unwrap();
    (tmp, to)
}

/// The largest lists that the interface promises must fit into the memory and fuel of the bundled patches.
#[test]
fn the_largest_model_that_the_interface_promises_fits() {
    use patchhost_runtime::hooks::{Consumer, Decision, Dtype, ModelInfo, Placement, Role, TensorInfo};
    let hooks = crate::oracle::hooks(&["moe_loader", "fp8_block"]);
    let (layers, experts) = (128u32, 341u32);
    let info =
        |name: String, shape: &[u64]| TensorInfo { name, dtype: Dtype::Bf16, shape: shape.into(), role: Role::Expert };
    let mut checkpoint = Vec::new();
    let mut registry = Vec::new();
    for l in 0..layers {
        let block = format!("model.layers.{l}.mlp.experts");
        registry.push(info(format!("{block}.w13_weight"), &[experts.into(), 512, 1024]));
        registry.push(info(format!("{block}.w2_weight"), &[experts.into(), 1024, 256]));
        for e in 0..experts {
            checkpoint.push(info(format!("{block}.{e}.gate_proj.weight"), &[256, 1024]));
            checkpoint.push(info(format!("{block}.{e}.up_proj.weight"), &[256, 1024]));
            checkpoint.push(info(format!("{block}.{e}.down_proj.weight"), &[1024, 256]));
        }
    }
    assert!(checkpoint.len() > 130_000);
    let model = ModelInfo {
        architecture: "Qwen3MoeForCausalLM".into(),
        model_type: "qwen3_moe".into(),
        layers,
        experts,
        config: "{}".into(),
    };
    let placements = hooks.loader.unwrap().resolve(&model, &registry, &checkpoint).unwrap();
    assert!(placements.iter().all(|p| matches!(p, Placement::Place { .. })));
    let reader = Consumer { engine: "patchhost".into(), version: "0.1.0".into() };
    let decisions = hooks.quant.unwrap().decide(&model, &reader, &checkpoint).unwrap();
    assert!(decisions.iter().all(|d| matches!(d, Decision::Quantize(_))));
}
