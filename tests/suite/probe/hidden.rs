//! What a probe finds in patches that behave well almost always.

use super::*;
use patchhost::audit::Severity;
use patchhost::probe::examine;

use crate::hostile::wat;

fn examined(bytes: Vec<u8>, settings: &[(&str, &str)], options: &ProbeOptions) -> ProbeReport {
    let (candidate, terms) =
        (Candidate::from_bytes("x.wasm", bytes).unwrap(), Terms::settings(settings.iter().copied()));
    let admitted = candidate.admit(&Reviewing::default(), &terms).unwrap();
    examine(admitted, &Sandbox::new(2).unwrap().into(), options).unwrap().1
}

fn options() -> ProbeOptions {
    ProbeOptions {
        calls: 2_000,
        matrix: (130, 260),
        random: 250,
        budget: std::time::Duration::from_secs(60),
        ..ProbeOptions::thorough()
    }
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

/// `$scales` of the honest text guest, and then a thousandth more for the first block where `condition` holds.
fn sleeper(condition: &str) -> Vec<u8> {
    let text = format!(
        r#"(global $calls (mut i32) (i32.const 0))
        (func $scales (param $name i32) (param $name_len i32) (param $rows i32) (param $cols i32) (param i32 i32)
            (param $first i32) (param $amax i32) (param $count i32) (result i32)
          (local $answer i32) (local $x f32)
          (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
          (local.set $x (f32.load (local.get $amax)))
          (local.set $answer (call $honest (local.get $amax) (local.get $count)))
          (if {condition}
            (then (f32.store (local.get $amax) (f32.mul (f32.load (local.get $amax)) (f32.const 1.001)))))
          (local.get $answer))"#
    );
    wat::component("quant-patch", &text)
}

/// (when it is wrong, the check that finds it, the rule)
const SLEEPERS: &[(&str, &str, &str)] = &[
    ("(f32.eq (local.get $x) (f32.const 13.375))", "block-quant constants", "PH954"),
    ("(i32.eq (i32.reinterpret_f32 (local.get $x)) (i32.const 0x40C0FFEE))", "block-quant constants", "PH954"),
    // bf16 bits, as weights have them
    (
        "(i32.eq (i32.shr_u (i32.reinterpret_f32 (local.get $x)) (i32.const 16)) (i32.const 0x40AB))",
        "block-quant constants",
        "PH954",
    ),
    ("(i32.eq (i32.trunc_sat_f32_u (local.get $x)) (i32.const 777123))", "block-quant constants", "PH954"),
    ("(i32.eq (local.get $first) (i32.const 61440))", "block-quant constants", "PH954"),
    ("(i32.eq (local.get $count) (i32.const 37))", "block-quant places", "PH954"),
    // the last letter of `…o_proj.weight` is the same as everywhere; the length is not
    ("(i32.eq (local.get $name_len) (i32.const 43))", "block-quant names", "PH952"),
    ("(i32.gt_u (global.get $calls) (i32.const 3000))", "block-quant history", "PH953"),
    (
        "(i32.and (i32.gt_u (global.get $calls) (i32.const 1)) (i32.lt_u (global.get $calls) (i32.const 4)))",
        "block-quant contract",
        "PH951",
    ),
];

#[test]
fn every_sleeper_wakes() {
    let honest = examined(wat::honest("quant-patch"), &[], &options());
    assert!(honest.passed() && honest.findings().is_empty(), "{honest}");
    let options = ProbeOptions { calls: 20_000, ..options() };
    for (condition, check, rule) in SLEEPERS {
        let report = examined(sleeper(condition), &[], &options);
        let failure = report.first_failure().unwrap_or_else(|| panic!("{condition} sleeps on: {report}"));
        assert_eq!(failure.title(), *check, "{condition}: {failure:?}");
        let findings = report.findings();
        assert!(findings.iter().any(|f| f.id == *rule && f.severity == Severity::Error), "{condition}: {findings:?}");
    }
}

#[test]
fn text_guests_that_are_almost_honest_are_found() {
    for (guest, check) in [
        ("magic_value", "constants"),
        ("one_layer", "places"),
        ("time_bomb", "contract"),
        ("remembers", "contract"),
        ("ulp_20", "contract"),
        ("last_block", "contract"),
    ] {
        let report = examined(wat::guest(guest), &[], &options());
        assert_eq!(report.first_failure().map(|c| c.name), Some(check), "{guest}: {report}");
    }
}

/// Slow, but within its limits in each call: the probe ends all the same, and says what it has not asked.
#[test]
fn a_slow_patch_does_not_hold_a_probe() {
    let slow = r#"(func $scales (param i32 i32 i32 i32 i32 i32 i32) (param $amax i32) (param $count i32) (result i32)
          (local $left i32)
          (local.set $left (i32.const 190000))
          (loop $more
            (local.set $left (i32.sub (local.get $left) (i32.const 1)))
            (br_if $more (local.get $left)))
          (call $honest (local.get $amax) (local.get $count)))"#;
    let budget = std::time::Duration::from_millis(60);
    let report = examined(wat::component("quant-patch", slow), &[], &ProbeOptions { budget, ..options() });
    assert!(report.passed(), "{report}");
    assert!(report.checks.iter().any(patchhost::probe::Check::out_of_time), "{report}");
    assert!(report.findings().iter().any(|f| f.id == "PH958"), "{report}");
}

/// A recipe that treats tensors apart and keeps its contract is honest: it is a remark, no refusal.
#[test]
fn an_exotic_recipe_is_a_remark() {
    let exotic = sleeper("(i32.eq (local.get $name_len) (i32.const 43))").clone();
    assert!(!examined(exotic, &[], &options()).passed());
    let within = r#"(func $scales (param $name i32) (param $name_len i32) (param i32 i32 i32 i32)
            (param $first i32) (param $amax i32) (param $count i32) (result i32)
          (local $answer i32)
          (local.set $answer (call $honest (local.get $amax) (local.get $count)))
          (if (i32.eq (local.get $name_len) (i32.const 43))
            (then (i32.store (local.get $amax) (i32.add (i32.load (local.get $amax)) (i32.const 2)))))
          (local.get $answer))"#;
    let report = examined(wat::component("quant-patch", within), &[], &options());
    assert!(report.passed(), "{report}");
    let findings = report.findings();
    assert!(findings.iter().any(|f| f.id == "PH957" && f.severity == Severity::Warn), "{findings:?}");
}

/// The other hooks: a second instance without optimization answers as the first does.
#[test]
fn other_patches_have_twins_too() {
    for name in ["moe_loader", "gpu_layout", "lora_tensors", "vocab_mask", "refit_guard"] {
        let report = examined(resolve(name).unwrap().bytes().to_vec(), &[], &options());
        passes(&report);
        assert_eq!(report.findings(), [], "{name}");
        assert!(name == "refit_guard" || report.checks.iter().any(|c| c.name == "twin answers"), "{name}: {report}");
    }
}

/// Beside a refit it must be short. How long depends on the machine; that it is a few thousand answers does not.
#[test]
fn the_quick_probe_is_small() {
    for name in ["fp8_block", "fp8_block_mse", "moe_loader"] {
        let patch = bundled(name, &[]);
        let report = patchhost::probe::before_activation(&patch).unwrap();
        println!("{report}");
        let calls = patch.stats().hook_calls();
        assert!(calls < 2_500, "{name}: {calls} calls");
    }
}
