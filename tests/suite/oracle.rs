//! Logits against transformers, and bitwise invariance. The oracles are made by `tests/oracle/make_oracle.py`.

use std::path::Path;

use patchhost::patch::{PatchSet, Reviewing, Sandbox, Terms, resolve};
use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::model::{Logits, Rows, Sequence};
use patchhost_runtime::refit::RefitHooks;

use crate::support::{data, read_f32};

/// Difference that f32 arithmetic in another order explains; anything above is a bug.
const TOLERANCE: f32 = 1e-4;

pub fn hooks(components: &[&str]) -> RefitHooks {
    hooks_with(&components.iter().map(|name| (*name, &[][..])).collect::<Vec<_>>())
}

/// Patches with settings.
pub fn hooks_with(components: &[(&str, &[(&str, &str)])]) -> RefitHooks {
    let sandbox = Sandbox::new(2).unwrap();
    let mut set = PatchSet::default();
    for (name, settings) in components {
        let terms = Terms::settings(settings.iter().copied());
        set.push(Reviewing::default().start(resolve(name).unwrap(), &terms, &sandbox).unwrap()).unwrap();
    }
    RefitHooks {
        loader: set.loader_map(),
        quant: set.block_quant(),
        activation: ActivationMode::Dynamic128,
        ..RefitHooks::default()
    }
}

pub fn loaded(folder: &Path, hooks: &RefitHooks) -> Engine {
    let engine = Engine::open(folder, EngineOptions::default()).unwrap();
    engine.refit(&Checkpoint::open(folder).unwrap(), hooks, &|_, _, _| {}).unwrap();
    engine
}

pub fn golden(folder: &Path) -> (Vec<u32>, Vec<f32>) {
    let file = Checkpoint::open(&folder.join("golden.safetensors")).unwrap();
    let ids = file.get("input_ids").unwrap().data.load().unwrap();
    let ids = ids.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32);
    (ids.collect(), read_f32(&file.get("logits").unwrap().data.load().unwrap()))
}

pub fn logits(engine: &Engine, batch: &[&[u32]]) -> Vec<f32> {
    let mut caches: Vec<_> = batch.iter().map(|_| engine.model().new_cache()).collect();
    let mut sequences: Vec<Sequence<'_>> =
        batch.iter().zip(&mut caches).map(|(tokens, cache)| Sequence { tokens, cache }).collect();
    let out = engine.model().forward(&engine.live().unwrap(), &mut sequences, Rows::All).unwrap();
    out.into_values()
}

/// The model folder of an oracle without its golden file, which is no shard of the model.
fn model_folder(name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let tmp = tempfile::tempdir().unwrap();
    let to = crate::support::copy_model(name, tmp.path());
    std::fs::remove_file(to.join("golden.safetensors")).unwrap();
    (tmp, to)
}

#[test]
fn every_oracle_agrees_with_transformers() {
    let hooks = hooks(&["moe_loader"]);
    let mut tried = 0;
    let mut names: Vec<_> = std::fs::read_dir(data("oracle")).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for folder in names.into_iter().filter(|p| p.join("golden.safetensors").is_file()) {
        let name = folder.file_name().unwrap().to_str().unwrap().to_string();
        let (ids, expected) = golden(&folder);
        let (_tmp, model) = model_folder(&name);
        let got = logits(&loaded(&model, &hooks), &[&ids]);
        assert_eq!(got.len(), expected.len(), "{name}");
        let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < TOLERANCE, "{name}: {worst}");
        tried += 1;
    }
    assert!(tried >= 33, "only {tried} oracles found");
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits())
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_on_how_the_prompt_is_split() {
    for name in ["qwen3_moe", "qwen2_moe", "llama", "deepseek_v3", "deepseek_v2_yarn", "qwen3_next", "olmoe_clip"] {
        for components in [&["moe_loader"][..], &["moe_loader", "fp8_block"]] {
            let (_tmp, folder) = model_folder(name);
            let components = if name == "llama" { &components[1..] } else { components };
            let engine = loaded(&folder, &hooks(components));
            let ids = golden(&data("oracle").join(name)).0;
            let alone = logits(&engine, &[&ids]);
            let vocab = engine.model().vocab();
            let batched = logits(&engine, &[&ids[..7], &ids, &ids[3..], &ids[..1]]);
            assert!(same_bits(&batched[7 * vocab..31 * vocab], &alone), "{name} {components:?}: in a batch");

            let weights = engine.live().unwrap();
            let mut cache = engine.model().new_cache();
            let mut stepwise = Vec::new();
            for chunk in [&ids[..5], &ids[5..6], &ids[6..7], &ids[7..20], &ids[20..]] {
                let mut batch = [Sequence { tokens: chunk, cache: &mut cache }];
                let out = engine.model().forward(&weights, &mut batch, Rows::All).unwrap();
                stepwise.extend(out.into_values());
            }
            assert!(same_bits(&stepwise, &alone), "{name} {components:?}: in steps");
        }
    }
}

