//! A live model whose patches run in child processes that are killed while it serves and refits.

use patchhost::isolate::Isolation;
use patchhost::live::LiveOptions;
use patchhost::patch::{Policy, Sandbox, When};

use super::Rig;
use crate::support::binary;

fn sandbox() -> Sandbox {
    Sandbox::new(2).unwrap().with_isolation(Some(Isolation::with_program(binary(), 2)))
}

fn kill_all(rig: &Rig) -> usize {
    let pids: Vec<u32> = rig.live.board().active().set().patches().iter().flat_map(|p| p.processes()).collect();
    for pid in &pids {
        assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    }
    std::thread::sleep(std::time::Duration::from_millis(60));
    pids.len()
}

/// The weights serve on, the host's own code stands in, the failure is written down, and a new process takes over.
#[test]
fn killed_processes_fall_back_to_native_code_and_come_back() {
    let policy = "[hooks.block-quant]\non_failure = \"native\"\n[failure]\nrestart_budget = 100\nbackoff_ms = 1\n";
    let policy = Policy::parse(policy).unwrap();
    let rig = Rig::inside(sandbox(), "qwen3_moe", &[("fp8_block", &[])], policy, LiveOptions::default());
    let bits = rig.bits();
    for round in 0..3 {
        assert!(kill_all(&rig) >= 2, "the loader map and the quantizer");
        assert_eq!(rig.bits(), bits, "what serves needs no process");
        // The loader map has no native code: the refit that meets its end is refused, and nothing is lost by it.
        let mut refused = 0;
        while let Err(error) = rig.live.refit(rig.checkpoint.clone(), Default::default(), &super::me(), super::QUIET) {
            assert!(error.to_string().contains("killed by signal 9"), "{error}");
            refused += 1;
            assert!(refused < 4, "round {round}: {error}");
        }
        assert_eq!(rig.bits(), bits);
        // After its backoff the quantizer is asked again, in a new process.
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(rig.refit().degraded.is_none(), "a new process answers");
    }
    assert!(rig.failures() >= 3, "{:?}", rig.events());
    assert!(rig.events().iter().any(|event| event == "patch.fallback"), "{:?}", rig.events());
}

/// What is wrong in an isolated candidate is found as ever, and a good one becomes live.
#[test]
fn candidates_pass_the_same_stages() {
    let rig = Rig::inside(sandbox(), "qwen3_moe", &[("fp8_block", &[])], Policy::default(), LiveOptions::default());
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
