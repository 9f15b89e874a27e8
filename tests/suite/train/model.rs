use std::path::Path;

use candle_core::Tensor;
use patchhost::train::model::{Model, log_probs};
use patchhost::train::{Master, Masters};
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::config::RawConfig;
use patchhost_runtime::engine::Engine;
use patchhost_runtime::families::Arch;
use patchhost_runtime::metrics::log_prob;
use patchhost_runtime::model::{Rows, Sequence};
use patchhost_runtime::registry::Registry;

use crate::oracle::{golden, hooks, loaded};
use crate::support::{data, repo};

/// Difference that f32 arithmetic in another order explains.
const TOLERANCE: f32 = 1e-4;

/// Oracles of the families that can be trained.
const TRAINED: [&str; 20] = [
    "llama",
    "llama3_rope",
    "llama_dynamic",
    "llama_linear_rope",
    "llama_tied_bias",
    "llama_yarn",
    "mixtral",
    "mixtral_window",
    "old_config",
    "olmoe",
    "olmoe_clip",
    "qwen2",
    "qwen2_moe",
    "qwen2_moe_norm",
    "qwen2_some_windows",
    "qwen3",
    "qwen3_f16",
    "qwen3_moe",
    "qwen3_moe_f32",
    "qwen3_yarn",
];

fn model_file(folder: &Path) -> Checkpoint {
    Checkpoint::open(&folder.join("model.safetensors")).unwrap()
}

