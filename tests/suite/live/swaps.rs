use patchhost::live::Swapped;
use patchhost::patch::{Mode, Requested, SwapErrorKind, SwapRequest, When};
use patchhost_runtime::refit::Begin;

use super::{QUIET, Rig, candidate, me, settings};

const TORCH: &[(&str, &str)] = &[("profile", "verl-torch")];
const DEEPSEEK: &[(&str, &str)] = &[("profile", "deepseek")];

#[test]
fn a_swap_lands_at_the_next_refit_and_a_rollback_returns_every_bit() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", TORCH)]);
    let (before, first) = (rig.bits(), rig.active());
    let to = rig.stage("fp8_block", DEEPSEEK);
    let outcome = rig.swap(to, When::Refit);
    assert!(matches!(outcome.requested, Requested::Pending { from, .. } if from == first));
    assert_eq!((rig.bits(), rig.active()), (before.clone(), first), "nothing changes before a refit");

    let refitted = rig.refit();
    let second = rig.active();
    assert_eq!(refitted.swap, Some(Swapped { from: first, to: second }));
    assert_ne!(rig.bits(), before);
    assert_eq!(refitted.weights.patches(), second.to_string());
    let fresh = Rig::new("qwen3_moe", &[("fp8_block", DEEPSEEK)]);
    assert_eq!((rig.bits(), second), (fresh.bits(), fresh.active()), "as if it had been there from the start");

    rig.live.rollback(When::Refit, None, &me()).unwrap();
    let back = rig.refit();
    assert_eq!(back.swap, Some(Swapped { from: second, to: first }));
    assert_eq!((rig.bits(), rig.active()), (before, first));
    assert_eq!(rig.last("swap.rolled_back")["to"], first.to_string());
    let status = rig.live.status();
    assert_eq!((status.board.swaps, status.board.rollbacks, status.board.tainted.len()), (1, 1, 0));
}

#[test]
fn now_and_at_a_step() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", TORCH)]);
    let first = rig.active();
    let to = rig.stage("fp8_block", DEEPSEEK);
    let outcome = rig.swap(to, When::Now);
    assert_eq!(outcome.landed, Some(Swapped { from: first, to: rig.active() }));
    assert_eq!(rig.live.engine().live().unwrap().label(), "1", "the same weights, quantized anew, keep their name");

    let third = rig.stage("fp8_block", &[("profile", "hf")]);
    rig.swap(third, When::Step(5));
    for refit in 3..=5 {
        let done = rig.refit();
        assert_eq!((done.refit, done.swap.is_some()), (refit, refit == 5));
    }
}

#[test]
fn the_same_again_is_nothing() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", TORCH)]);
    let same = rig.live.stage(candidate("fp8_block"), None, &settings(TORCH), &me()).unwrap();
    assert!(same.already, "what is active is not compiled again");
    assert_eq!(rig.swap(same.generation, When::Refit).requested, Requested::AlreadyActive { active: rig.active() });
    let to = rig.stage("fp8_block", DEEPSEEK);
    rig.swap(to, When::Refit);
    assert!(matches!(rig.swap(to, When::Refit).requested, Requested::AlreadyPending { .. }));
    // Asking for what is active while another is coming takes that one back.
    rig.swap(same.generation, When::Refit);
    assert!(rig.refit().swap.is_none());
}

#[test]
fn what_is_expected_must_be_active() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", TORCH)]);
    let to = rig.stage("fp8_block", DEEPSEEK);
    let expecting = |expect| SwapRequest { expect: Some(expect), ..SwapRequest::to(to) };
    let error = rig.live.swap(&expecting(to), &me()).unwrap_err().to_string();
    assert!(error.contains("was expected to be active") && error.contains("\n  next: "), "{error}");
    assert_eq!(rig.last("swap.refused")["to"], to.to_string());
    // The set, or the patch that is replaced, by either of its digests.
    let fp8 = rig.live.board().active().members().into_iter().find(|m| m.name == "fp8_block").unwrap();
    for expect in [rig.active(), fp8.sha256, fp8.generation] {
        rig.live.swap(&expecting(expect), &me()).unwrap();
        assert!(rig.live.cancel("test", &me()));
    }
}

