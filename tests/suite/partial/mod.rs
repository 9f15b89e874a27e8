//! Partial updates: what comes takes its place, the rest stays, and the weights are those of a whole update with the same
//! values, bit for bit.

mod dialects;
mod renames;

use std::path::Path;

use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::error::Result;
use patchhost_runtime::refit::{Begin, RefitHooks, RefitReport};
use safetensors::tensor::Dtype;

use crate::list::QUIET;
use crate::oracle::hooks;
use crate::support::{Tensor, copy_folder, copy_model, data, edit_tensors, patchhost, read, repo, tmp, write};

/// The tensors as a checkpoint that lies in memory.
fn checkpoint(tensors: &[Tensor]) -> Checkpoint {
    let one = |(name, dtype, shape, bytes): &Tensor| {
        let data = patchhost_runtime::bytes::TensorBytes::new(std::sync::Arc::new(bytes.clone()), 0..bytes.len());
        CheckpointTensor::new(name, *dtype, shape.clone(), data.unwrap())
    };
    Checkpoint::from_tensors(tensors.iter().map(one)).unwrap()
}

/// The same with the sign of every value turned.
fn turned(tensors: &[Tensor]) -> Vec<Tensor> {
    let turn = |(name, dtype, shape, bytes): &Tensor| {
        let size = dtype.bitsize() / 8;
        let mut bytes = bytes.clone();
        // Not of scales, which are above 0.
        if !name.contains("scale") {
            bytes.iter_mut().skip(size - 1).step_by(size).for_each(|b| *b ^= 0x80);
        }
        (name.clone(), *dtype, shape.clone(), bytes)
    };
    tensors.iter().map(turn).collect()
}

fn replaced(held: &[Tensor], came: &[Tensor]) -> Vec<Tensor> {
    let new = |t: &Tensor| came.iter().find(|c| c.0 == t.0).unwrap_or(t).clone();
    held.iter().map(new).collect()
}

fn some(tensors: &[Tensor], wanted: impl Fn(&str) -> bool) -> Vec<Tensor> {
    tensors.iter().filter(|t| wanted(&t.0)).cloned().collect()
}

/// One partial refit of an engine that holds these tensors; gives what it holds then.
fn push(engine: &Engine, hooks: &RefitHooks, held: &Checkpoint, came: &[Tensor]) -> Result<(Checkpoint, RefitReport)> {
    let begin = Begin { complete: Some(false), ..Begin::default() };
    let part = engine.arrivals(begin).whole(checkpoint(came))?;
    let whole = engine.over(held, &part)?;
    let staged = engine.prepare(&whole, hooks, QUIET)?;
    staged.verify()?;
    let report = staged.publish();
    Ok((whole.checkpoint().clone(), report))
}

fn digest(engine: &Engine) -> String {
    engine.live().unwrap().digest(engine.registry())
}

/// What a fresh engine has after a load of `first` and a whole update to `last`.
fn whole(folder: &Path, hooks: &RefitHooks, first: &[Tensor], last: &[Tensor]) -> String {
    let engine = Engine::open(folder, EngineOptions::default()).unwrap();
    engine.refit(&checkpoint(first), hooks, QUIET).unwrap();
    engine.refit(&checkpoint(last), hooks, QUIET).unwrap();
    digest(&engine)
}

type Wanted = fn(&str) -> bool;
const PARTS: [(&str, Wanted); 7] = [
    ("attention", |name| name.contains("_attn.")),
    ("one part of a fused matrix", |name| name.contains("q_proj") || name.contains("up_proj")),
    ("one expert", |name| name.contains(".experts.1.")),
    ("norms", |name| name.contains("norm")),
    ("the embedding, without its head", |name| name.ends_with("embed_tokens.weight")),
    ("one tensor", |name| name.contains(".1.") && name.contains("o_proj")),
    ("everything", |_| true),
];

