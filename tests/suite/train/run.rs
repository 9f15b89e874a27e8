use patchhost_runtime::checkpoint::Checkpoint;

use super::{assert_same, lines, train};
use crate::oracle::{hooks, loaded};
use crate::support::{repo, tmp};

#[test]
fn the_same_seed_gives_the_same_bits_with_any_number_of_threads() {
    let tmp = tmp();
    let run = |name: &str, more: &[&str]| {
        let path = tmp.path().join(name);
        train(&path, &[&["--component", "fp8_block", "--steps", "3"], more].concat()).good();
        lines(&path)
    };
    let first = run("a", &["--threads", "2", "--seed", "5"]);
    assert_eq!(first.len(), 3);
    assert_same(&first, &run("b", &["--threads", "1", "--seed", "5"]));
    let other = run("c", &["--seed", "6"]);
    assert_ne!(first[0]["reward"], other[0]["reward"]);
    // The weights that training starts from are those of the model, whatever the seed.
    assert_eq!(first[0]["weights_sha256"], other[0]["weights_sha256"]);
    assert_ne!(first[0]["master_sha256"], other[0]["master_sha256"]);
}

#[test]
fn a_line_says_what_the_step_did() {
    let tmp = tmp();
    let (path, plot) = (tmp.path().join("m"), tmp.path().join("p.html"));
    let plot_name = plot.display().to_string();
    let args = ["--component", "fp8_block", "--steps", "2", "--format", "json", "--plot", &plot_name];
    let summary = train(&path, &args).good().json();
    let made = lines(&path);
    let first = &made[0];

    // What the engine got at step 1 is what a refit with the checkpoint itself gives.
    let folder = repo().join("models/tiny-shakespeare-moe");
    let engine = loaded(&folder, &hooks(&["moe_loader", "fp8_block"]));
    assert_eq!(first["weights_sha256"], engine.live().unwrap().digest(engine.registry()));
    assert_ne!(first["weights_sha256"], made[1]["weights_sha256"]);

    let number = |name: &str| first[name].as_f64().unwrap_or_else(|| panic!("{name}: {first}"));
    assert!(number("grad_norm") > 0.0 && number("loss").is_finite());
    let length = first["response_length"]["mean"].as_f64().unwrap();
    assert!((1.0..=6.0).contains(&length));
    for name in ["kl", "k3_kl", "chi2_token", "rollout_is_mean", "rollout_is_eff_sample_size", "training_ppl"] {
        assert!(number(&format!("rollout_corr/{name}")).is_finite());
    }
    // FP8 weights and activations: far from the trainer, but not of another model.
    assert!((1e-6..0.2).contains(&number("rollout_corr/k3_kl")), "{first}");
    assert!(number("training/rollout_actor_probs_pearson_corr") > 0.9);
    let sha = |text: &serde_json::Value| text.as_str().unwrap().trim_start_matches("sha256:").len() == 64;
    assert!(sha(&first["patch_set"]) && sha(&first["master_sha256"]) && sha(&first["patches"][0]["generation"]));
    assert_eq!((&first["patches"][0]["name"], &first["refit_version"]), (&"fp8_block".into(), &"1".into()));
    assert!(first["swap"].is_null());

    assert_eq!(summary["steps"], 2);
    assert_eq!(summary["master_sha256"], made[1]["master_sha256"]);
    assert_eq!(summary["patch_set"], first["patch_set"]);
    assert!(summary["patches"][0]["calls"].as_u64().unwrap() > 0);
    let plot = std::fs::read_to_string(plot).unwrap();
    assert_eq!(plot.matches("<figure class=\"plot\"").count(), 5);
    let verdict = summary["verdict"].as_str().unwrap();
    assert!(plot.find(&format!("<h1>{verdict}</h1>")).unwrap() < plot.find("<figure").unwrap(), "{verdict}");
    for heading in ["Mean reward", "k3 KL, nats per token", "Norm of the gradients", "response length", "Refit time"] {
        assert!(plot.contains(heading), "{heading}");
    }
    // The set that made the weights is in the legend, by its digest.
    assert!(plot.contains(first["patch_set"].as_str().unwrap()));
}

#[test]
fn without_a_quantizing_patch_engine_and_trainer_agree() {
    let tmp = tmp();
    let path = tmp.path().join("m");
    train(&path, &["--steps", "2"]).good();
    let made = lines(&path);
    // At first the bf16 weights of both are the same numbers; then those of the engine are rounded.
    let k3 = |i: usize| made[i]["rollout_corr/k3_kl"].as_f64().unwrap();
    assert!(made[0]["training/rollout_probs_diff_max"].as_f64().unwrap() < 1e-4, "{}", made[0]);
    assert!(k3(0) < 1e-8 && k3(1) < 1e-3, "{} {}", k3(0), k3(1));

    // With bf16 masters nothing is rounded at all.
    train(&path, &["--steps", "2", "--master", "bf16"]).good();
    let made = lines(&path);
    assert!(made[1]["training/rollout_probs_diff_max"].as_f64().unwrap() < 1e-4, "{}", made[1]);
}

#[test]
fn every_task_runs_and_prompts_may_come_from_a_file() {
    let tmp = tmp();
    let (path, file) = (tmp.path().join("m"), tmp.path().join("prompts"));
    std::fs::write(&file, "ROMEO.\\n\n\nMy lord,\n").unwrap();
    let file = file.display().to_string();
    for task in ["lipogram", "question", "short-lines"] {
        train(&path, &["--steps", "1", "--task", task, "--prompts", &file, "--rollout-is", "none"]).good();
        let reward = lines(&path)[0]["reward"].clone();
        assert!((0.0..=1.0).contains(&reward["mean"].as_f64().unwrap()), "{task}: {reward}");
    }
}

/// A checkpoint's master weights are a file that anybody can read.
#[test]
fn master_weights_are_plain_safetensors() {
    let tmp = tmp();
    let dir = tmp.path().join("ckpt");
    let shown = dir.display().to_string();
    train(&tmp.path().join("m"), &["--steps", "1", "--checkpoint-dir", &shown]).good();
    let file = Checkpoint::open(&dir.join("step-00000001/masters.safetensors")).unwrap();
    let base = Checkpoint::open(&repo().join("models/tiny-shakespeare-moe")).unwrap();
    assert_eq!(file.tensors().len(), base.tensors().len());
    for (a, b) in file.tensors().zip(base.tensors()) {
        assert_eq!((&a.name, &a.shape, a.data.len()), (&b.name, &b.shape, 2 * b.data.len()));
    }
}
