//! A refit publishes everything or nothing.

use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::refit::RefitHooks;

use crate::oracle::{hooks, logits};
use crate::support::{Tensor, copy_model, edit_tensors, tmp};

const QUIET: &(dyn Fn(usize, usize, &str) + Sync) = &|_, _, _| {};

fn model(name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let tmp = tmp();
    let folder = copy_model(name, tmp.path());
    std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
    (tmp, folder)
}

/// Refits with a changed checkpoint; the error; asserts that the live weights did not change in any bit.
#[track_caller]
fn refused(name: &str, edit: impl FnOnce(&mut Vec<Tensor>)) -> String {
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let (_tmp, folder) = model(name);
    let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
    engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap();
    let before = engine.live().unwrap();
    let says = logits(&engine, &[&[1, 2, 3]]);
    edit_tensors(&folder, edit);
    let error = engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap_err().to_string();
    let after = engine.live().unwrap();
    assert_eq!(after.version(), before.version());
    assert_eq!(after.first_difference(&before), None);
    assert_eq!(logits(&engine, &[&[1, 2, 3]]), says);
    assert!(error.contains("why: ") && error.contains("next: "), "{error}");
    error
}

fn drop_tensor(name: &'static str) -> impl FnOnce(&mut Vec<Tensor>) {
    move |tensors| {
        let before = tensors.len();
        tensors.retain(|t| t.0 != name);
        assert_eq!(tensors.len() + 1, before, "no tensor {name}");
    }
}

#[test]
fn a_missing_tensor_is_named() {
    for name in [
        "model.layers.1.mlp.experts.2.up_proj.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.self_attn.k_norm.weight",
        "model.embed_tokens.weight",
    ] {
        let error = refused("qwen3_moe", drop_tensor(name));
        assert!(error.contains(&format!("nothing writes `{name}`")), "{error}");
    }
    assert!(refused("llama", drop_tensor("lm_head.weight")).contains("lm_head.weight"));
}

#[test]
fn an_unknown_tensor_is_named_with_a_suggestion() {
    let error = refused("qwen3_moe", |t| {
        let mut stray = t.iter().find(|t| t.0 == "model.norm.weight").unwrap().clone();
        stray.0 = "model.norms.weight".into();
        t.push(stray);
    });
    assert!(error.contains("`model.norms.weight`") && error.contains("did you mean `model.norm.weight`"), "{error}");
}

#[test]
fn a_wrong_shape_is_named() {
    let error = refused("llama", |t| {
        let o = t.iter_mut().find(|t| t.0 == "model.layers.0.self_attn.o_proj.weight").unwrap();
        o.2.swap(0, 1);
        o.2 = vec![o.2[0] * o.2[1], 1];
    });
    assert!(error.contains("o_proj.weight") && error.contains("its shape is"), "{error}");
}

#[test]
fn an_expert_written_twice_is_refused() {
    // The fused form and the per-expert form of the same weights in one checkpoint.
    let (_tmp, fused) = model("qwen3_moe_fused");
    let tensors = crate::support::read(&fused.join("model.safetensors"));
    let gate_up = tensors.into_iter().find(|t| t.0.ends_with("layers.0.mlp.experts.gate_up_proj")).unwrap();
    let error = refused("qwen3_moe", |t| t.push(gate_up));
    assert!(error.contains("already writes") && error.contains("expert"), "{error}");
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name_block_and_index() {
    let error = refused("qwen3_moe", |t| {
        let w = t.iter_mut().find(|t| t.0 == "model.layers.1.mlp.experts.3.down_proj.weight").unwrap();
        let at = 2 * (5 * w.2[1] + 7);
        w.3[at..at + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    });
    assert!(error.contains("model.layers.1.mlp.experts.3.down_proj.weight"), "{error}");
    assert!(error.contains("index [5, 7]") && error.contains("block [0, 0]"), "{error}");
}

#[test]
fn fused_and_per_expert_names_give_the_same_bits() {
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let set = |name: &str| {
        let (_tmp, folder) = model(name);
        let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
        engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap();
        engine.live().unwrap()
    };
    assert_eq!(set("qwen3_moe").first_difference(&set("qwen3_moe_fused")), None);
    assert_eq!(set("qwen3_moe").first_difference(&set("qwen3_moe_sharded")), None);
}

#[test]
fn ten_refits_equal_a_fresh_load() {
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let (_tmp, folder) = model("mixtral");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
    let fresh = Engine::open(&folder, EngineOptions::default()).unwrap();
    fresh.refit(&checkpoint, &hooks, QUIET).unwrap();
    for round in 1..=10 {
        assert_eq!(engine.refit(&checkpoint, &hooks, QUIET).unwrap().version, round);
        assert_eq!(engine.live().unwrap().first_difference(&fresh.live().unwrap()), None);
    }
}

#[test]
fn without_a_loader_map_fused_experts_have_no_loader() {
    let (_tmp, folder) = model("mixtral");
    let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let error = engine.refit(&checkpoint, &RefitHooks::default(), QUIET).unwrap_err().to_string();
    assert!(error.contains("block_sparse_moe.experts.0.w1.weight") && error.contains("moe_loader"), "{error}");
    assert!(engine.live().is_err());
}

#[test]
fn two_models_in_one_process_keep_their_own_decisions() {
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let ((_a, moe), (_b, mixed)) = (model("qwen3_moe"), model("qwen3_moe_mixed"));
    let engines: Vec<Engine> = [&moe, &mixed]
        .iter()
        .map(|folder| {
            let engine = Engine::open(folder, EngineOptions::default()).unwrap();
            engine.refit(&Checkpoint::open(folder).unwrap(), &hooks, QUIET).unwrap();
            engine
        })
        .collect();
    let again = Engine::open(&moe, EngineOptions::default()).unwrap();
    again.refit(&Checkpoint::open(&moe).unwrap(), &hooks, QUIET).unwrap();
    assert_eq!(engines[0].live().unwrap().first_difference(&again.live().unwrap()), None);
}

/// Fused experts stored [E, in, out], as Qwen3-VL-MoE does: the patch sees it by the shape, the host turns them.
#[test]
fn transposed_fused_experts_give_the_same_bits() {
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let load = |turn: bool| {
        let (_tmp, folder) = model("qwen3_moe_fused");
        if turn {
            edit_tensors(&folder, |tensors| {
                let mut turned = 0;
                for t in tensors.iter_mut().filter(|t| t.2.len() == 3) {
                    let [experts, rows, cols] = t.2[..] else { unreachable!() };
                    let old = t.3.as_chunks::<2>().0.to_vec();
                    let at = |e: usize, c: usize, r: usize| old[(e * rows + r) * cols + c];
                    t.3 = (0..experts)
                        .flat_map(|e| (0..cols).flat_map(move |c| (0..rows).map(move |r| (e, c, r))))
                        .flat_map(|(e, c, r)| at(e, c, r))
                        .collect();
                    t.2 = vec![experts, cols, rows];
                    turned += 1;
                }
                assert_eq!(turned, 4);
            });
        }
        let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
        engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks, QUIET).unwrap();
        engine.live().unwrap()
    };
    assert_eq!(load(true).first_difference(&load(false)), None);
}
