use patchhost::live::{CanaryUnit, LiveOptions};
use patchhost::patch::{Mode, SwapRequest, When};
use patchhost::trust::Policy;

use super::{Rig, candidate, me, settings};
use crate::support::{repo, tmp};

const TORCH: &[(&str, &str)] = &[("profile", "verl-torch")];

/// Every guest that misbehaves, brought as a candidate for a running model: none becomes live, the reason is in the
/// ledger, and what served serves on.
#[test]
fn no_broken_candidate_becomes_live() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", TORCH)]);
    let (before, active) = (rig.bits(), rig.active());
    let mut names: Vec<String> = std::fs::read_dir(repo().join("guests/evil"))
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().to_str().unwrap().strip_suffix(".wasm").map(str::to_string))
        // A hook of its own, and honest where no fault is asked for.
        .filter(|name| name != "any_hook" && name != "any_state")
        .collect();
    names.sort();
    for name in &names {
        // It traps in its third call: later than any probe, if it wants.
        let set: &[(&str, &str)] = if name == "trap_nth" { &[("n", "3")] } else { &[] };
        let staged = rig.live.stage(candidate(name), None, &settings(set), &me());
        let why = match staged {
            Err(error) => {
                assert!(rig.last("patch.refused")["why"].as_str().unwrap().len() > 20, "{name}");
                error.to_string()
            }
            Ok(staged) => {
                let outcome =
                    rig.live.swap(&SwapRequest { when: When::Now, ..SwapRequest::to(staged.generation) }, &me());
                let outcome = outcome.unwrap_or_else(|e| panic!("{name}: {e}"));
                assert!(outcome.landed.is_none(), "{name} became live");
                assert_eq!(rig.last("swap.reversed")["active"], active.to_string(), "{name}");
                outcome.reversed.unwrap()
            }
        };
        assert!(why.contains("\n  why: ") && why.contains("\n  next: "), "{name}: {why}");
        assert_eq!((rig.bits(), rig.active()), (before.clone(), active), "{name}");
        assert!(rig.live.status().board.transition.is_none(), "{name}");
    }
    assert!(rig.refit().degraded.is_none());
    assert_eq!(rig.bits(), before);
}

#[test]
fn what_is_no_component_is_refused_and_written_down() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", TORCH)]);
    for (name, bytes) in
        [("text.wasm", b"not wasm".to_vec()), ("empty.wasm", Vec::new()), ("core.wasm", b"\0asm\x01\0\0\0".to_vec())]
    {
        let candidate = patchhost::patch::Candidate::from_bytes(name, bytes).unwrap();
        rig.live.stage(candidate, None, &[], &me()).unwrap_err();
        assert_eq!(rig.last("patch.refused")["name"], name);
    }
    let wants_files =
        wat::parse_str(r#"(component (import "wasi:filesystem/types@0.2.0" (instance (export "f" (func)))))"#);
    let candidate = patchhost::patch::Candidate::from_bytes("wants_files.wasm", wants_files.unwrap()).unwrap();
    let error = rig.live.stage(candidate, None, &[], &me()).unwrap_err().to_string();
    assert!(error.contains("wasi:filesystem"), "{error}");
    assert_eq!(rig.live.status().board.refused, 4);
}

#[test]
fn shadow_compares_and_changes_nothing() {
    let tmp = tmp();
    let options = LiveOptions { reports: Some(tmp.path().to_owned()), ..LiveOptions::default() };
    let rig = Rig::with("qwen3_moe", &[("fp8_block", TORCH)], Policy::default(), options);
    let before = rig.bits();
    let to = rig.stage("fp8_block", &[("profile", "deepseek")]);
    rig.live.swap(&SwapRequest { mode: Mode::Shadow, ..SwapRequest::to(to) }, &me()).unwrap();
    for clean in 1..=3 {
        assert!(rig.refit().swap.is_none());
        assert_eq!(rig.bits(), before);
        let report = rig.live.shadow_report().unwrap();
        assert_eq!((report.clean_refits, report.findings.len()), (clean, 0));
        assert!(report.differing_tensors > 0 && report.totals.scales.differing > 0 && !report.tensors.is_empty());
    }
    let files = std::fs::read_dir(tmp.path()).unwrap().count();
    assert_eq!(files, 3, "a report file for each refit");
    // Nothing promotes it but somebody.
    rig.live.set_mode(Mode::Live, When::Refit, &me()).unwrap();
    assert!(rig.refit().swap.is_some());
    assert_ne!(rig.bits(), before);
}

