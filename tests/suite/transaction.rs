//! A refit in chunks: whatever is sent, cut, left out or broken off, the old weights serve or the new ones do, and nothing
//! between.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use patchhost_runtime::assembly::ChunkHeader;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::error::{Result, RuntimeError};
use patchhost_runtime::refit::{Arrivals, Begin, Manifest, Promise, RefitHooks};
use rand::{Rng, SeedableRng};
use safetensors::tensor::Dtype;
use sha2::{Digest, Sha256};

use crate::oracle::{hooks, hooks_with};
use crate::support::{copy_model, edit_tensors, patchhost, tmp};

const QUIET: &(dyn Fn(usize, usize, &str) + Sync) = &|_, _, _| {};

fn model(name: &str) -> (tempfile::TempDir, PathBuf) {
    let tmp = tmp();
    let folder = copy_model(name, tmp.path());
    std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
    (tmp, folder)
}

/// An engine that serves the model, its tensors, and the same tensors with the sign of every third one turned.
fn serving(name: &str, hooks: &RefitHooks) -> (Engine, Checkpoint, Checkpoint) {
    let (_tmp, folder) = model(name);
    let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
    let old = Checkpoint::from_tensors(Checkpoint::open(&folder).unwrap().tensors().map(owned)).unwrap();
    edit_tensors(&folder, |tensors| {
        for t in tensors.iter_mut().step_by(3).filter(|t| t.1 == Dtype::BF16) {
            t.3.iter_mut().skip(1).step_by(2).for_each(|b| *b ^= 0x80);
        }
    });
    let new = Checkpoint::from_tensors(Checkpoint::open(&folder).unwrap().tensors().map(owned)).unwrap();
    engine.refit(&old, hooks, QUIET).unwrap();
    (engine, old, new)
}

fn owned(t: &CheckpointTensor) -> CheckpointTensor {
    let (bytes, len) = (t.data.load().unwrap().to_vec(), t.data.len());
    let data = patchhost_runtime::bytes::TensorBytes::new(std::sync::Arc::new(bytes), 0..len).unwrap();
    CheckpointTensor { data: data.into(), ..t.clone() }
}

fn digest(engine: &Engine) -> String {
    engine.live().unwrap().digest(engine.registry())
}

fn header(t: &CheckpointTensor, offset: usize) -> ChunkHeader<'_> {
    ChunkHeader { name: &t.name, dtype: t.stored, shape: &t.shape, offset }
}

/// Every tensor cut at random places, all pieces in random order.
fn pieces(checkpoint: &Checkpoint, seed: u64) -> Vec<(&CheckpointTensor, usize, usize)> {
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let mut all = Vec::new();
    for t in checkpoint.tensors() {
        let mut at = 0;
        while at < t.data.len() {
            let end = (at + rng.random_range(1..=t.data.len())).min(t.data.len());
            all.push((t, at, end));
            at = end;
        }
    }
    for i in (1..all.len()).rev() {
        all.swap(i, rng.random_range(0..=i));
    }
    all
}

fn send(refit: &mut Arrivals, pieces: &[(&CheckpointTensor, usize, usize)]) -> Result<()> {
    pieces.iter().try_for_each(|(t, start, end)| refit.chunk(&header(t, *start), &t.data.load().unwrap()[*start..*end]))
}

#[test]
fn chunks_in_any_order_give_the_bits_of_a_fresh_load() {
    for (name, components) in [
        ("qwen3_moe", &["moe_loader", "fp8_block"][..]),
        ("deepseek_v3", &["moe_loader", "fp8_block"]),
        ("llama", &["fp8_block"]),
        ("qwen3_f16", &[]),
    ] {
        let hooks = hooks(components);
        let (engine, _, new) = serving(name, &hooks);
        let fresh = Engine::new(&engine.info().config, EngineOptions::default()).unwrap();
        fresh.refit(&new, &hooks, QUIET).unwrap();
        for seed in 0..3 {
            let mut refit = engine.arrivals(Begin { version: Some(format!("step-{seed}")), ..Begin::default() });
            send(&mut refit, &pieces(&new, seed)).unwrap();
            let source = refit.finish().unwrap();
            let staged = engine.prepare(&source, &hooks, QUIET).unwrap();
            staged.verify().unwrap();
            assert_eq!(staged.weights().first_difference(&fresh.live().unwrap()), None, "{name}");
            assert_eq!(staged.publish().label, format!("step-{seed}"));
            assert_eq!((digest(&engine), engine.live().unwrap().label()), (digest(&fresh), &*format!("step-{seed}")));
        }
    }
}

