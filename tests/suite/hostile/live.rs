//! A model that serves while every evil candidate is staged, and swapped in if it passes: its weights stay bit for bit what
//! they were, and the ledger says what was refused.

use patchhost::patch::{Candidate, SwapRequest, When};

use super::{cases::Case, groups, wat};
use crate::live::{Rig, me};
use crate::support::repo;

#[test]
fn text_guests_do_not_change_a_live_model() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", &[])]);
    let (bits, active) = (rig.bits(), rig.active());
    for case in groups::ALL.iter().flat_map(|group| group.iter()) {
        attack(&rig, case.name, wat::guest(case.name), Some(case));
        assert_eq!(rig.bits(), bits, "{}: the live weights changed", case.name);
        assert_eq!(rig.active(), active, "{}: another set is live", case.name);
    }
}

#[test]
fn guests_in_rust_do_not_change_a_live_model() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", &[])]);
    let (bits, active) = (rig.bits(), rig.active());
    for (name, _, _) in super::guests::QUANT {
        let bytes = std::fs::read(repo().join(format!("guests/evil/{name}.wasm"))).unwrap();
        attack(&rig, name, bytes, None);
        assert_eq!(rig.bits(), bits, "{name}: the live weights changed");
        assert_eq!(rig.active(), active, "{name}: another set is live");
    }
}

/// Stages a candidate and swaps it in; goes back if it was harmless.
fn attack(rig: &Rig, name: &str, bytes: Vec<u8>, case: Option<&Case>) {
    let refusals = |rig: &Rig| {
        let bad = ["patch.refused", "swap.refused", "refit.refused", "patch.failure"];
        rig.events().iter().filter(|event| bad.contains(&event.as_str())).count()
    };
    let before = refusals(rig);
    let candidate = match Candidate::from_bytes(name, bytes) {
        Ok(candidate) => candidate,
        Err(error) => return assert!(error.to_string().contains("\n  why: ")),
    };
    let (active, bits) = (rig.active(), rig.bits());
    let staged = match rig.live.stage(candidate, None, &[], &me()) {
        Ok(staged) => staged,
        Err(error) => {
            assert!(error.to_string().contains("\n  why: "), "{name}: {error}");
            return assert!(refusals(rig) > before, "{name}: refused, and the ledger does not say so");
        }
    };
    assert_eq!(rig.bits(), bits, "{name}: staging alone changed the weights");
    let request = SwapRequest { when: When::Now, ..SwapRequest::to(staged.generation) };
    match rig.live.swap(&request, &me()) {
        Err(error) => {
            assert!(error.to_string().contains("\n  why: "), "{name}: {error}");
            assert!(refusals(rig) > before, "{name}: refused, and the ledger does not say so");
        }
        Ok(_) => {
            let harmless = case.is_some_and(|case| case.code == 0 || !case.asks_quant());
            assert!(harmless, "{name}: it serves");
            if rig.active() != active {
                rig.live.rollback(When::Now, None, &me()).unwrap();
            }
        }
    }
}