#[test]
fn a_partial_update_is_a_whole_one_in_every_family() {
    for (name, components) in [
        ("qwen3_moe", &["moe_loader", "fp8_block"][..]),
        ("deepseek_v3", &["moe_loader", "fp8_block"]),
        ("mixtral", &["moe_loader", "fp8_block"]),
        ("qwen3_next", &["moe_loader", "fp8_block"]),
        ("llama", &["fp8_block"]),
        ("qwen3_f16", &[]),
    ] {
        let tmp = tmp();
        let folder = copy_model(name, tmp.path());
        let mut hooks = hooks(components);
        if name == "mixtral" {
            let settings = [("passes", "swap-w13,col-major-align")];
            hooks.layout = crate::list::patch("gpu_layout", &settings).layout();
        }
        let first = read(&folder.join("model.safetensors"));
        let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
        engine.refit(&checkpoint(&first), &hooks, QUIET).unwrap();
        let (mut held, mut values, mut parts) = (checkpoint(&first), first.clone(), 0);
        // One upon the other.
        for (part, wanted) in PARTS {
            let came = some(&turned(&values), wanted);
            if came.is_empty() {
                continue;
            }
            parts += 1;
            values = replaced(&values, &came);
            let (now, report) = push(&engine, &hooks, &held, &came).unwrap_or_else(|e| panic!("{name}, {part}: {e}"));
            held = now;
            let stayed = report.stayed.unwrap();
            assert_eq!((stayed.came, stayed.tensors), (came.len(), first.len() - came.len()), "{name}, {part}");
            assert_eq!(digest(&engine), whole(&folder, &hooks, &first, &values), "{name}, {part}");
        }
        assert!(parts >= 4, "{name}: {parts} parts");
    }
}

#[test]
fn fp8_weights_stay_with_their_scales_or_give_way_to_others() {
    for style in ["deepseek_style", "ue8m0_u8", "compressed_tensors_bf16"] {
        let tmp = tmp();
        let folder = copy_folder(&data("fp8").join(style), &tmp.path().join(style));
        let hooks = hooks(&["moe_loader", "fp8_block"]);
        let first = read(&folder.join("model.safetensors"));
        let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
        engine.refit(&checkpoint(&first), &hooks, QUIET).unwrap();
        // Codes and scales of one expert.
        let came = some(&turned(&first), |name| {
            let one = name.contains("experts.1.") || !name.contains("expert");
            name.contains("layers.0.mlp.") && name.contains("up_proj") && one
        });
        assert_eq!(came.len(), 2, "{style}");
        let values = replaced(&first, &came);
        let (held, _) = push(&engine, &hooks, &checkpoint(&first), &came).unwrap();
        assert_eq!(digest(&engine), whole(&folder, &hooks, &first, &values), "{style}");
        let alone = some(&came, |name| name.ends_with(".weight"));
        let error = push(&engine, &hooks, &held, &alone).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("without its scales"), "{style}: {error}");
        // The same weight in bf16: it is quantized anew, and the rest stays as it is stored.
        let (name, _, shape, _) = &alone[0];
        let wide: Tensor = (name.clone(), Dtype::BF16, shape.clone(), vec![0x3c; shape.iter().product::<usize>() * 2]);
        let mut values = some(&values, |n| !n.starts_with(name.as_str()));
        values.push(wide.clone());
        push(&engine, &hooks, &held, &[wide]).unwrap();
        assert_eq!(digest(&engine), whole(&folder, &hooks, &first, &values), "{style}");
    }
}

/// Experts in one tensor, as transformers has them, and a tensor for each, as files have them.
#[test]
fn stacked_experts_and_single_ones_replace_each_other() {
    let tmp = tmp();
    let folder = copy_model("qwen3_moe", tmp.path());
    let hooks = hooks(&["moe_loader", "fp8_block"]);
    let first = read(&folder.join("model.safetensors"));
    let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
    engine.refit(&checkpoint(&first), &hooks, QUIET).unwrap();
    let stem = "model.layers.0.mlp.experts.";
    let values = turned(&first);
    let experts = values.iter().filter(|t| t.0.starts_with(stem) && t.0.ends_with("up_proj.weight")).count();
    let (mut bytes, mut shape) = (Vec::new(), vec![experts, 0, 0]);
    for e in 0..experts {
        for leaf in ["gate_proj", "up_proj"] {
            let t = values.iter().find(|t| t.0 == format!("{stem}{e}.{leaf}.weight")).unwrap();
            shape[1] = 2 * t.2[0];
            shape[2] = t.2[1];
            bytes.extend(&t.3);
        }
    }
    let stacked: Tensor = (format!("{stem}gate_up_proj"), Dtype::BF16, shape, bytes);
    let is_first = |name: &str| name.starts_with(stem) && !name.contains("down_proj");
    let after = replaced(&first, &some(&values, is_first));
    let (held, report) = push(&engine, &hooks, &checkpoint(&first), &[stacked]).unwrap();
    assert_eq!(report.stayed.unwrap().tensors, first.len() - 2 * experts);
    assert_eq!(digest(&engine), whole(&folder, &hooks, &first, &after));
    // One matrix of one expert, over the tensor that holds them all.
    let one = some(&first, |name| name == format!("{stem}1.up_proj.weight"));
    let after = replaced(&after, &one);
    let (_, report) = push(&engine, &hooks, &held, &one).unwrap();
    assert_eq!(report.stayed.unwrap().tensors, first.len() - 1);
    assert_eq!(digest(&engine), whole(&folder, &hooks, &first, &after));
}