#[test]
fn an_abort_at_any_point_leaves_every_bit() {
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let (engine, _, new) = serving("qwen3_moe", &hooks);
    let before = digest(&engine);
    let all = pieces(&new, 7);
    for cut in [0, 1, all.len() / 2, all.len() - 1, all.len()] {
        let mut refit = engine.arrivals(Begin::default());
        send(&mut refit, &all[..cut]).unwrap();
        match cut {
            // Broken off while chunks came.
            c if c < all.len() => drop(refit),
            // All came, and it is not published.
            _ => drop(engine.prepare(&refit.finish().unwrap(), &hooks, QUIET).unwrap()),
        }
        assert_eq!((digest(&engine), engine.version()), (before.clone(), 1), "after {cut} of {}", all.len());
    }
    // Nothing of them is left: the next one starts from nothing.
    let mut refit = engine.arrivals(Begin::default());
    send(&mut refit, &all[..all.len() - 1]).unwrap();
    let error = refit.finish().map(|_| ()).unwrap_err().to_string();
    let (missing, ..) = all.last().unwrap();
    assert!(error.contains(&missing.name), "{error}");
    assert_eq!(digest(&engine), before);
}

#[test]
fn one_refit_at_a_time() {
    let hooks = hooks(&["moe_loader"]);
    let (engine, _, new) = serving("qwen3_moe", &hooks);
    let source = |name: &str| {
        let begin = Begin { version: Some(name.into()), ..Begin::default() };
        engine.arrivals(begin).whole(new.clone()).unwrap()
    };
    let first = engine.prepare(&source("a"), &hooks, QUIET).unwrap();
    let error = engine.prepare(&source("b"), &hooks, QUIET).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("refit `b`") && error.to_string().contains("another refit"), "{error}");
    assert!(engine.is_refitting());
    // A refit that loads by itself waits for its turn.
    std::thread::scope(|s| {
        let waiting = s.spawn(|| engine.refit(&new, &hooks, QUIET).unwrap().version);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(first);
        assert_eq!(waiting.join().unwrap(), 2);
    });
    assert!(!engine.is_refitting());
}

fn promise(t: &CheckpointTensor) -> Promise {
    let sha256: String = Sha256::digest(&t.data.load().unwrap()[..]).iter().map(|b| format!("{b:02x}")).collect();
    Promise { dtype: Some(t.stored), shape: Some(t.shape.clone()), sha256: Some(sha256) }
}

#[test]
fn what_the_manifest_promises_must_come_as_promised() {
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let (engine, old, new) = serving("qwen3_moe", &hooks);
    let before = digest(&engine);
    let manifest =
        Manifest { tensors: new.tensors().map(|t| (t.name.clone(), promise(t))).collect::<BTreeMap<_, _>>() };
    let begin = |manifest| Begin { version: Some("v".into()), manifest: Some(manifest), ..Begin::default() };
    let refit = |manifest: &Manifest, tensors: &Checkpoint| -> std::result::Result<(), RuntimeError> {
        let source = engine.arrivals(begin(manifest.clone())).whole(tensors.clone())?;
        engine.prepare(&source, &hooks, QUIET).map(|_| ())
    };
    refit(&manifest, &new).unwrap();
    let error = refit(&manifest, &old).unwrap_err().to_string();
    assert!(error.contains("sha256") && error.contains("the manifest says"), "{error}");
    let norm = "model.norm.weight";
    let less = Checkpoint::from_tensors(new.tensors().filter(|t| t.name != norm).cloned()).unwrap();
    assert!(refit(&manifest, &less).unwrap_err().to_string().contains("`model.norm.weight`"));
    let mut without = manifest.clone();
    without.tensors.remove(norm);
    let error = refit(&without, &new).unwrap_err().to_string();
    assert!(error.contains("`model.norm.weight`") && error.contains("the manifest does not name it"), "{error}");
    for (edit, says) in [
        (Promise { dtype: Some(Dtype::F32), ..Promise::default() }, "the manifest says Some(F32)"),
        (Promise { shape: Some(vec![1, 2]), ..Promise::default() }, "the manifest says [1, 2]"),
    ] {
        let mut other = manifest.clone();
        other.tensors.insert(norm.into(), edit);
        let error = refit(&other, &new).unwrap_err().to_string();
        assert!(error.contains("`model.norm.weight`") && error.contains(says), "{error}");
    }
    // A promise may say less.
    let names = Manifest { tensors: new.tensors().map(|t| (t.name.clone(), Promise::default())).collect() };
    refit(&names, &new).unwrap();
    assert_eq!(digest(&engine), before);
}

