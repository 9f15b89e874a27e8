//! A live model whose patches run in child processes that are killed while it serves and refits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use patchhost::isolate::Isolation;
use patchhost::live::LiveOptions;
use patchhost::patch::{Sandbox, Site, When};
use patchhost::trust::Policy;

use super::Rig;
use crate::support::binary;

fn site() -> Site {
    Site::from(Sandbox::new(2).unwrap()).with_isolation(Some(Isolation::with_program(binary(), 2)))
}

fn kill_all(rig: &Rig) -> usize {
    let pids: Vec<u32> = rig.live.board().active().set().patches().iter().flat_map(|p| p.processes()).collect();
    for pid in &pids {
        // It may be gone already.
        let _ = std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .stderr(std::process::Stdio::null())
            .status();
    }
    pids.len()
}

fn native() -> Policy {
    let text = "[hooks.block-quant]\non_failure = \"native\"\n[failure]\nrestart_budget = 1000\nbackoff_ms = 1\nbackoff_max_ms = 5\n";
    Policy::parse(text).unwrap()
}

#[test]
fn killed_between_refits_nothing_is_lost() {
    let rig = Rig::inside(site(), "qwen3_moe", &[("fp8_block", &[])], native(), LiveOptions::default());
    let bits = rig.bits();
    for _ in 0..3 {
        assert!(kill_all(&rig) >= 2, "the loader map and the quantizer");
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(rig.bits(), bits, "what serves needs no process");
        assert!(rig.refit().degraded.is_none(), "new processes answer");
        assert_eq!(rig.bits(), bits);
    }
    assert_eq!(rig.failures(), 0);
}

/// Whatever process dies in the middle of whatever refit: the weights are the old ones or the right ones, the failure is
/// written down, and afterwards a refit goes through.
#[test]
fn killed_in_refits_the_weights_stay_right() {
    let rig = Rig::inside(site(), "qwen3_moe", &[("fp8_block", &[])], native(), LiveOptions::default());
    let bits = rig.bits();
    let done = AtomicBool::new(false);
    let (mut whole, mut degraded, mut refused) = (0, 0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(12));
                kill_all(&rig);
            }
        });
        for _ in 0..40 {
            match rig.live.refit(rig.checkpoint.clone(), Default::default(), &super::me(), super::QUIET) {
                Ok(done) if done.degraded.is_none() => whole += 1,
                Ok(_) => degraded += 1,
                Err(error) => {
                    // The loader map has no native code to fall back to.
                    assert!(error.to_string().contains("process"), "{error}");
                    refused += 1;
                }
            }
            assert_eq!(rig.bits(), bits);
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{whole} whole, {degraded} by native code, {refused} refused");
    assert_eq!(rig.failures() > 0, degraded + refused > 0, "{:?}", rig.events());
    std::thread::sleep(Duration::from_millis(100));
    assert!(rig.refit().degraded.is_none(), "new processes answer");
}

/// What is wrong in an isolated candidate is found as ever, and a good one becomes live.
#[test]
fn candidates_pass_the_same_stages() {
    let rig = Rig::inside(site(), "qwen3_moe", &[("fp8_block", &[])], Policy::default(), LiveOptions::default());
    let (before, bits) = (rig.active(), rig.bits());
    for evil in ["saturating", "nan_scales", "trap_configure", "spin_describe", "wrong_decisions"] {
        let staged = rig.live.stage(super::candidate(evil), None, &[], &super::me());
        assert!(staged.is_err(), "{evil}");
    }
    assert_eq!((rig.active(), rig.bits()), (before, bits.clone()));
    let to = rig.stage("fp8_block_mse", &[]);
    rig.swap(to, When::Now);
    assert_ne!(rig.bits(), bits);
}