#[test]
fn a_threshold_of_the_policy_ends_it() {
    for (limit, word) in [
        ("max_bytes_changed = 0.0", "bytes differ"),
        ("max_scales_changed = 0.0", "scales differ"),
        ("max_scale_ulp = 0", "ulp"),
    ] {
        let policy = Policy::parse(&format!("[shadow]\n{limit}\n")).unwrap();
        let rig = Rig::with("qwen3_moe", &[("fp8_block", TORCH)], policy, LiveOptions::default());
        let before = rig.bits();
        let to = rig.stage("fp8_block_mse", &[]);
        rig.live.swap(&SwapRequest { mode: Mode::Shadow, ..SwapRequest::to(to) }, &me()).unwrap();
        rig.refit();
        let reversed = rig.last("swap.reversed");
        assert!(reversed["why"].as_str().unwrap().contains(word), "{limit}: {reversed}");
        assert!(rig.live.status().board.transition.is_none());
        assert_eq!(rig.bits(), before);
    }
}

#[test]
fn a_canary_serves_some_requests_wholly() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", TORCH)]);
    let live = rig.active();
    let to = rig.stage("fp8_block", &[("profile", "deepseek")]);
    let request = SwapRequest { mode: Mode::Canary(30), when: When::Now, ..SwapRequest::to(to) };
    rig.live.swap(&request, &me()).unwrap();
    let of = |id: usize| rig.live.weights_for(&format!("request-{id}")).unwrap().patches().to_string();
    let canary = (0..1000).filter(|id| of(*id) != live.to_string()).count();
    assert!((230..370).contains(&canary), "{canary}");
    assert!((0..100).all(|id| of(id) == of(id)), "a request stays where it is");
    rig.refit();
    assert_eq!(rig.live.status().canary.map(|c| c.0), Some(30), "it takes part in every refit");
    assert_eq!(rig.live.shadow_report().unwrap().clean_refits, 2);
    // More of it, by asking again.
    rig.live.swap(&SwapRequest { mode: Mode::Canary(60), ..request.clone() }, &me()).unwrap();
    assert_eq!(rig.live.status().canary.map(|c| c.0), Some(60));
    assert!(rig.live.cancel("enough", &me()));
    assert!((0..1000).all(|id| of(id) == live.to_string()));
}

#[test]
fn a_canary_of_tensors_says_that_it_is_mixed() {
    let options = LiveOptions { canary: CanaryUnit::Tensor, ..LiveOptions::default() };
    let rig = Rig::with("qwen3_moe", &[("fp8_block", TORCH)], Policy::default(), options);
    let (live, before) = (rig.active(), rig.bits());
    let to = rig.stage("fp8_block", &[("profile", "deepseek")]);
    rig.live.swap(&SwapRequest { mode: Mode::Canary(50), ..SwapRequest::to(to) }, &me()).unwrap();
    let done = rig.refit();
    let full = Rig::new("qwen3_moe", &[("fp8_block", &[("profile", "deepseek")])]);
    assert_ne!(rig.bits(), before);
    assert_ne!(rig.bits(), full.bits(), "some tensors are of the one, some of the other");
    assert!(done.patch_set != live && done.patch_set != full.active(), "its identity is its own");
    let same = Rig::with(
        "qwen3_moe",
        &[("fp8_block", TORCH)],
        Policy::default(),
        LiveOptions { canary: CanaryUnit::Tensor, ..LiveOptions::default() },
    );
    let to = same.stage("fp8_block", &[("profile", "deepseek")]);
    same.live.swap(&SwapRequest { mode: Mode::Canary(50), ..SwapRequest::to(to) }, &me()).unwrap();
    assert_eq!((same.refit().patch_set, same.bits()), (done.patch_set, rig.bits()), "every rank decides alike");
}
