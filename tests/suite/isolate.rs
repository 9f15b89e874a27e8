//! `--isolate`: guests in child processes give the same bits, and what takes a child down takes nothing else down.

use std::sync::Arc;
use std::time::Duration;

use patchhost::isolate::Isolation;
use patchhost::patch::{Candidate, Hook, Limits, Patch, Reviewing, Sandbox, Site, StageError, Terms, resolve};
use patchhost_runtime::hooks::{Blocks, HookCause};

use crate::support::{binary, evil, matrix_file, patchhost, tmp};

fn site() -> Site {
    Site::from(Sandbox::new(2).unwrap()).with_isolation(Some(Isolation::with_program(binary(), 2)))
}

fn start(candidate: Candidate, settings: &[(&str, &str)], limits: Limits) -> Result<Arc<Patch>, StageError> {
    let terms = Terms::settings(settings.iter().copied()).with_limits(limits);
    Reviewing::default().start(candidate, &terms, site())
}

fn guest(name: &str, settings: &[(&str, &str)]) -> Result<Arc<Patch>, StageError> {
    start(Candidate::from_file(evil(name).as_ref()).unwrap(), settings, Limits::default())
}

const BLOCKS: Blocks<'_> =
    Blocks { tensor: "w", rows: 128, cols: 256, block_rows: 128, block_cols: 128, first_block: 0 };

#[test]
fn the_same_answers_and_the_same_identity() {
    let here = Sandbox::new(2).unwrap();
    for name in ["fp8_block", "fp8_block_mse", "moe_loader", "gpu_layout", "lora_tensors", "refit_guard", "vocab_mask"]
    {
        let local = Reviewing::default().start(resolve(name).unwrap(), &Terms::default(), &here).unwrap();
        let child = start(resolve(name).unwrap(), &[], Limits::default()).unwrap();
        assert_eq!((local.info(), local.hooks()), (child.info(), child.hooks()), "{name}");
        assert_eq!(local.generation(), child.generation(), "where it runs is not who it is");
        assert_eq!((local.processes().len(), child.processes().len()), (0, 1));
        if local.hooks().contains(&Hook::BlockQuant) {
            // `fp8_block_mse` wants to be asked with rows: both say so in the same words.
            let ask = |patch: &Arc<Patch>| {
                let scales = patch.block_quant().unwrap().scales(&BLOCKS, &[3.5, 1e-20]);
                scales.map(|s| s.map_bits()).map_err(|e| e.to_string())
            };
            assert_eq!(ask(&local), ask(&child), "{name}");
            assert_eq!(child.stats().functions["scales"].calls, 1);
            assert_eq!(child.stats().functions["scales"].fuel_total, local.stats().functions["scales"].fuel_total);
        }
    }
}

trait Bits {
    fn map_bits(&self) -> Vec<u32>;
}

impl Bits for Vec<f32> {
    fn map_bits(&self) -> Vec<u32> {
        self.iter().map(|x| x.to_bits()).collect()
    }
}

#[test]
fn verbs_give_the_same_bytes() {
    let tmp = tmp();
    let input = matrix_file(tmp.path(), 300, 520);
    for guest in ["fp8_block", "fp8_block_mse"] {
        let quantized = |name: &str, more: &[&str]| {
            let out = tmp.path().join(name);
            let args = ["quantize", input.to_str().unwrap(), out.to_str().unwrap(), "--force", "--component", guest];
            patchhost(args.iter().chain(more)).good();
            std::fs::read(out).unwrap()
        };
        assert!(quantized("a", &[]) == quantized("b", &["--isolate"]), "{guest}");
    }
    let run = |more: &[&str]| {
        let args = ["run", "--component", "fp8_block", "--max-tokens", "8", "--no-kl", "--seed", "1"];
        patchhost(args.iter().chain(more)).good().stdout
    };
    let text = |out: String| out.lines().next().unwrap_or_default().to_string();
    assert_eq!(text(run(&[])), text(run(&["--isolate"])));
}

fn kill(pid: u32) {
    // It may have been killed before.
    let _ =
        std::process::Command::new("kill").args(["-9", &pid.to_string()]).stderr(std::process::Stdio::null()).status();
}

