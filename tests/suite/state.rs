//! State hand-over: what one generation remembers, the next one knows; and what goes wrong in it stays in the patch.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use patchhost::patch::{Candidate, Limits, Patch, Reviewing, Sandbox, Snapshot, StageError, Terms, bundled};
use patchhost_runtime::hooks::{Arrival, Dtype, HookCause, HookError, ModelInfo, Verdict};

use crate::support::{evil, repo};

static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::new(2).unwrap());

fn start(candidate: Candidate, settings: &[(&str, &str)], limits: Limits) -> Result<Arc<Patch>, StageError> {
    let terms = Terms::settings(settings.iter().copied()).with_limits(limits);
    Reviewing::default().start(candidate, &terms, &*SANDBOX)
}

/// The guest that counts its calls, with a fault.
fn any(fault: &str) -> Arc<Patch> {
    let candidate = Candidate::from_file(evil("any_state").as_ref()).unwrap();
    start(candidate, &[("fault", fault)], Limits::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn guard(settings: &[(&str, &str)]) -> Arc<Patch> {
    start(bundled::bundled("refit_guard").unwrap(), settings, Limits::default()).unwrap()
}

fn model() -> ModelInfo {
    ModelInfo { architecture: "X".into(), model_type: "x".into(), layers: 1, experts: 0, config: "{}".into() }
}

/// Calls `masked`, which answers with the number of calls before this one.
fn ask(patch: &Arc<Patch>) -> Result<u32, HookError> {
    let ranges: Vec<Range<u32>> = patch.logits_mask().unwrap().masked(&model(), 100_000, 100_000)?;
    Ok(ranges[0].start)
}

fn snapshot(count: u32) -> Snapshot {
    Snapshot::new("any-state.count".into(), 1, count.to_le_bytes().to_vec()).unwrap()
}

fn arrival(name: &str) -> Arrival {
    Arrival { name: name.into(), dtype: Dtype::Bf16, shape: vec![2], sha256: "0".repeat(64) }
}

/// One refit through an observer: the last verdict.
fn refit(patch: &Arc<Patch>, version: &str, names: &[&str]) -> Result<Verdict, HookError> {
    let (verdict, mut watch) = patch.refit_observer().unwrap().begin(version, None)?;
    assert_eq!(verdict, Verdict::Accept);
    let batch: Vec<_> = names.iter().map(|name| arrival(name)).collect();
    match watch.tensors(&batch)? {
        Verdict::Accept => watch.finish(names.len() as u32),
        veto => Ok(veto),
    }
}

#[track_caller]
fn vetoed(verdict: Result<Verdict, HookError>, why: &str) {
    match verdict.unwrap() {
        Verdict::Veto(reason) => assert!(reason.contains(why), "{reason}"),
        Verdict::Accept => panic!("accepted"),
    }
}

#[test]
fn what_one_generation_remembers_the_next_one_knows() {
    let (old, new) = (any(""), any("none"));
    assert!(old.has_state() && old.generation() != new.generation());
    assert_eq!((ask(&old).unwrap(), ask(&old).unwrap(), ask(&old).unwrap()), (0, 1, 2));
    let handed = old.export_state().unwrap().unwrap();
    assert_eq!(handed, snapshot(3));
    assert_eq!(handed.to_string(), "any-state.count v1, 4 bytes");
    new.import_state(handed).unwrap();
    assert_eq!((ask(&new).unwrap(), ask(&new).unwrap()), (3, 4));
    // The old one goes on where it was: the swap may still be refused.
    assert_eq!(ask(&old).unwrap(), 3);
    let calls = new.stats();
    assert_eq!((calls.functions["import-state"].calls, calls.hook_calls()), (1, 2));
}

#[test]
fn a_patch_without_state_has_none_to_give_or_take() {
    let patch = start(bundled::bundled("fp8_block").unwrap(), &[], Limits::default()).unwrap();
    assert!(!patch.has_state() && patch.export_state().unwrap().is_none());
    let error = patch.import_state(snapshot(1)).unwrap_err();
    assert_eq!(error.cause, HookCause::Unsupported, "{error}");
}

#[test]
fn one_instance_answers_all_workers() {
    let patch = any("");
    let mut seen: Vec<u32> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| (0..50).map(|_| ask(&patch).unwrap()).collect::<Vec<_>>())).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    seen.sort_unstable();
    // Each number once: no call was answered by an instance that did not know of the others.
    assert_eq!(seen, (0..400).collect::<Vec<_>>());
    assert_eq!(patch.stats().instances_made, 1);
}

#[test]
fn a_refit_and_other_calls_share_the_instance_without_waiting_for_each_other() {
    let patch = any("");
    let (_, mut watch) = patch.refit_observer().unwrap().begin("v", None).unwrap();
    // In the middle of the refit the same patch is asked through another hook.
    assert_eq!(ask(&patch).unwrap(), 0);
    assert_eq!(watch.tensors(&[arrival("a")]).unwrap(), Verdict::Accept);
    assert_eq!(watch.finish(1).unwrap(), Verdict::Accept);
    // `finish` added 100, and its instance was kept.
    assert_eq!(ask(&patch).unwrap(), 101);
    assert_eq!(patch.stats().instances_made, 1);
}