#[test]
fn a_refused_chunk_changes_nothing_and_the_refit_goes_on() {
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let (engine, _, new) = serving("qwen3_moe", &hooks);
    let mut refit = engine.arrivals(Begin::default());
    for t in new.tensors() {
        let (half, bytes) = (t.data.len() / 2, t.data.load().unwrap());
        refit.chunk(&header(t, 0), &bytes[..half]).unwrap();
        let wrong_shape = [t.shape.clone(), vec![1]].concat();
        for (chunk, bytes) in [
            (header(t, 0), &bytes[..1]),
            (header(t, t.data.len()), &bytes[..1]),
            (header(t, usize::MAX), &bytes[..1]),
            (ChunkHeader { shape: &wrong_shape, ..header(t, half) }, &bytes[half..]),
            (ChunkHeader { dtype: Dtype::F64, ..header(t, half) }, &bytes[half..]),
            (ChunkHeader { name: "huge", shape: &[usize::MAX / 4], ..header(t, 0) }, &[]),
            (ChunkHeader { name: "huge", shape: &[1 << 40], ..header(t, 0) }, &[]),
        ] {
            let error = refit.chunk(&chunk, bytes).unwrap_err().to_string();
            assert!(error.contains("why: ") && error.contains("next: "), "{error}");
        }
        refit.chunk(&header(t, half), &bytes[half..]).unwrap();
    }
    let staged = engine.prepare(&refit.finish().unwrap(), &hooks, QUIET).unwrap();
    let fresh = Engine::new(&engine.info().config, EngineOptions::default()).unwrap();
    fresh.refit(&new, &hooks, QUIET).unwrap();
    assert_eq!(staged.weights().first_difference(&fresh.live().unwrap()), None);
}

/// Powers of two of the layout pass are those of the patch's own setting, byte for byte, for every profile: quantized from
/// the source, not from FP8 bytes.
#[test]
fn ue8m0_of_the_layout_is_ue8m0_of_the_patch() {
    let (_tmp, folder) = model("qwen3_moe");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
    for profile in ["verl-torch", "verl-triton", "deepseek", "vllm-group", "hf", "deepgemm", "slime"] {
        let stage = |settings: &[(&str, &str)], layout: &[(&str, &str)]| {
            let mut hooks = hooks_with(&[("moe_loader", &[]), ("fp8_block", settings)]);
            hooks.layout = crate::list::patch("gpu_layout", layout).layout();
            engine.stage(&checkpoint, &hooks, QUIET).unwrap().0
        };
        let by_patch = stage(&[("profile", profile), ("scale_format", "ue8m0")], &[("backend", "none")]);
        let by_layout = stage(&[("profile", profile)], &[("passes", "ue8m0")]);
        let plain = stage(&[("profile", profile)], &[("backend", "none")]);
        let mut different = 0;
        for (param, decl) in engine.registry().params().iter().enumerate() {
            let parts = by_layout.parts(param).iter().zip(by_patch.parts(param));
            assert!(parts.clone().all(|(a, b)| a.matrix.bit_equal(&b.matrix)), "{profile}: {}", decl.name);
            different += by_layout
                .parts(param)
                .iter()
                .zip(plain.parts(param))
                .filter(|(a, b)| !a.matrix.bit_equal(&b.matrix))
                .count();
        }
        assert!(different > 0, "{profile}: the pass changed nothing");
    }
}