/// What was allowed to come less precise than it is declared need not be allowed again where it stays.
#[test]
fn what_stays_is_not_held_against_its_declared_type_again() {
    let tmp = tmp();
    let folder = copy_model("qwen3_moe", tmp.path());
    let is_gate = |name: &str| name.ends_with("mlp.gate.weight");
    edit_tensors(&folder, |tensors| {
        for t in tensors.iter_mut().filter(|t| is_gate(&t.0)) {
            t.3 = t.3.as_chunks::<2>().0.iter().flat_map(|b| [0, 1, b[0], b[1]]).collect();
            t.1 = Dtype::F32;
        }
    });
    let hooks = hooks(&["moe_loader"]);
    let first = read(&folder.join("model.safetensors"));
    let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
    engine.refit(&checkpoint(&first), &hooks, QUIET).unwrap();
    let narrow = |t: &Tensor| {
        let bytes = t.3.as_chunks::<4>().0.iter().flat_map(|b| [b[2], b[3]]).collect();
        (t.0.clone(), Dtype::BF16, t.2.clone(), bytes)
    };
    let gates: Vec<Tensor> = some(&first, is_gate).iter().map(narrow).collect();
    let error = push(&engine, &hooks, &checkpoint(&first), &gates).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("mlp.gate.weight") && error.contains("bits would be lost"), "{error}");
    let begin = Begin { complete: Some(false), allow_narrowing: true, ..Begin::default() };
    let part = engine.arrivals(begin).whole(checkpoint(&gates)).unwrap();
    let whole = engine.over(&checkpoint(&first), &part).unwrap();
    let report = engine.prepare(&whole, &hooks, QUIET).unwrap().publish();
    assert!(report.notes.iter().any(|note| note.contains("narrowing is allowed")), "{report:?}");
    let norms = some(&turned(&first), |name| name == "model.norm.weight");
    let (_, report) = push(&engine, &hooks, whole.checkpoint(), &norms).unwrap();
    assert_eq!(report.notes, Vec::<String>::new(), "nothing that came is worth a note");
}

#[test]
fn the_command_line_keeps_the_rest_too() {
    let tmp = tmp();
    let model = copy_folder(&repo().join("models/tiny-shakespeare-moe"), &tmp.path().join("m"));
    let text = |path: &Path| path.display().to_string();
    let first = read(&model.join("model.safetensors"));
    let came = some(&turned(&first), |name| name.contains("q_proj"));
    let (part, full) = (tmp.path().join("part.safetensors"), tmp.path().join("full.safetensors"));
    write(&part, &came);
    write(&full, &replaced(&first, &came));
    let out = tmp.path().join("out");
    let refit = |from: &Path, more: &[&str]| {
        let args = ["refit", &text(&model), "--component", "fp8_block", "--from", &text(from), "--format", "json"];
        patchhost(args.iter().chain(more))
    };
    let plain = ["refit", &text(&model), "--component", "fp8_block", "--from", &text(&part)];
    let missing = patchhost(plain).refused(1, tmp.path());
    assert!(missing.contains("a partial update says `\"complete\": false` (patchhost refit: --partial)"), "{missing}");
    let made = refit(&part, &["--partial", "--verify", "--save", &text(&out)]).good().json();
    assert_eq!(made["sha256"], refit(&full, &[]).good().json()["sha256"]);
    let stayed = &made["refit"]["stayed"];
    assert_eq!((&stayed["came"], &stayed["tensors"]), (&came.len().into(), &(first.len() - came.len()).into()));
    // What is saved is all of it.
    assert_eq!(read(&out.join("weight_v000001")), read(&full));
    let manifest = tmp.path().join("manifest.json");
    std::fs::write(&manifest, r#"{"tensors": {"model.norm.weight": {}}}"#).unwrap();
    let promised = patchhost(plain.iter().copied().chain(["--partial", "--manifest", &text(&manifest)]));
    let promised = promised.refused(1, tmp.path());
    assert!(promised.contains("the manifest does not name it"), "{promised}");
}