#[test]
fn after_a_trap_the_replacement_gets_what_was_inherited() {
    let patch = any("trap-third");
    patch.import_state(snapshot(1)).unwrap();
    assert_eq!(ask(&patch).unwrap(), 1);
    assert_eq!(ask(&patch).unwrap_err().cause, HookCause::Trap);
    assert_eq!(ask(&patch).unwrap(), 1, "the count of the lost instance is lost, the inherited one is not");
    assert_eq!(patch.stats().functions["import-state"].calls, 2);

    // A refit does not go on with an instance that has not seen its beginning.
    let patch = any("trap-tensors");
    let (_, mut watch) = patch.refit_observer().unwrap().begin("v", None).unwrap();
    assert_eq!(watch.tensors(&[arrival("a")]).unwrap_err().cause, HookCause::Trap);
    let error = watch.finish(1).unwrap_err();
    assert!(error.why.contains("earlier call of the same sequence"), "{error}");
    // The next refit finds a new instance.
    assert_eq!(patch.refit_observer().unwrap().begin("w", None).map(|(verdict, _)| verdict).unwrap(), Verdict::Accept);
}

#[test]
fn exports_that_misbehave_are_errors_and_the_patch_goes_on() {
    for (fault, cause, why) in [
        ("export-trap", HookCause::Trap, "unreachable"),
        ("export-spin", HookCause::Limit, "fuel"),
        ("export-error", HookCause::Refused, "I keep it\\u{1b}[31m"),
        ("export-over", HookCause::BadOutput, "1048577 bytes; the interface allows 1048576"),
        ("export-huge", HookCause::Limit, ""),
        ("export-long-schema", HookCause::BadOutput, "65 bytes; the interface allows 64"),
        ("export-no-schema", HookCause::BadOutput, "no name"),
    ] {
        let patch = any(fault);
        let error = patch.export_state().unwrap_err();
        assert_eq!(error.cause, cause, "{fault}: {error}");
        assert!(error.why.contains(why), "{fault}: {error}");
        assert!(error.call.contains("`export-state`"), "{fault}: {error}");
        assert_eq!(ask(&patch).unwrap(), 0, "{fault}");
    }
    let most = any("export-most").export_state().unwrap().unwrap();
    assert_eq!(most.payload(), vec![7; 1 << 20]);
    // The largest snapshot that may be exported can be imported, too.
    any("import-any").import_state(most).unwrap();
}

#[test]
fn imports_that_misbehave_refuse_the_swap_and_leave_no_state() {
    for (fault, cause, why) in [
        ("import-trap", HookCause::Trap, "unreachable"),
        ("import-spin", HookCause::Limit, "fuel"),
        ("import-huge-error", HookCause::Limit, ""),
    ] {
        let patch = any(fault);
        let error = patch.import_state(snapshot(5)).unwrap_err();
        assert_eq!(error.cause, cause, "{fault}: {error}");
        assert!(error.why.contains(why), "{fault}: {error}");
        // Without state, as it was before; later instances are not given what the first refused.
        assert_eq!((ask(&patch).unwrap(), ask(&patch).unwrap()), (0, 1), "{fault}");
    }
    let patch = any("");
    let wrong = [
        Snapshot::new("other".into(), 1, vec![0; 4]).unwrap(),
        Snapshot::new("any-state.count".into(), 2, vec![0; 4]).unwrap(),
        Snapshot::new("any-state.count".into(), 1, vec![0; 5]).unwrap(),
    ];
    for snapshot in wrong {
        let error = patch.import_state(snapshot).unwrap_err();
        assert_eq!(error.cause, HookCause::Refused, "{error}");
    }
    assert_eq!(ask(&patch).unwrap(), 0);
    patch.import_state(snapshot(7)).unwrap();
    assert_eq!(ask(&patch).unwrap(), 7);
    assert!(Snapshot::new("s".into(), 1, vec![0; (1 << 20) + 1]).is_err());
}

#[test]
fn refit_guard_remembers_the_tensors_over_a_swap() {
    let old = guard(&[("names", "same")]);
    assert_eq!(refit(&old, "step-1", &["a", "b"]).unwrap(), Verdict::Accept);
    vetoed(refit(&old, "step-2", &["a"]), "it has 1 tensors, refit `step-1` had 2");
    // A vetoed refit is not remembered.
    assert_eq!(refit(&old, "step-3", &["a", "b"]).unwrap(), Verdict::Accept);

    let new = guard(&[("names", "same"), ("forbid", "*.lora_*")]);
    assert_eq!(refit(&new, "step-4", &["a"]).unwrap(), Verdict::Accept, "without state it knows nothing");
    new.import_state(old.export_state().unwrap().unwrap()).unwrap();
    vetoed(refit(&new, "step-4", &["a"]), "refit `step-3` had 2");
    vetoed(refit(&new, "step-4", &["a", "c"]), "other names, dtypes or shapes");
    assert_eq!(refit(&new, "step-4", &["a", "b"]).unwrap(), Verdict::Accept);

    // It remembers without being asked to, so that the demand can be made at a swap.
    let relaxed = guard(&[]);
    relaxed.import_state(new.export_state().unwrap().unwrap()).unwrap();
    assert_eq!(refit(&relaxed, "step-5", &["a"]).unwrap(), Verdict::Accept);
    let error = new.import_state(snapshot(1)).unwrap_err();
    assert!(error.why.contains("known is `refit_guard.last-refit` version 1"), "{error}");
}

#[test]
fn state_of_another_version_is_a_skew() {
    let mut bytes = std::fs::read(repo().join("guests/refit_guard.wasm")).unwrap();
    let (ours, other) = (b"patchhost:patch/state@0.1.0", b"patchhost:patch/state@0.2.0");
    let at: Vec<_> = (0..bytes.len() - ours.len()).filter(|at| bytes[*at..].starts_with(ours)).collect();
    assert!(!at.is_empty());
    at.iter().for_each(|at| bytes[*at..*at + ours.len()].copy_from_slice(other));
    let error = start(Candidate::from_bytes("guard", bytes).unwrap(), &[], Limits::default()).unwrap_err().to_string();
    assert!(error.contains("PH203") && error.contains("state@0.2.0"), "{error}");
}
