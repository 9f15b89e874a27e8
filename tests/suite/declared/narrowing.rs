//! Element types of updates against those that the model is declared in.

use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::hooks::Dtype as Stored;
use patchhost_runtime::refit::RefitHooks;
use safetensors::tensor::Dtype;

use super::{cast, moved, push, tensors_of};
use crate::list::{engine, model};
use crate::oracle::hooks;
use crate::support::{Tensor, edit_config, patchhost, write};

/// Whether a name is one that must not lose bits, whatever config.json says.
fn exact(name: &str) -> bool {
    ["mlp.gate.weight", "lm_head.weight", "norm.weight", "bias", "shared_expert_gate.weight", "A_log"]
        .iter()
        .any(|end| name.ends_with(end))
}

fn loaded(folder: &std::path::Path, hooks: &RefitHooks) -> Engine {
    let engine = engine(folder);
    push(&engine, hooks, &tensors_of(folder), false).unwrap();
    engine
}

fn digest(engine: &Engine) -> String {
    engine.live().unwrap().digest(engine.registry())
}

/// FSDP sends its f32 masters: every tensor is rounded as if it came in its own type, before anything is quantized, and the
/// model's own file is taken afterwards.
#[test]
fn what_comes_wider_is_rounded_to_the_declared_type() {
    for name in ["qwen3_moe", "qwen2", "deepseek_v3", "qwen3_next", "mixtral", "qwen3_f16", "qwen3_moe_fused"] {
        for components in [&["moe_loader"][..], &["moe_loader", "fp8_block"]] {
            let hooks = hooks(components);
            let (_tmp, folder) = model(name);
            let own = tensors_of(&folder);
            let engine = loaded(&folder, &hooks);
            let first = digest(&engine);
            let masters: Vec<Tensor> = own.iter().map(moved).collect();
            // A buffer is computed in f32 and stays so.
            let of_file = |t: &Tensor| own.iter().find(|o| o.0 == t.0).unwrap().1;
            let buffer = |t: &Tensor| t.0.ends_with("e_score_correction_bias");
            let by_hand: Vec<Tensor> =
                masters.iter().map(|t| if buffer(t) { t.clone() } else { cast(t, of_file(t)) }).collect();
            let report = push(&engine, &hooks, &masters, false).unwrap();
            let rounded = digest(&engine);
            assert_ne!(rounded, first, "{name}");
            assert!(report.notes.iter().any(|n| n.contains("was rounded to")), "{name}: {:?}", report.notes);
            let expected = loaded(&folder, &hooks);
            let report = push(&expected, &hooks, &by_hand, false).unwrap();
            assert!(report.notes.is_empty(), "{name}: {:?}", report.notes);
            assert_eq!(rounded, digest(&expected), "{name} {components:?}");
            push(&engine, &hooks, &own, false).unwrap();
            assert_eq!(digest(&engine), first, "{name}: its own file");
        }
    }
}

/// Each in its turn: a tensor that was f32 in the first load and comes in bf16.
#[test]
fn what_was_f32_at_the_first_load_is_refused_in_bf16_by_name() {
    for name in ["qwen3_moe", "deepseek_v3", "qwen2_moe", "qwen3_next"] {
        let hooks = hooks(&["moe_loader", "fp8_block"]);
        let (_tmp, folder) = model(name);
        let kept: Vec<Tensor> =
            tensors_of(&folder).iter().map(|t| if exact(&t.0) { moved(t) } else { t.clone() }).collect();
        write(&folder.join("model.safetensors"), &kept);
        let engine = loaded(&folder, &hooks);
        let first = digest(&engine);
        let mut tried = 0;
        for (i, t) in kept.iter().enumerate().filter(|(_, t)| exact(&t.0)) {
            let mut low = kept.clone();
            low[i] = cast(t, Dtype::BF16);
            let error = push(&engine, &hooks, &low, false).unwrap_err().to_string();
            assert!(error.contains(&format!("tensor `{}`", t.0)) && error.contains("bits would be lost"), "{error}");
            assert!(error.contains("declared F32") && error.contains("allow_narrowing"), "{error}");
            assert_eq!(digest(&engine), first, "{name}: {}", t.0);
            tried += 1;
        }
        assert!(tried > 5, "{name}: {tried}");
        // All of them, allowed: they are stored as they came, and the declared types are what they were.
        let low: Vec<Tensor> = kept.iter().map(|t| cast(t, Dtype::BF16)).collect();
        let error = push(&engine, &hooks, &low, false).unwrap_err().to_string();
        assert!(error.contains("more tensors came so"), "{error}");
        let report = push(&engine, &hooks, &low, true).unwrap();
        assert!(report.notes.iter().any(|n| n.contains("narrowing is allowed")), "{:?}", report.notes);
        let gate = engine.registry().params().iter().position(|p| p.name.ends_with("gate.weight")).unwrap();
        assert_eq!(engine.live().unwrap().parts(gate)[0].matrix.dtype(), Stored::Bf16);
        assert!(push(&engine, &hooks, &low, false).is_err(), "allowed once");
        push(&engine, &hooks, &kept, false).unwrap();
        assert_eq!(digest(&engine), first);
        // For every sender.
        let options = EngineOptions { allow_narrowing: true, ..EngineOptions::default() };
        let lenient = Engine::open(&folder, options).unwrap();
        push(&lenient, &hooks, &kept, false).unwrap();
        push(&lenient, &hooks, &low, false).unwrap();
    }
}

