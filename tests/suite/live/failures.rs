use patchhost::live::LiveOptions;
use patchhost::patch::When;
use patchhost::trust::Policy;
use patchhost_runtime::refit::Begin;

use super::{QUIET, Rig, me};

fn policy(on_failure: &str, budget: u32) -> Policy {
    let text = format!(
        "[hooks.block-quant]\non_failure = \"{on_failure}\"\n[failure]\nrestart_budget = {budget}\nbackoff_ms = 1\n"
    );
    Policy::parse(&text).unwrap()
}

/// `trap_nth` counts its calls per instance: it survives the first load and traps in a later refit.
const LATER: &[(&str, &str)] = &[("n", "150")];

fn until_it_fails(rig: &Rig) -> Result<patchhost::live::Refitted, patchhost::live::LiveError> {
    for _ in 0..200 {
        let done = rig.live.refit(rig.checkpoint.clone(), Begin::default(), &me(), QUIET);
        match done {
            Ok(done) if done.degraded.is_none() => {}
            other => return other,
        }
    }
    panic!("it never failed");
}

/// After its backoff it is asked again: it answers, or it fails again in its own way. `trap_nth` counts per instance, and
/// which instance has answered how often depends on the scheduling: the first refit after a trap may meet the next one.
fn asked_again(rig: &Rig) {
    std::thread::sleep(std::time::Duration::from_millis(50));
    let before = rig.failures();
    let done = rig.refit();
    assert!(done.degraded.is_none() || rig.failures() > before, "it was not asked: {:?}", done.degraded);
}

#[test]
fn closed_refuses_the_refit() {
    let rig = Rig::with("qwen3_moe", &[("trap_nth", LATER)], policy("closed", 100), LiveOptions::default());
    let before = rig.bits();
    let error = until_it_fails(&rig).err().unwrap().to_string();
    assert!(error.contains("patch `trap-nth` failed in `scales`"), "{error}");
    assert_eq!(rig.bits(), before, "the old weights serve on");
    assert_eq!(rig.last("patch.failure")["cause"], "trap");
    assert!(rig.last("refit.refused")["refit"].as_u64().is_some());
}

#[test]
fn native_answers_with_the_hosts_own_code() {
    let rig = Rig::with("qwen3_moe", &[("trap_nth", LATER)], policy("native", 100), LiveOptions::default());
    let done = until_it_fails(&rig).unwrap();
    assert!(done.degraded.unwrap().contains("trap-nth"));
    assert_ne!(done.patch_set, rig.active(), "weights that another made do not pass for the patch's");
    // The settings of `trap_nth` are none of `fp8_block`'s, so its defaults stand in.
    let honest = Rig::new("qwen3_moe", &[("fp8_block", &[])]);
    assert_eq!(rig.bits(), honest.bits(), "bit for bit what fp8_block makes");
    assert_eq!(rig.last("patch.fallback")["policy"], "native");
    asked_again(&rig);
}

#[test]
fn native_has_the_settings_of_the_patch_it_stands_in_for() {
    let set: &[(&str, &str)] = &[("profile", "deepseek"), ("scale_format", "ue8m0")];
    let rig = Rig::with("qwen3_moe", &[("fp8_block", set)], policy("native", 1), LiveOptions::default());
    let before = rig.bits();
    let component = rig.live.board().active().members()[1].sha256;
    rig.live.board().quarantine(component, "a drill", &me()).unwrap();
    let done = rig.refit();
    assert!(done.degraded.unwrap().contains("quarantine: a drill"));
    assert_eq!(rig.bits(), before, "the same settings, the same bits");
}

#[test]
fn last_good_goes_to_the_set_before() {
    let rig = Rig::with("qwen3_moe", &[("fp8_block", &[])], policy("last-good", 100), LiveOptions::default());
    let (good, bits) = (rig.active(), rig.bits());
    // Beyond what the probe of a candidate asks.
    let to = rig.stage("trap_nth", &[("n", "1500")]);
    rig.swap(to, When::Now);
    assert_ne!(rig.active(), good);
    let done = until_it_fails(&rig).unwrap();
    assert_eq!((done.patch_set, rig.bits()), (good, bits));
    assert_eq!(rig.last("patch.fallback")["to"], good.to_string());
}

#[test]
fn too_many_failures_are_a_quarantine() {
    let rig = Rig::with("qwen3_moe", &[("trap_nth", LATER)], policy("native", 2), LiveOptions::default());
    for _ in 0..2 {
        until_it_fails(&rig).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let status = rig.live.status().board;
    assert_eq!(status.quarantine.len(), 1);
    assert!(rig.refit().degraded.unwrap().contains("in quarantine"), "it is not asked any more");
    let again = rig.live.stage(super::candidate("trap_nth"), None, &super::settings(LATER), &me());
    assert!(again.unwrap_err().to_string().contains("quarantine"));
    let sha256 = status.quarantine[0].sha256;
    assert!(rig.live.board().unquarantine(&sha256, "  ", &me()).is_err(), "a reason is needed");
    assert!(rig.live.board().unquarantine(&sha256, "repaired", &me()).unwrap());
    asked_again(&rig);
}

#[test]
fn a_patch_that_says_no_has_not_failed() {
    let rig = Rig::with("qwen3_moe", &[("fp8_block", &[])], policy("native", 1), LiveOptions::default());
    let mut tensors: Vec<_> = rig.checkpoint.tensors().cloned().collect();
    let at = tensors.iter().position(|t| t.name.ends_with("q_proj.weight")).unwrap();
    let mut bytes = tensors[at].data.load().unwrap().to_vec();
    let nan = [0xc0, 0x7f];
    let len = bytes.len();
    bytes[len - 2..].copy_from_slice(&nan);
    tensors[at].data = patchhost_runtime::bytes::TensorBytes::new(std::sync::Arc::new(bytes), 0..len).unwrap().into();
    let broken = patchhost_runtime::checkpoint::Checkpoint::from_tensors(tensors).unwrap();
    assert!(rig.live.refit(broken, Begin::default(), &me(), QUIET).is_err());
    assert!(!rig.events().iter().any(|e| e == "patch.failure"), "{:?}", rig.events());
}
