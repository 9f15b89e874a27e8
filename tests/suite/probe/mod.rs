//! The probe: honest patches pass whatever their settings, and each lie is found by the check that is there for it.

mod hidden;
mod mutants;
mod mutation;

use std::sync::{Arc, LazyLock};

use patchhost::patch::{Candidate, Patch, Reviewing, Sandbox, StageError, Terms, resolve};
use patchhost::probe::{ProbeOptions, ProbeReport, Verdict, run};

use crate::support::evil;

static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::new(4).unwrap());

fn start(candidate: Candidate, settings: &[(&str, &str)]) -> Arc<Patch> {
    try_start(candidate, settings).unwrap()
}

fn try_start(candidate: Candidate, settings: &[(&str, &str)]) -> Result<Arc<Patch>, StageError> {
    Reviewing::default().start(candidate, &Terms::settings(settings.iter().copied()), &*SANDBOX)
}

fn bundled(name: &str, settings: &[(&str, &str)]) -> Arc<Patch> {
    start(resolve(name).unwrap(), settings)
}

#[track_caller]
fn passes(report: &ProbeReport) {
    let failed: Vec<_> = report.checks.iter().filter(|c| c.verdict != Verdict::Passed).collect();
    assert!(report.passed() && failed.iter().all(|c| c.verdict == Verdict::Skipped), "{}: {failed:#?}", report.patch);
}

#[test]
fn honest_patches_pass() {
    for name in ["fp8_block", "fp8_block_mse", "moe_loader", "gpu_layout", "lora_tensors", "refit_guard", "vocab_mask"]
    {
        let report = run(&bundled(name, &[]), &ProbeOptions { calls: 2_000, ..ProbeOptions::thorough() });
        println!("{name}: {} answers in {:.2} s", report.asked(), report.seconds);
        for check in &report.checks {
            println!("  {:32} {:?} {} {:?} {:?}", check.title(), check.verdict, check.asked, check.worst, check.why);
        }
        passes(&report);
        assert!(report.asked() > 0, "{name} was asked nothing");
    }
}

#[test]
fn every_profile_passes_with_every_edge_and_format() {
    let mut asked = 0;
    let options = ProbeOptions { random: 100, calls: 50, layers: 2, matrix: (130, 260), ..ProbeOptions::thorough() };
    for profile in ["verl-torch", "verl-triton", "deepseek", "vllm-group", "hf", "deepgemm", "slime"] {
        for (format, more) in [
            ("f32", ("edges", "strict")),
            ("f32", ("edges", "seed-torch")),
            ("f32", ("edges", "seed-triton")),
            ("ue8m0", ("activation", "call")),
        ] {
            let set = [("profile", profile), ("scale_format", format), more];
            let patch = match try_start(resolve("fp8_block").unwrap(), &set) {
                Ok(patch) => patch,
                // Some edges are of one profile only, and the patch says so.
                Err(StageError::Start { call: "configure", .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            asked += 1;
            let report = run(&patch, &options);
            assert_eq!(report.profile.as_deref(), Some(profile), "{set:?}");
            // Edges that let NaN pass are remarked, and nothing else is.
            let remarks: Vec<&str> = report.checks.iter().filter_map(|c| c.why.as_deref()).collect();
            match more.1.starts_with("seed") {
                true => {
                    assert!(!report.checks.iter().any(|c| c.verdict == Verdict::Failed), "{set:?}: {report:?}");
                    assert!(remarks.iter().any(|why| why.contains("its scheme has edges = ")), "{set:?}: {remarks:?}");
                }
                false => passes(&report),
            }
        }
    }
    assert!(asked >= 7 * 2, "{asked}");
    for block in ["64x64", "1x128", "128x64"] {
        passes(&run(&bundled("fp8_block", &[("block", block)]), &options));
        passes(&run(&bundled("fp8_block_mse", &[("block", block)]), &options));
    }
}

/// (guest, the check that finds it, words of the finding)
const LIARS: &[(&str, &str, &str)] = &[
    ("nan_scales", "block-quant contract", "scale contract broken"),
    ("inf_scales", "block-quant contract", "scale contract broken"),
    ("negative", "block-quant contract", "scale contract broken"),
    ("zero", "block-quant contract", "scale contract broken"),
    ("saturating", "block-quant contract", "scale contract broken"),
    ("crushing", "block-quant contract", "scale contract broken"),
    ("subtle", "block-quant contract", "scale contract broken"),
    ("not_pow2", "block-quant contract", "power of two"),
    ("too_many", "block-quant contract", "numbers for"),
    ("too_few", "block-quant contract", "numbers for"),
    ("spin", "block-quant contract", "fuel"),
    ("grow", "block-quant contract", "memory"),
    ("recurse", "block-quant contract", "stack"),
    ("wrong_decisions", "block-quant decisions", "decide"),
    ("bad_scheme", "block-quant decisions", "decide"),
    ("activation_rule", "block-quant activation", "rule"),
    ("activation_saturating", "block-quant activation", "448"),
    ("activation_short", "block-quant activation", "numbers for"),
    ("activation_spin", "block-quant activation", "fuel"),
];

#[test]
fn each_lie_is_found_by_its_check() {
    let options = ProbeOptions { budget: std::time::Duration::from_secs(60), ..ProbeOptions::quick() };
    for (guest, check, word) in LIARS {
        let report = run(&start(Candidate::from_file(evil(guest).as_ref()).unwrap(), &[]), &options);
        let failure = report.first_failure().unwrap_or_else(|| panic!("{guest} passed: {report:#?}"));
        assert_eq!(failure.title(), *check, "{guest}: {failure:?}");
        let why = failure.why.as_deref().unwrap();
        assert!(why.contains(word), "{guest}: {why}");
    }
    let trap = start(Candidate::from_file(evil("trap_nth").as_ref()).unwrap(), &[("n", "300")]);
    let report = run(&trap, &ProbeOptions::thorough());
    assert!(!report.passed(), "a trap after 300 calls: {report:#?}");
}