/// A step that fails leaves keys, values and recurrent states as they were.
#[test]
fn a_refused_step_changes_no_state() {
    let (_tmp, folder) = model_folder("qwen3_next");
    let engine = loaded(&folder, &hooks(&["moe_loader"]));
    let ids = golden(&data("oracle").join("qwen3_next")).0;
    let alone = logits(&engine, &[&ids]);
    let weights = engine.live().unwrap();
    let mut cache = engine.model().new_cache();
    let mut step = |tokens: &[u32]| {
        let mut batch = [Sequence { tokens, cache: &mut cache }];
        engine.model().forward(&weights, &mut batch, Rows::All).map(Logits::into_values)
    };
    let mut got = step(&ids[..9]).unwrap();
    assert!(step(&[1_000_000]).is_err());
    got.extend(step(&ids[9..]).unwrap());
    assert!(same_bits(&got, &alone));
}

/// What a checkpoint carries beyond the text model is ignored with a reason; anything else unknown is refused.
#[test]
fn prediction_layers_and_vision_towers_are_ignored_by_name() {
    use patchhost_runtime::refit::Outcome;
    use safetensors::tensor::Dtype;
    for (name, stray, reason) in [
        ("deepseek_v3", "model.layers.2.eh_proj.weight", "multi-token prediction"),
        ("deepseek_v3", "model.layers.2.mlp.experts.0.gate_proj.weight", "multi-token prediction"),
        ("qwen3_next", "mtp.fc.weight", "multi-token prediction"),
        ("kimi_vl", "vision_tower.patch_embed.proj.weight", "vision tower"),
        ("qwen3_vl_moe", "model.visual.merger.mlp.0.weight", "vision tower"),
        ("deepseek_v3", "model.layers.7.eh_proj.weight", ""),
        ("qwen3_moe", "model.visual.merger.mlp.0.weight", ""),
    ] {
        let (_tmp, folder) = model_folder(name);
        crate::support::edit_tensors(&folder, |t| {
            t.retain(|t| t.0 != stray);
            t.push((stray.into(), Dtype::BF16, vec![2], vec![0; 4]));
        });
        let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
        let explained = engine.explain(&Checkpoint::open(&folder).unwrap(), &hooks(&["moe_loader"]));
        match reason {
            "" => assert!(explained.unwrap_err().to_string().contains(stray), "{name} {stray}"),
            reason => {
                let outcome = explained.unwrap().into_iter().find(|o| o.name == stray).unwrap().outcome;
                assert!(
                    matches!(&outcome, Outcome::Ignored { reason: r } if r.contains(reason)),
                    "{stray}: {outcome:?}"
                );
            }
        }
    }
}

/// Every family in FP8: the projections are quantized, what must not be is kept, and the logits stay near.
#[test]
fn every_family_runs_in_fp8() {
    use patchhost_runtime::refit::Outcome;
    for name in ["deepseek_v3", "deepseek_v2_groups", "olmoe", "qwen3_next", "qwen3_vl_moe", "kimi_vl"] {
        let (_tmp, folder) = model_folder(name);
        let hooks = hooks(&["moe_loader", "fp8_block"]);
        let engine = loaded(&folder, &hooks);
        let (ids, expected) = golden(&data("oracle").join(name));
        let m = patchhost_runtime::metrics::mismatch(&expected, &logits(&engine, &[&ids]), engine.model().vocab());
        assert!(m.kl > 1e-6 && m.kl < 0.5, "{name}: {m:?}");
        for o in engine.explain(&Checkpoint::open(&folder).unwrap(), &hooks).unwrap() {
            let never =
                ["norm", "gate.weight", "e_score", "A_log", "dt_bias", "conv1d", "in_proj_ba", "embed", "lm_head"];
            let quantized = matches!(o.outcome, Outcome::Quantized { .. });
            let kept = never.iter().any(|n| o.name.contains(n)) || matches!(o.outcome, Outcome::Ignored { .. });
            assert_eq!(quantized, !kept && !o.name.ends_with("bias"), "{name}: {o:?}");
        }
    }
}

