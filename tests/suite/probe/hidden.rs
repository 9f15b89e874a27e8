//! What a probe finds in patches that behave well almost always.

use super::*;
use patchhost::audit::{AuditOptions, Severity};
use patchhost::patch::Verification;
use patchhost::probe::examine;

fn examined(bytes: Vec<u8>, settings: &[(&str, &str)], options: &ProbeOptions) -> ProbeReport {
    let settings: Vec<_> = settings.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let verified = Candidate::from_bytes("x.wasm", bytes).unwrap().verify(&Verification::Unpinned).unwrap();
    let sandbox = Sandbox::new(2).unwrap();
    examine(verified, &AuditOptions::default(), &sandbox, &settings, &Limits::default(), options).unwrap().1
}

fn options() -> ProbeOptions {
    ProbeOptions { calls: 2_000, matrix: (130, 260), random: 250, budget: std::time::Duration::from_secs(60), ..ProbeOptions::thorough() }
}

#[test]
fn honest_patches_hide_nothing() {
    for name in ["fp8_block", "fp8_block_mse"] {
        let bytes = resolve(name).unwrap().bytes().to_vec();
        let report = examined(bytes, &[], &options());
        println!("{report}");
        passes(&report);
        assert_eq!(report.findings(), [], "{name}");
        let asked: Vec<_> = report.checks.iter().filter(|c| c.verdict == Verdict::Passed).map(|c| c.name).collect();
        for check in ["vectors", "contract", "differential", "properties", "twin", "history", "fuel", "apart"] {
            assert!(asked.contains(&check), "{name}: {check} of {asked:?}");
        }
    }
}

#[test]
fn settings_of_the_search_have_a_reference_too() {
    let options = ProbeOptions { calls: 100, random: 100, ..options() };
    for settings in [
        &[("range", "0.8..1.5"), ("candidates", "9"), ("clip", "0.02")][..],
        &[("scale_format", "ue8m0")],
        &[("block", "64x96"), ("candidates", "64")],
    ] {
        let report = run(&bundled("fp8_block_mse", settings), &options);
        assert_eq!(report.profile.as_deref(), Some("mse"), "{settings:?}");
        passes(&report);
    }
}

#[test]
fn every_sleeper_wakes() {
    for (sleeper, settings, check, rule) in SLEEPERS {
        let bytes = std::fs::read(evil("sleeper")).unwrap();
        let settings = [("wakes", *sleeper), ("at", *settings)];
        let report = examined(bytes, &settings, &options());
        let failure = report.first_failure().unwrap_or_else(|| panic!("{sleeper} sleeps on: {report}"));
        assert_eq!(failure.title(), *check, "{sleeper}: {failure:?}");
        let findings = report.findings();
        assert!(findings.iter().any(|f| f.id == *rule && f.severity == Severity::Error), "{sleeper}: {findings:?}");
    }
}