fn trained(folder: &Path) -> Result<(Masters, Model), patchhost::train::TrainError> {
    let config = RawConfig::parse(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let arch = Arch::from_config(&config).unwrap();
    let (registry, _) = Registry::new(&arch);
    let masters = Masters::read(&model_file(folder), &registry)?;
    let model = Model::new(&arch, &registry, &masters)?;
    Ok((masters, model))
}

fn all_logits(model: &Model, sequences: &[&[u32]]) -> Vec<f32> {
    let rows: Vec<u32> = (0..sequences.iter().map(|s| s.len() as u32).sum()).collect();
    let out = model.logits(&model.batch(sequences).unwrap(), &rows).unwrap();
    out.flatten_all().unwrap().to_vec1().unwrap()
}

fn engine(folder: &Path) -> Engine {
    let tmp = crate::support::tmp();
    let to = crate::support::copy_folder(folder, &tmp.path().join("m"));
    let _ = std::fs::remove_file(to.join("golden.safetensors"));
    loaded(&to, &hooks(&["moe_loader"]))
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_differentiable_forward_is_the_runtimes() {
    for name in TRAINED {
        let folder = data("oracle").join(name);
        let (ids, from_transformers) = golden(&folder);
        let (_masters, model) = trained(&folder).unwrap();
        let off = worst(&all_logits(&model, &[&ids]), &from_transformers);
        assert!(off < TOLERANCE, "{name}, against transformers: {off}");

        // Sequences of several lengths, whose padding must not matter.
        let batch: [&[u32]; 4] = [&ids[..7], &ids, &ids[3..], &ids[..1]];
        let engine = engine(&folder);
        let off = worst(&all_logits(&model, &batch), &crate::oracle::logits(&engine, &batch));
        assert!(off < TOLERANCE, "{name}, batch against the runtime: {off}");
    }
}

#[test]
fn the_bundled_model_too() {
    let folder = repo().join("models/tiny-shakespeare-moe");
    let (_masters, model) = trained(&folder).unwrap();
    let engine = engine(&folder);
    let sequences: Vec<Vec<u32>> = vec![(1..90).collect(), vec![2047, 3, 1000, 7], (500..540).rev().collect()];
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let mut caches: Vec<_> = sequences.iter().map(|_| engine.model().new_cache()).collect();
    let mut batch: Vec<Sequence<'_>> =
        sequences.iter().zip(&mut caches).map(|(tokens, cache)| Sequence { tokens, cache }).collect();
    let expected = engine.model().forward(&engine.live().unwrap(), &mut batch, Rows::All).unwrap();
    let expected = expected.into_values();
    let off = worst(&all_logits(&model, &sequences), &expected);
    assert!(off < TOLERANCE, "{off}");
}

#[test]
fn other_families_are_refused_by_name() {
    for (name, architecture) in [
        ("deepseek_v2", "DeepseekV2ForCausalLM"),
        ("deepseek_v3", "DeepseekV3ForCausalLM"),
        ("qwen3_next", "Qwen3NextForCausalLM"),
    ] {
        let error = trained(&data("oracle").join(name)).err().unwrap().to_string();
        assert!(error.starts_with(&format!("refused: training {architecture}\n  why: ")), "{error}");
    }
    let error = trained(&data("oracle").join("qwen3_moe_fused")).err().unwrap().to_string();
    assert!(error.contains("experts.0.gate_proj.weight") && error.contains("split"), "{error}");
}

/// A loss that every weight takes part in: the mean of weighted log-probs.
fn loss(model: &Model, sequences: &[&[u32]]) -> Tensor {
    let batch = model.batch(sequences).unwrap();
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (i, sequence) in sequences.iter().enumerate() {
        rows.extend(batch.rows(i).take(sequence.len() - 1));
        targets.extend_from_slice(&sequence[1..]);
    }
    let logits = model.logits(&batch, &rows).unwrap();
    let weights: Vec<f32> = (0..targets.len()).map(|i| 1.0 - 0.37 * (i % 5) as f32).collect();
    let weights = Tensor::new(weights, logits.device()).unwrap();
    (log_probs(&logits, &targets, &[5..9]).unwrap() * weights).unwrap().mean_all().unwrap()
}

/// The same in f64 from the logits on: the rounding of an f32 loss is larger than what one weight changes.
fn value(model: &Model, sequences: &[&[u32]]) -> f64 {
    let logits = all_logits(model, sequences);
    let vocab = logits.len() / sequences.iter().map(|s| s.len()).sum::<usize>();
    let mut rows = logits.chunks_exact(vocab);
    let (mut sum, mut n) = (0.0, 0);
    for sequence in sequences {
        for (row, target) in rows.by_ref().take(sequence.len()).zip(sequence[1..].iter().map(Some).chain([None])) {
            let Some(target) = target else { continue };
            let mut row = row.to_vec();
            row[5..9].fill(f32::NEG_INFINITY);
            sum += log_prob(&row, *target as usize).unwrap() * f64::from(1.0 - 0.37 * (n % 5) as f32);
            n += 1;
        }
    }
    sum / f64::from(n)
}

/// The kinds of weights, by the end of their names.
fn kind(name: &str) -> String {
    let words: Vec<&str> = name.split('.').filter(|w| w.parse::<usize>().is_err()).collect();
    words[words.len().saturating_sub(3)..].join(".")
}

/// The derivative in a direction: along the gradient of one tensor the loss must change by the gradient's square norm.
fn check_tensor(model: &Model, master: &Master, gradient: &[f32], sequences: &[&[u32]]) -> f64 {
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let old = master.values().unwrap();
    let scale = (old.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / old.len() as f64).sqrt().max(0.02);
    // Large enough that f32 losses differ in many digits, small enough that the curve is straight (Richardson below).
    let at = |h: f64| {
        let moved = |sign: f64| {
            let values =
                old.iter().zip(gradient).map(|(v, g)| (f64::from(*v) + sign * h * f64::from(*g) / norm) as f32);
            master.set(values.collect()).unwrap();
            value(model, sequences)
        };
        (moved(1.0) - moved(-1.0)) / (2.0 * h)
    };
    // A step that moves a token to another expert (or over a clip) measures a jump, and a tiny one measures rounding: the
    // best of several sizes counts. A wrong gradient agrees with none of them.
    let off = |h: f64| ((4.0 * at(h) - at(2.0 * h)) / 3.0 - norm).abs() / norm.max(1e-3);
    let mut best = f64::INFINITY;
    for h in [0.3, 0.1, 0.03, 1.0, 0.01, 0.003, 0.001] {
        best = best.min(off(h * scale));
        if best < 0.01 {
            break;
        }
    }
    master.set(old).unwrap();
    best
}

#[test]
fn gradients_agree_with_finite_differences() {
    let mut kinds = std::collections::BTreeSet::new();
    for name in ["qwen3_moe_f32", "qwen2_moe", "olmoe_clip", "llama_tied_bias", "mixtral_window"] {
        let folder = data("oracle").join(name);
        let (ids, _) = golden(&folder);
        let (masters, model) = trained(&folder).unwrap();
        let sequences: [&[u32]; 2] = [&ids[..12], &ids[2..9]];
        let made = loss(&model, &sequences);
        let off = f64::from(made.to_scalar::<f32>().unwrap()) - value(&model, &sequences);
        assert!(off.abs() < 1e-5, "{name}: {off}");
        let gradients = made.backward().unwrap();
        let mut checked = 0;
        for master in masters.all() {
            let Some(gradient) = gradients.get(master.var.as_tensor()) else {
                assert!(master.name.contains("experts."), "{name}: `{}` has no gradient", master.name);
                continue;
            };
            let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
            let off = check_tensor(&model, master, &gradient, &sequences);
            assert!(off < 0.03, "{name}: `{}` is off by {off}", master.name);
            kinds.insert(kind(&master.name));
            checked += 1;
        }
        assert!(checked > 20, "{name}: only {checked}");
    }
    for needed in [
        "embed_tokens.weight",
        "lm_head.weight",
        "q_norm.weight",
        "k_norm.weight",
        "q_proj.bias",
        "v_proj.weight",
        "o_proj.weight",
        "mlp.gate.weight",
        "experts.gate_proj.weight",
        "experts.down_proj.weight",
        "shared_expert.up_proj.weight",
        "shared_expert_gate.weight",
        "block_sparse_moe.gate.weight",
        "input_layernorm.weight",
        "model.norm.weight",
        "gate_proj.weight",
    ] {
        assert!(kinds.iter().any(|k| k.ends_with(needed)), "{needed} was not tried: {kinds:?}");
    }
}

/// Single weights of each kind, by the definition of the derivative.
#[test]
fn single_weights_too() {
    let folder = data("oracle").join("qwen3_moe_f32");
    let (ids, _) = golden(&folder);
    let (masters, model) = trained(&folder).unwrap();
    let sequences: [&[u32]; 1] = [&ids[..16]];
    let gradients = loss(&model, &sequences).backward().unwrap();
    let mut tried = std::collections::BTreeMap::new();
    for master in masters.all() {
        let Some(gradient) = gradients.get(master.var.as_tensor()) else { continue };
        let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        // The weight that matters most: a small derivative drowns in the rounding of the loss.
        let at = (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).unwrap();
        let old = master.values().unwrap();
        let moved = |by: f32| {
            let mut values = old.clone();
            values[at] += by;
            master.set(values).unwrap();
            value(&model, &sequences)
        };
        let slope = |h: f32| (moved(h) - moved(-h)) / (2.0 * f64::from(h));
        let measured = (4.0 * slope(0.01) - slope(0.02)) / 3.0;
        master.set(old).unwrap();
        let exact = f64::from(gradient[at]);
        assert!((measured - exact).abs() < 2e-4 + 0.05 * exact.abs(), "`{}`: {measured} for {exact}", master.name);
        *tried.entry(kind(&master.name)).or_insert(0) += 1;
    }
    assert!(tried.len() >= 12, "{tried:?}");
}