#[test]
fn a_process_that_is_killed_between_calls_costs_nothing() {
    let patch = start(resolve("fp8_block").unwrap(), &[], Limits::default()).unwrap();
    let quant = patch.block_quant().unwrap();
    let good = quant.scales(&BLOCKS, &[1.0, 2.0]).unwrap();
    for _ in 0..3 {
        kill(patch.processes()[0]);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(quant.scales(&BLOCKS, &[1.0, 2.0]).unwrap(), good, "a new process answers");
    }
    assert_eq!(patch.stats().functions["scales"].calls, 4, "calls of processes that are gone still count");
    assert_eq!(patch.stats().instances_dropped, 3);
}

#[test]
fn a_process_that_is_killed_in_a_call_costs_that_call() {
    let patch = start(resolve("fp8_block").unwrap(), &[], Limits::default()).unwrap();
    let quant = patch.block_quant().unwrap();
    let blocks = Blocks { tensor: "w", rows: 128, cols: 128 * 4096, ..BLOCKS };
    let amax: Vec<f32> = (1..=4096).map(|i| i as f32).collect();
    let good = quant.scales(&blocks, &amax).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let (mut answered, mut failed) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(30));
                patch.processes().into_iter().for_each(kill);
            }
        });
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_secs(3) && failed < 5 {
            match quant.scales(&blocks, &amax) {
                Ok(scales) => {
                    assert_eq!(scales, good);
                    answered += 1;
                }
                Err(error) => {
                    assert_eq!(error.cause, HookCause::Trap);
                    assert!(error.to_string().contains("killed by signal 9"), "{error}");
                    failed += 1;
                }
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    println!("{answered} answered, {failed} failed");
    assert!(answered > 0);
}

#[test]
fn what_a_guest_does_wrong_is_told_as_ever() {
    for (name, cause, word) in [
        ("spin", HookCause::Limit, "fuel"),
        ("grow", HookCause::Limit, "memory"),
        ("recurse", HookCause::Limit, "stack"),
        ("too_few", HookCause::BadOutput, "numbers for"),
        ("huge_list", HookCause::Limit, "memory"),
    ] {
        let patch = guest(name, &[]).unwrap();
        let error = patch.block_quant().unwrap().scales(&BLOCKS, &[1.0, 2.0]).unwrap_err();
        assert_eq!(error.cause, cause, "{name}: {error}");
        assert!(error.to_string().contains(word), "{name}: {error}");
    }
    let error = guest("trap_configure", &[]).unwrap_err();
    assert!(matches!(&error, StageError::Start { call: "configure", .. }), "{error}");
    let error = guest("spin_describe", &[]).unwrap_err();
    assert!(matches!(&error, StageError::Start { call: "describe", .. }), "{error}");
}

#[test]
fn state_survives_its_process() {
    let settings = [("names", "same")];
    let patch = start(resolve("refit_guard").unwrap(), &settings, Limits::default()).unwrap();
    assert!(patch.has_state());
    let observer = patch.refit_observer().unwrap();
    let (_, mut watch) = observer.begin("1", None).unwrap();
    watch.finish(0).unwrap();
    drop(watch);
    let snapshot = patch.export_state().unwrap().unwrap();
    patch.import_state(snapshot.clone()).unwrap();
    kill(patch.processes()[0]);
    std::thread::sleep(Duration::from_millis(50));
    let (_, mut watch) = observer.begin("2", None).unwrap();
    watch.finish(0).unwrap();
    drop(watch);
    assert_eq!(patch.processes().len(), 1, "a patch with state has one process");
    assert_eq!(patch.export_state().unwrap().unwrap().schema(), snapshot.schema());
}

#[test]
fn a_refit_goes_to_the_process_that_it_began_in() {
    let patch = start(resolve("refit_guard").unwrap(), &[], Limits::default()).unwrap();
    let observer = patch.refit_observer().unwrap();
    let (_, mut watch) = observer.begin("1", None).unwrap();
    patch.processes().into_iter().for_each(kill);
    std::thread::sleep(Duration::from_millis(50));
    assert!(watch.finish(0).is_err(), "half a refit in one process and half in another is none");
    assert!(watch.finish(0).unwrap_err().to_string().contains("is gone"));
}

#[test]
fn a_whole_model_through_children() {
    patchhost(["verify-refit", "--component", "fp8_block", "--isolate"]).good();
}