/// A file in f32 under a config that names bf16: matrices may come in either, and are stored as they come.
#[test]
fn config_widens_the_span_of_matrices_only() {
    let hooks = hooks(&["moe_loader"]);
    let (_tmp, folder) = model("qwen3_moe");
    let wide: Vec<Tensor> = tensors_of(&folder).iter().map(moved).collect();
    write(&folder.join("model.safetensors"), &wide);
    let engine = loaded(&folder, &hooks);
    let some: Vec<Tensor> = wide.iter().map(|t| if exact(&t.0) { t.clone() } else { cast(t, Dtype::BF16) }).collect();
    push(&engine, &hooks, &some, false).unwrap();
    push(&engine, &hooks, &wide, false).unwrap();
    // Without the word of the config, or against it, bits would be lost.
    for named in [None, Some("float32")] {
        edit_config(&folder, |c| {
            let c = c.as_object_mut().unwrap();
            c.remove("dtype");
            c.remove("torch_dtype");
            c.extend(named.map(|n| ("torch_dtype".to_string(), n.into())));
        });
        let engine = loaded(&folder, &hooks);
        let error = push(&engine, &hooks, &some, false).unwrap_err().to_string();
        assert!(error.contains("bits would be lost"), "{named:?}: {error}");
        push(&engine, &hooks, &wide, false).unwrap();
    }
    // A bf16 file under a config that names f32: f32 is declared, and its own file is taken all the same.
    let own: Vec<Tensor> = wide.iter().map(|t| cast(t, Dtype::BF16)).collect();
    write(&folder.join("model.safetensors"), &own);
    let engine = loaded(&folder, &hooks);
    let first = digest(&engine);
    assert!(push(&engine, &hooks, &wide, false).unwrap().notes.is_empty());
    assert!(engine.live().unwrap().parts(0)[0].matrix.dtype() == Stored::F32);
    push(&engine, &hooks, &own, false).unwrap();
    assert_eq!(digest(&engine), first);
}

#[test]
fn half_types_are_ordered_by_their_precision() {
    let hooks = hooks(&[]);
    for (name, other, fits) in [("qwen3", Dtype::F16, true), ("qwen3_f16", Dtype::BF16, false)] {
        let (_tmp, folder) = model(name);
        let own = tensors_of(&folder);
        let engine = loaded(&folder, &hooks);
        let pushed: Vec<Tensor> = own.iter().map(|t| cast(t, other)).collect();
        let result = push(&engine, &hooks, &pushed, false).map_err(|e| e.to_string());
        match fits {
            true => assert!(result.unwrap().notes[0].contains("rounded to Bf16")),
            false => assert!(result.unwrap_err().contains("bits would be lost")),
        }
    }
    // Beyond the range of f16: a value that would become infinite.
    let (_tmp, folder) = model("qwen3_f16");
    let engine = loaded(&folder, &hooks);
    let mut masters: Vec<Tensor> = tensors_of(&folder).iter().map(moved).collect();
    let o = masters.iter_mut().find(|t| t.0.ends_with("layers.1.self_attn.o_proj.weight")).unwrap();
    let at = 4 * (3 * o.2[1] + 5);
    o.3[at..at + 4].copy_from_slice(&70_000f32.to_le_bytes());
    let error = push(&engine, &hooks, &masters, false).unwrap_err().to_string();
    assert!(error.contains("layers.1.self_attn.o_proj.weight") && error.contains("[3, 5] is 70000"), "{error}");
}

/// `refit --verify` compares with a fresh load in the declared types.
#[test]
fn the_command_line_goes_by_the_same_rule() {
    let (tmp, folder) = model("qwen3_moe");
    let from = tmp.path().join("from");
    std::fs::create_dir(&from).unwrap();
    let masters: Vec<Tensor> = tensors_of(&folder).iter().map(moved).collect();
    write(&from.join("model.safetensors"), &masters);
    let args = ["refit", folder.to_str().unwrap(), "--from", from.to_str().unwrap(), "--verify"];
    let text = patchhost(args).good().stdout;
    assert!(text.contains("was rounded to Bf16") && text.contains("verified"), "{text}");

    let gate = "model.layers.0.mlp.gate.weight";
    let kept: Vec<Tensor> =
        tensors_of(&folder).iter().map(|t| if t.0 == gate { moved(t) } else { t.clone() }).collect();
    write(&from.join("model.safetensors"), &tensors_of(&folder));
    write(&folder.join("model.safetensors"), &kept);
    let refused = patchhost(&args[..4]).refused(1, tmp.path());
    assert!(refused.contains(gate) && refused.contains("--allow-narrowing"), "{refused}");
    patchhost(args[..4].iter().chain(&["--allow-narrowing"])).good();
}