#[test]
fn one_transition_at_a_time_unless_forced() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", TORCH)]);
    let (a, b) = (rig.stage("fp8_block", DEEPSEEK), rig.stage("fp8_block", &[("profile", "hf")]));
    rig.swap(a, When::Step(100));
    let request = SwapRequest::to(b);
    let error = rig.live.board().request(&request, &me()).unwrap_err();
    assert_eq!(error.kind, SwapErrorKind::Conflict);
    let forced = SwapRequest { force: true, ..request.clone() };
    assert_eq!(rig.live.board().request(&forced, &me()).unwrap_err().kind, SwapErrorKind::Invalid, "needs a reason");
    let forced = SwapRequest { reason: Some("the run is on fire".into()), ..forced };
    rig.live.swap(&forced, &me()).unwrap();
    assert!(rig.refit().swap.is_some());
    assert!(rig.live.status().board.tainted[0].contains("on fire"), "tainted for good");
    rig.live.rollback(When::Now, None, &me()).unwrap();
    assert_eq!(rig.live.status().board.tainted.len(), 1);
}

#[test]
fn changes_for_the_same_refit_add_up() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", TORCH)]);
    let (quant, layout) = (rig.stage("fp8_block", DEEPSEEK), rig.stage("gpu_layout", &[("backend", "flashinfer")]));
    rig.swap(quant, When::Refit);
    rig.swap(layout, When::Refit);
    let done = rig.refit();
    assert!(done.swap.is_some() && !done.report.layout.is_empty());
    let names: Vec<String> = rig.live.board().active().members().into_iter().map(|m| m.name).collect();
    assert_eq!(names, ["moe_loader", "fp8_block", "gpu_layout"]);
    // One transition, so one rollback takes both back.
    rig.live.rollback(When::Now, None, &me()).unwrap();
    assert_eq!(rig.live.board().active().members().len(), 2);
}

#[test]
fn rows_are_a_part_of_block_quant_and_other_hooks_are_not_lost_silently() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block_mse", &[])]);
    let to = rig.stage("fp8_block", TORCH);
    rig.swap(to, When::Now);
    assert_eq!(rig.live.board().active().members().len(), 2, "one takes the other's place");
    let back = rig.stage("fp8_block_mse", &[]);
    rig.swap(back, When::Now);
    assert_eq!(rig.live.board().active().members()[1].name, "fp8_block_mse");
}

#[test]
fn old_sets_drain_when_their_last_user_is_gone() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", TORCH)]);
    let held = rig.live.weights_for("a request").unwrap();
    for profile in ["deepseek", "hf", "slime", "vllm-group"] {
        let to = rig.stage("fp8_block", &[("profile", profile)]);
        rig.swap(to, When::Now);
    }
    let draining = rig.live.status().board.draining;
    assert_eq!((draining.len(), draining[0].users), (1, 1), "two are retained, one is in use, one is gone");
    assert_eq!(draining[0].set.to_string(), held.patches());
    drop(held);
    assert!(rig.live.status().board.draining.is_empty());
    let retired = rig.events().iter().filter(|e| *e == "patch.retired").count();
    assert_eq!(retired, 2);
}

#[test]
fn two_hundred_swaps_leave_nothing_behind() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", TORCH)]);
    let (a, b) = (rig.bits(), rig.stage("fp8_block", DEEPSEEK));
    rig.swap(b, When::Now);
    let b_bits = rig.bits();
    for round in 0..200 {
        rig.live.rollback(When::Now, None, &me()).unwrap();
        assert_eq!(rig.bits(), if round % 2 == 0 { a.clone() } else { b_bits.clone() });
    }
    let status = rig.live.status().board;
    assert!(status.draining.is_empty() && status.retained.len() == 1 && status.staged.len() == 1);
}

#[test]
fn a_refit_that_is_refused_keeps_the_transition() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", TORCH)]);
    let to = rig.stage("fp8_block", DEEPSEEK);
    rig.swap(to, When::Refit);
    let before = rig.bits();
    // The weights are at fault, not the candidate: it stays.
    let broken = patchhost_runtime::checkpoint::Checkpoint::from_tensors(rig.checkpoint.tensors().skip(1).cloned());
    let refused = rig.live.refit(broken.unwrap(), Begin::default(), &me(), QUIET);
    assert!(refused.is_err());
    assert_eq!(rig.bits(), before);
    assert!(rig.live.status().board.transition.is_some());
    assert!(rig.refit().swap.is_some());
}

#[test]
fn words() {
    for (text, when) in [("refit", When::Refit), ("now", When::Now), ("step:7", When::Step(7))] {
        assert_eq!((text.parse(), when.to_string()), (Ok(when), text.to_string()));
    }
    for (text, mode) in [("live", Mode::Live), ("shadow", Mode::Shadow), ("canary=5%", Mode::Canary(5))] {
        assert_eq!((text.parse(), mode.to_string()), (Ok(mode), text.to_string()));
    }
    assert!("canary=0".parse::<Mode>().is_err() && "canary=100%".parse::<Mode>().is_err());
    assert!("step:x".parse::<When>().is_err());
}
