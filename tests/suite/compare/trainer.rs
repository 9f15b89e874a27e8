//! verl's metrics on a trainer's file.

use std::path::{Path, PathBuf};

use patchhost::compare::{Trainer, rollout_corr, token_logprobs};
use patchhost_runtime::checkpoint::Checkpoint;
use safetensors::tensor::Dtype;
use serde_json::Value;

use super::classes::model;
use super::compare;
use crate::oracle::{hooks, loaded};
use crate::support::{Tensor, f32_bytes, patchhost, write};

fn i64s(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn file(folder: &Path, tensors: &[Tensor]) -> PathBuf {
    let path = folder.join("trainer.safetensors");
    write(&path, tensors);
    path
}

/// The unquantized model as the trainer: log-probs of the tokens of each sequence, 0 for the first.
fn trainer_logprobs(folder: &Path, sequences: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let engine = loaded(folder, &hooks(&["moe_loader"]));
    let weights = engine.live().unwrap();
    let of = |ids: &Vec<u32>| {
        let rest = token_logprobs(engine.model(), &weights, ids).unwrap();
        std::iter::once(0.0).chain(rest.into_iter().map(|v| v as f32)).collect()
    };
    sequences.iter().map(of).collect()
}

const SEQUENCES: [[u32; 6]; 2] = [[5, 40, 77, 12, 99, 3], [120, 7, 7, 31, 64, 90]];

fn whole(lp: &[Vec<f32>]) -> Vec<Tensor> {
    let ids: Vec<i64> = SEQUENCES.concat().iter().map(|i| i64::from(*i)).collect();
    vec![
        ("input_ids".into(), Dtype::I64, vec![2, 6], i64s(&ids)),
        ("logprobs".into(), Dtype::F32, vec![2, 6], f32_bytes(&lp.concat())),
    ]
}

fn run(folder: &Path, trainer: &Path, extra: &[&str]) -> Value {
    let base = ["fp8_block", "--against", "bf16", folder.to_str().unwrap(), "--trainer-logprobs"];
    compare(&[&base[..], &[trainer.to_str().unwrap()], extra].concat())["rollout_corr"].clone()
}

fn value(v: &Value) -> f64 {
    v.as_f64().unwrap_or_else(|| panic!("{v}"))
}

#[test]
fn the_unquantized_model_is_its_own_trainer() {
    let (tmp, folder) = model("qwen3_moe");
    let sequences: Vec<Vec<u32>> = SEQUENCES.map(|s| s.to_vec()).to_vec();
    let lp = trainer_logprobs(&folder, &sequences);
    let path = file(tmp.path(), &whole(&lp));
    let base =
        ["fp8_block", "--against", "bf16", folder.to_str().unwrap(), "--trainer-logprobs", path.to_str().unwrap()];
    let json = compare(&base);
    let corr = &json["rollout_corr"];
    assert_eq!((&corr["sequences"], &corr["tokens"]), (&2.into(), &10.into()));
    // B is the trainer, but for the rounding of the file to f32.
    assert!(value(&corr["b"]["kl"]).abs() < 1e-7 && value(&corr["b"]["k3_kl"]) < 1e-13);
    assert!((value(&corr["b"]["training/rollout_actor_probs_pearson_corr"]) - 1.0).abs() < 1e-9);
    // A is quantized: the same two numbers as in the ablation, which runs the trainer's tokens where nothing else is given.
    let all = &json["ablation"]["a"]["all"];
    assert_eq!(all["tokens"], 10);
    assert!(value(&corr["a"]["k3_kl"]) > 1e-9);
    for key in ["kl", "k3_kl"] {
        let (corr, all) = (value(&corr["a"][key]), value(&all[key]));
        assert!((corr - all).abs() < 1e-6, "{key}: {corr} {all}");
    }
    // Every name of the set.
    for name in [
        "training_ppl",
        "training_log_ppl",
        "kl",
        "k3_kl",
        "rollout_ppl",
        "rollout_log_ppl",
        "log_ppl_diff",
        "log_ppl_abs_diff",
        "log_ppl_diff_max",
        "log_ppl_diff_min",
        "ppl_ratio",
        "chi2_token",
        "chi2_seq",
        "rollout_is_mean",
        "rollout_is_max",
        "rollout_is_min",
        "rollout_is_std",
        "rollout_is_eff_sample_size",
        "rollout_is_ratio_fraction_high",
        "rollout_is_ratio_fraction_low",
        "rollout_is_seq_mean",
        "rollout_is_seq_std",
        "rollout_is_seq_max",
        "rollout_is_seq_min",
        "rollout_is_seq_max_deviation",
        "rollout_is_seq_fraction_high",
        "rollout_is_seq_fraction_low",
        "training/rollout_probs_diff_valid",
        "training/rollout_probs_diff_max",
        "training/rollout_probs_diff_mean",
        "training/rollout_probs_diff_std",
        "training/rollout_actor_probs_pearson_corr",
    ] {
        assert!(corr["a"][name].is_number(), "{name}: {corr}");
    }
    assert!(corr["a"].get("rollout_is_oob_ratio").is_none());
    let text = patchhost(["compare"].iter().chain(&base)).good().stdout;
    assert!(text.contains("rollout_corr") && text.contains("chi2_seq"), "{text}");
}

#[test]
fn padding_masks_and_response_only_log_probs_mean_the_same_tokens() {
    let (tmp, folder) = model("qwen3_moe");
    let sequences: Vec<Vec<u32>> = vec![SEQUENCES[0].to_vec(), SEQUENCES[1][..4].to_vec()];
    let lp = trainer_logprobs(&folder, &sequences);

    // verl's layout: left-padded prompts of 3, right-padded responses of 3.
    let ids = [[5i64, 40, 77, 12, 99, 3], [0, 120, 7, 7, 31, 0]];
    let attention: [i64; 12] = [1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0];
    let responses = [lp[0][3..].to_vec(), vec![lp[1][2], lp[1][3], -777.0]].concat();
    let verl = file(
        tmp.path(),
        &[
            ("attention_mask".into(), Dtype::I64, vec![2, 6], i64s(&attention)),
            ("input_ids".into(), Dtype::I64, vec![2, 6], i64s(&ids.concat())),
            ("old_log_probs".into(), Dtype::F32, vec![2, 3], f32_bytes(&responses)),
            ("response_mask".into(), Dtype::BOOL, vec![2, 3], vec![1, 1, 1, 1, 1, 0]),
        ],
    );
    let verl = run(&folder, &verl, &["--rollout-is", "sequence", "--rollout-is-threshold", "0.9_1.1"]);
    assert_eq!(verl["tokens"], 5);
    assert!(verl["a"]["rollout_is_oob_ratio"].is_number());
    assert!(value(&verl["b"]["kl"]).abs() < 1e-7);

    // The same tokens as whole sequences with a mask: the numbers of the library on the same pairs.
    let engine = loaded(&folder, &hooks(&["moe_loader", "fp8_block"]));
    let weights = engine.live().unwrap();
    let counted = [3..6, 2..4];
    let batch: Vec<Vec<rollout_corr::Token>> = sequences
        .iter()
        .zip(&lp)
        .zip(counted)
        .map(|((ids, lp), range)| {
            let rollout = token_logprobs(engine.model(), &weights, ids).unwrap();
            range.map(|t| rollout_corr::Token { training: f64::from(lp[t]), rollout: rollout[t - 1] }).collect()
        })
        .collect();
    let settings = rollout_corr::Settings {
        rollout_is: rollout_corr::Level::Sequence,
        rollout_is_threshold: "0.9_1.1".parse().unwrap(),
        rollout_rs: Vec::new(),
    };
    let expected = rollout_corr::metrics(&batch, &settings).unwrap();
    for (name, expected) in &expected.0 {
        let got = value(&verl["a"][name.as_str()]);
        assert!((got - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{name}: {got}, not {expected}");
    }
}

#[test]
fn rejection_rules_are_reported_where_they_are_asked_for() {
    let (tmp, folder) = model("qwen3_moe");
    let lp = trainer_logprobs(&folder, &SEQUENCES.map(|s| s.to_vec()));
    let path = file(tmp.path(), &whole(&lp));
    let rules = ["--rollout-rs", "token_k1,seq_mean_k3", "--rollout-rs-threshold", "0.5_2.0,1e-12"];
    let corr = run(&folder, &path, &rules);
    assert_eq!(corr["a"]["rollout_rs_token_k1_masked_fraction"], 0.0);
    assert_eq!(corr["a"]["rollout_rs_seq_mean_k3_masked_fraction"], 1.0);
    assert_eq!(corr["a"]["rollout_rs_masked_fraction"], 1.0);
    assert_eq!(corr["settings"]["rollout_rs"][0]["name"], "token_k1");
}

#[test]
fn files_that_do_not_hold_what_they_must_are_refused() {
    let (tmp, folder) = model("qwen3_moe");
    let lp = vec![vec![-1.0f32; 6]; 2];
    let good = whole(&lp);
    let read = |tensors: &[Tensor]| {
        let path = file(tmp.path(), tensors);
        Trainer::read("FILE", &Checkpoint::open(&path).unwrap())
    };
    assert_eq!(read(&good).unwrap().counted(), 10);
    let mask = |shape: Vec<usize>, values: &[f32]| -> Tensor {
        ("response_mask".into(), Dtype::F32, shape, f32_bytes(values))
    };
    let replaced = |i: usize, t: Tensor| {
        let mut tensors = good.clone();
        tensors[i] = t;
        tensors
    };
    let with = |t: Tensor| [good.clone(), vec![t]].concat();
    let ids = |v: [i64; 12]| -> Tensor { ("input_ids".into(), Dtype::I64, vec![2, 6], i64s(&v)) };
    let lps = |shape: Vec<usize>, v: &[f32]| -> Tensor { ("logprobs".into(), Dtype::F32, shape, f32_bytes(v)) };
    let mut nan = [-1.0; 12];
    nan[4] = f32::NAN;
    let mut positive = [-1.0; 12];
    positive[9] = 0.5;
    let mut hole = [1.0; 12];
    hole[2] = 0.0;
    let attention = |v: &[f32]| -> Tensor { ("attention_mask".into(), Dtype::F32, vec![2, 6], f32_bytes(v)) };
    let mut report = String::new();
    for tensors in [
        good[..1].to_vec(),
        good[1..].to_vec(),
        with(("old_log_probs".into(), Dtype::F32, vec![2, 6], f32_bytes(&[-1.0; 12]))),
        replaced(0, ids([-1; 12])),
        replaced(0, ("input_ids".into(), Dtype::F32, vec![2, 6], f32_bytes(&[1.0; 12]))),
        replaced(1, lps(vec![2, 7], &[-1.0; 14])),
        replaced(1, lps(vec![12], &[-1.0; 12])),
        replaced(1, ("logprobs".into(), Dtype::BF16, vec![2, 6], vec![0; 24])),
        replaced(1, lps(vec![2, 6], &nan)),
        replaced(1, lps(vec![2, 6], &positive)),
        with(mask(vec![2, 5], &[1.0; 10])),
        with(mask(vec![2, 6], &[0.5; 12])),
        with(mask(vec![2, 6], &[0.0; 12])),
        with(attention(&hole)),
        with(attention(&[0.0; 12])),
    ] {
        let refused = read(&tensors).unwrap_err().to_string();
        assert!(refused.starts_with("refused: --trainer-logprobs FILE\n  why: ") && refused.contains("\n  next: "));
        report.push_str(refused.lines().nth(1).unwrap());
        report.push('\n');
    }
    insta::assert_snapshot!(report);
    // And through the command line, before anything is computed.
    let path = file(tmp.path(), &good[..1]);
    let args = ["compare", "fp8_block", "--against", "bf16", folder.to_str().unwrap(), "--trainer-logprobs"];
    let text = patchhost(args.iter().copied().chain([path.to_str().unwrap()])).refused(2, tmp.path());
    assert!(text.contains("it has no tensor `logprobs`"), "{text}");
}