#[test]
fn one_thread_and_two_give_the_same_bits() {
    let (_tmp, folder) = model_folder("qwen2_moe");
    let ids = golden(&data("oracle").join("qwen2_moe")).0;
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let engine = loaded(&folder, &hooks(&["moe_loader", "fp8_block"]));
            (logits(&engine, &[&ids]), engine.live().unwrap())
        })
    };
    let ((one, weights_one), (two, weights_two)) = (run(1), run(2));
    assert!(same_bits(&one, &two));
    assert_eq!(weights_one.first_difference(&weights_two), None);
}

#[test]
fn fp8_weights_move_the_logits_a_little_and_not_a_lot() {
    let (_tmp, folder) = model_folder("qwen3_moe");
    let (ids, expected) = golden(&data("oracle").join("qwen3_moe"));
    let engine = loaded(&folder, &hooks(&["moe_loader", "fp8_block"]));
    let got = logits(&engine, &[&ids]);
    let m = patchhost_runtime::metrics::mismatch(&expected, &got, engine.model().vocab());
    assert!(m.kl > 1e-6 && m.kl < 0.5, "{m:?}");
}

#[test]
fn positions_beyond_the_model_are_refused_and_the_cache_survives() {
    let (_tmp, folder) = model_folder("llama");
    let engine = loaded(&folder, &RefitHooks::default());
    let weights = engine.live().unwrap();
    let mut cache = engine.model().new_cache();
    let forward = |tokens: &[u32], cache: &mut _| {
        engine.model().forward(&weights, &mut [Sequence { tokens, cache }], Rows::Last).map(|l| l.len())
    };
    assert!(forward(&[1, 2, 3], &mut cache).is_ok());
    let far = vec![1; engine.model().max_positions()];
    assert!(forward(&far, &mut cache).unwrap_err().to_string().contains("max_position_embeddings"));
    assert!(forward(&[1_000_000], &mut cache).unwrap_err().to_string().contains("vocabulary"));
    assert!(forward(&[], &mut cache).is_err());
    assert_eq!(cache.len(), 3);
}

/// The bundled model against transformers (`tools/tiny_moe/verify_transformers.py` made the golden file).
#[test]
fn the_bundled_model_agrees_with_transformers() {
    use patchhost::checkpoint::bundled;
    let engine = Engine::new(bundled::CONFIG, EngineOptions::default()).unwrap();
    engine.refit(&bundled::checkpoint().unwrap(), &hooks(&["moe_loader"]), &|_, _, _| {}).unwrap();
    let (ids, expected) = golden(&crate::support::repo().join("tools/tiny_moe"));
    let got = logits(&engine, &[&ids]);
    let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(got.len() == expected.len() && worst < TOLERANCE, "{worst}");
}

/// Weight-only FP8 is the model with the weights q * s in f32 but for roundings: the kernels scale the sum of a block
/// instead of each weight. They differ by less than a hundredth of what quantizing changes.
#[test]
fn weight_only_fp8_equals_the_dequantized_model() {
    use safetensors::tensor::Dtype;
    for (name, with_loader) in [("qwen2_moe", &["moe_loader"][..]), ("llama_tied_bias", &[])] {
        let (_tmp, folder) = model_folder(name);
        let components: Vec<&str> = with_loader.iter().copied().chain(["fp8_block"]).collect();
        let mut weight_only = hooks(&components);
        weight_only.activation = ActivationMode::None;
        let fp8 = loaded(&folder, &weight_only);
        let live = fp8.live().unwrap();
        let mut tensors = Vec::new();
        for (param, decl) in fp8.registry().params().iter().enumerate() {
            for (i, part) in live.parts(param).iter().enumerate() {
                let mut values = vec![0.0; part.rows * part.cols];
                for (row, out) in values.chunks_mut(part.cols).enumerate() {
                    part.matrix.row(row, part.cols, out);
                }
                let shape = if decl.cols.is_some() { vec![part.rows, part.cols] } else { vec![part.rows] };
                let name = fp8.registry().checkpoint_name_of(param, i).unwrap().to_string();
                tensors.push((name, Dtype::F32, shape, crate::support::f32_bytes(&values)));
            }
        }
        crate::support::write(&folder.join("model.safetensors"), &tensors);
        let plain = loaded(&folder, &hooks(with_loader));
        let ids = golden(&data("oracle").join(name)).0;
        let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let (ours, exact) = (logits(&fp8, &[&ids]), logits(&plain, &[&ids]));
        let quantizing = apart(&exact, &golden(&data("oracle").join(name)).1);
        let off = apart(&ours, &exact);
        assert!(off < 1e-4 && off < quantizing / 100.0, "{name}: {off}, and {quantizing} by quantizing");
        assert!(live.bytes() < plain.live().unwrap().bytes() / 2, "{name}: nothing became FP8");
    }
}