fn refit(args: &[&str]) -> crate::support::Ran {
    patchhost(["refit"].iter().chain(args))
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

/// A model and a changed copy of it, as folders.
fn two(name: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let tmp = tmp();
    let old = copy_model(name, tmp.path());
    std::fs::remove_file(old.join("golden.safetensors")).unwrap();
    let new = crate::support::copy_folder(&old, &tmp.path().join("new"));
    edit_tensors(&new, |tensors| {
        for t in tensors.iter_mut().step_by(4).filter(|t| t.1 == Dtype::BF16) {
            t.3.iter_mut().skip(1).step_by(2).for_each(|b| *b ^= 0x80);
        }
    });
    (tmp, old, new)
}

#[test]
fn from_a_folder_a_file_a_version_and_a_delta() {
    let (tmp, old, new) = two("qwen3_moe");
    let as_text = |model: &Path, from: &Path, more: &[&str]| {
        let base = ["refit", path(model), "--from", path(from), "--component", "fp8_block", "--verify"];
        patchhost(base.iter().chain(more))
    };
    let run = |model: &Path, from: &Path, more: &[&str]| as_text(model, from, &[&["--format", "json"], more].concat());
    let versions = tmp.path().join("versions");
    let first = run(&old, &new, &["--save-delta", path(&versions), "--chunk-size", "1000"]).good().json();
    assert_eq!(first["verified"], true);
    assert_ne!(first["sha256"], first["sha256_before"]);
    let wanted = first["sha256"].clone();
    let delta = versions.join("weight_v000001");
    assert_eq!(first["saved"][0]["path"], path(&delta));
    assert!(first["saved"][0]["unchanged"].as_u64().unwrap() > 0);

    for (from, label) in [
        (new.clone(), "2"),
        (new.join("model.safetensors"), "2"),
        (delta.clone(), "000001"),
        (versions.clone(), "000001"),
    ] {
        let ran = run(&old, &from, &[]).good().json();
        assert_eq!((&ran["sha256"], ran["refit"]["label"].as_str()), (&wanted, Some(label)), "{}", from.display());
    }
    // Back again: a full version, then a chain of two.
    let full = run(&new, &old, &["--base-version", "1", "--save", path(&versions)]).good().json();
    assert_eq!(full["saved"][0]["path"], path(&versions.join("weight_v000002")));
    assert_eq!(run(&old, &versions, &[]).good().json()["sha256"], first["sha256_before"]);
    assert_eq!(run(&old, &versions, &["--target-version", "1"]).good().json()["sha256"], wanted);

    // As SGLang can check it.
    let slime = tmp.path().join("slime");
    run(&old, &new, &["--save-delta", path(&slime), "--encoding", "overwrite", "--checksum", "xxh3-128"]).good();
    let index = std::fs::read_to_string(slime.join("weight_v000001/model.safetensors.index.json")).unwrap();
    assert!(index.contains("\"xxh3-128\"") && index.contains("\"overwrite\""), "{index}");
    assert_eq!(run(&old, &slime, &[]).good().json()["sha256"], wanted);

    // The base does not fit: nothing is applied.
    insta::assert_snapshot!("wrong_base_bytes", as_text(&new, &delta, &[]).refused(1, tmp.path()));
    let version = as_text(&old, &delta, &["--base-version", "5"]);
    insta::assert_snapshot!("wrong_base_version", version.refused(1, tmp.path()));
}

#[test]
fn what_is_refused_says_so_and_what_serves() {
    let (tmp, old, new) = two("qwen3_moe");
    let run = |from: &Path, more: &[&str]| {
        let args = [path(&old), "--from", path(from), "--component", "fp8_block"];
        refit(&[&args[..], more].concat())
    };
    edit_tensors(&new, |t| t.retain(|t| t.0 != "model.layers.1.mlp.experts.2.up_proj.weight"));
    insta::assert_snapshot!("incomplete", run(&new, &[]).refused(1, tmp.path()));
    insta::assert_snapshot!("no_such_source", run(&tmp.path().join("nowhere"), &[]).refused(2, tmp.path()));
    let guard = ["--component", "refit_guard", "--set", "refit_guard.forbid=*.q_norm.weight"];
    insta::assert_snapshot!("vetoed", run(&old, &guard).refused(1, tmp.path()));
    let manifest = tmp.path().join("manifest.json");
    std::fs::write(&manifest, r#"{"tensors": {"model.norm.weight": {"dtype": "F32"}}}"#).unwrap();
    insta::assert_snapshot!("against_the_manifest", run(&old, &["--manifest", path(&manifest)]).refused(1, tmp.path()));
    std::fs::write(&manifest, r#"{"tensor": {}}"#).unwrap();
    insta::assert_snapshot!("no_manifest", run(&old, &["--manifest", path(&manifest)]).refused(2, tmp.path()));
}

/// The bundled guard accepts what was promised, and sees every tensor.
#[test]
fn refit_guard_watches_a_refit() {
    let (_tmp, old, new) = two("deepseek_v3");
    let guard = "dtypes=*e_score_correction_bias:f32";
    let args = ["--component", "refit_guard", "--component", "fp8_block", "--set", &format!("refit_guard.{guard}")];
    let ran = refit(&[&[path(&old), "--from", path(&new), "--format", "json"][..], &args[..]].concat()).good().json();
    assert_eq!(ran["refit"]["observers"], serde_json::json!(["refit_guard"]));
    let row = ran["patches"].as_array().unwrap().iter().find(|p| p["name"] == "refit_guard").unwrap().clone();
    // begin, one batch, finish.
    assert_eq!(row["calls"], 3);
}

/// Kill -9 at any moment of a refit that writes: the model is as it was, and a version that can be seen is whole.
#[test]
fn killed_in_the_middle_it_leaves_the_model_and_only_whole_versions() {
    let tmp = tmp();
    let model = crate::export::random_llama(tmp.path(), 256, 6);
    let new = crate::support::copy_folder(&model, &tmp.path().join("new"));
    edit_tensors(&new, |tensors| {
        for t in tensors.iter_mut().filter(|t| t.1 == Dtype::BF16) {
            t.3.iter_mut().step_by(2).for_each(|b| *b ^= 1);
        }
    });
    let source = std::fs::read(model.join("model.safetensors")).unwrap();
    let versions = tmp.path().join("versions");
    let save = ["--save", path(&versions), "--save-version", "1", "--format", "json"];
    let args = [&["refit", path(&model), "--from", path(&new)][..], &save].concat();
    let wanted = refit(&[path(&model), "--from", path(&new), "--format", "json"]).good().json()["sha256"].clone();
    let seen = || -> Vec<String> {
        let entries = std::fs::read_dir(&versions).into_iter().flatten();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    let (mut interrupted, mut complete) = (0, 0);
    for round in 0..24u32 {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"))
            .args(&args)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Some before it writes, most of them a little later each while it does.
        let writing = || round < 3 || seen().iter().any(|n| n.starts_with('.'));
        while !writing() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        std::thread::sleep(std::time::Duration::from_millis(u64::from(round)) / 2);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(std::fs::read(model.join("model.safetensors")).unwrap() == source, "round {round}: the model changed");
        let seen = seen();
        if seen.iter().any(|n| n == "weight_v000001") {
            let ran = refit(&[path(&model), "--from", path(&versions.join("weight_v000001")), "--format", "json"]);
            assert_eq!(ran.good().json()["sha256"], wanted, "round {round}");
            complete += 1;
            std::fs::remove_dir_all(&versions).unwrap();
        } else {
            // What is half-written is hidden, and no source of weights.
            assert!(seen.iter().all(|n| n.starts_with('.')), "round {round}: {seen:?}");
            if !seen.is_empty() {
                let ran = refit(&[path(&model), "--from", path(&versions), "--format", "json"]).good();
                assert!(ran.stderr.contains("nothing newer"), "round {round}: {}", ran.stderr);
                assert_eq!(ran.json()["sha256"], ran.json()["sha256_before"], "round {round}");
                interrupted += 1;
            }
        }
    }
    assert!(interrupted > 0, "it was always faster than the kill ({complete} rounds)");
    patchhost(&args).good();
    assert_eq!(seen(), ["weight_v000001"], "leftovers of killed writers are removed");
}
