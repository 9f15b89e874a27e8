//! `--record` and `patchhost replay` from outside: the same bits again, and what is found when they are others.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Ran, binary, copy_model, evil, matrix_file, patchhost, repo, tmp};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `quantize` of one matrix, recorded.
fn quantized(folder: &Path, component: &str, more: &[&str]) -> PathBuf {
    let input = matrix_file(folder, 300, 520);
    let (out, rec) = (folder.join("out"), folder.join("a.rec"));
    let args = ["quantize", text(&input), text(&out), "--component", component, "--record", text(&rec)];
    let ran = patchhost(args.iter().chain(more)).good();
    assert!(ran.stderr.contains("are recorded in"), "{}", ran.stderr);
    rec
}

fn replay(rec: &Path, more: &[&str]) -> Ran {
    patchhost(["replay", text(rec)].iter().chain(more))
}

#[test]
fn every_verb_records_and_nothing_else_changes() {
    let tmp = tmp();
    let file = |name: &str| tmp.path().join(name);
    let tiny = ["--max-tokens", "4", "--seed", "1", "--no-kl", "--format", "json"];
    let run = |more: &[&str]| patchhost(["run", "--component", "fp8_block"].iter().chain(&tiny).chain(more)).good();
    let what = |ran: Ran| {
        let json = ran.json();
        (
            json["patch_set"].clone(),
            json["completions"].clone(),
            json["patches"][0]["functions"]["scales"]["fuel_total"].clone(),
        )
    };
    let rec = file("run.rec");
    assert_eq!(what(run(&[])), what(run(&["--record", text(&rec)])));
    let report = replay(&rec, &["--format", "json"]).good().json();
    assert_eq!((&report["identical"], &report["exit"]), (&true.into(), &0.into()));
    let names: Vec<_> = report["patches"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["fp8_block", "moe_loader", "vocab_mask"]);
    assert_eq!(report["total"]["calls"], report["recording"]["calls"]);
    assert!(report["total"]["calls"].as_u64().unwrap() > 100, "{report}");
    assert_eq!(report["recording"]["model"], "tiny-shakespeare-moe");

    let model = copy_model("olmoe", tmp.path());
    let args =
        ["refit", text(&model), "--from", text(&model), "--component", "refit_guard", "--component", "gpu_layout"];
    let rec = file("refit.rec");
    patchhost(args.iter().chain(&["--record", text(&rec)])).good();
    let said = replay(&rec, &[]).good().stdout;
    for function in ["begin", "tensors", "finish", "passes", "resolve"] {
        assert!(said.lines().any(|l| l.contains(&format!("  {function} ")) && l.ends_with("identical")), "{said}");
    }
    assert!(said.contains("identical:") && !said.contains("NOT identical"), "{said}");

    let rec = file("train.rec");
    patchhost(["train", "--steps", "2", "--component", "fp8_block", "--record", text(&rec)]).good();
    assert!(replay(&rec, &[]).good().stdout.contains("bit for bit"));
}

#[test]
fn rows_are_recorded_with_their_panels() {
    let tmp = tmp();
    let rec = quantized(tmp.path(), "fp8_block_mse", &["--set", "block=64x64"]);
    assert!(std::fs::metadata(&rec).unwrap().len() > 300 * 520 * 2, "the rows are in it");
    for more in [&[][..], &["--isolate"]] {
        let said = replay(&rec, more).good().stdout;
        assert!(said.contains("panel-scales") && said.contains("bit for bit"), "{said}");
    }
    let other = replay(&rec, &["--set", "candidates=4", "--format", "json"]);
    assert_eq!(other.code, 1, "{}", other.stderr);
    let first = &other.json()["first"];
    assert_eq!(first["function"], "panel-scales");
    assert!(first["ulp"].as_u64().unwrap() > 0 && first["block"].is_u64(), "{first}");
}

#[test]
fn another_component_is_compared_on_real_inputs() {
    let tmp = tmp();
    let rec = quantized(tmp.path(), "fp8_block", &[]);
    let same = repo().join("guests/fp8_block.wasm");
    let ran = replay(&rec, &["--component", text(&same)]).good();
    assert!(!ran.stderr.contains("another component"), "{}", ran.stderr);

    let ran = replay(&rec, &["--component", &evil("subtle")]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("another component") && !ran.stderr.contains("error"), "{}", ran.stderr);
    for part in ["first difference: call ", "recorded  ", "got       ", "NOT identical: "] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    let other = replay(&rec, &["--set", "profile=deepseek"]);
    assert_eq!((other.code, other.stderr.contains("other settings")), (1, true), "{}", other.stderr);

    let spin = replay(&rec, &["--component", &evil("spin"), "--format", "json"]);
    assert_eq!(spin.code, 3, "{}", spin.stderr);
    let json = spin.json();
    assert_eq!((&json["identical"], &json["exit"]), (&false.into(), &3.into()));
    assert!(json["failed"]["got"].as_str().unwrap().starts_with("Limit"), "{json}");
    assert_eq!(json["total"]["failed"], 3, "a replay gives up: {json}");
}

#[test]
fn a_run_that_failed_is_recorded() {
    let tmp = tmp();
    let input = matrix_file(tmp.path(), 300, 520);
    let (out, rec) = (tmp.path().join("out"), tmp.path().join("a.rec"));
    let args = ["quantize", text(&input), text(&out), "--component", &evil("crushing"), "--record", text(&rec)];
    let ran = patchhost(args);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("are recorded in"), "{}", ran.stderr);
    // It is no bundled patch.
    let refused = replay(&rec, &[]).refused(1, tmp.path());
    insta::assert_snapshot!(refused);
    let ran = replay(&rec, &["--component", &evil("crushing")]).good();
    assert!(ran.stdout.contains("the same component"), "{}", ran.stdout);
    // The same again: a recording is never written over.
    insta::assert_snapshot!(patchhost(args).refused(2, tmp.path()));
}

#[test]
fn arguments_that_do_nothing_are_mistakes() {
    let tmp = tmp();
    let rec = quantized(tmp.path(), "fp8_block", &[]);
    insta::assert_snapshot!(replay(&rec, &["--component", "vocab_mask"]).refused(2, tmp.path()));
    insta::assert_snapshot!(replay(&rec, &["--set", "moe_loader.a=b"]).refused(2, tmp.path()));
    insta::assert_snapshot!(replay(&tmp.path().join("out"), &[]).refused(2, tmp.path()));
    insta::assert_snapshot!(replay(&tmp.path().join("none"), &[]).refused(2, tmp.path()));
    let nothing = tmp.path().join("n.rec");
    let ran = patchhost(["run", "--component", "no_such_patch", "--record", text(&nothing)]);
    assert_eq!(ran.code, 2);
    assert!(!nothing.exists(), "a name that nothing was recorded under can be used again");
}

#[test]
fn a_bound_stops_it_with_a_note() {
    let tmp = tmp();
    let rec = tmp.path().join("a.rec");
    let args = ["run", "--component", "fp8_block", "--max-tokens", "2", "--no-kl", "--record", text(&rec)];
    let ran = patchhost(args.iter().chain(&["--record-max-bytes", "40kB"])).good();
    assert!(ran.stderr.contains("stops after") && ran.stderr.contains("are missing"), "{}", ran.stderr);
    assert!(std::fs::metadata(&rec).unwrap().len() <= 40_000);
    let said = replay(&rec, &[]).good().stdout;
    assert!(said.contains("it reached its bound of 40.0 kB") && said.contains("calls are missing"), "{said}");
}

#[test]
fn a_killed_host_leaves_a_recording() {
    let tmp = tmp();
    let rec = tmp.path().join("a.rec");
    /// Gone even if the test fails.
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let child = Command::new(binary())
        .args(["train", "--steps", "100000", "--component", "fp8_block", "--record", text(&rec)])
        .env("PATCHHOST_CACHE", "off")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let began = Instant::now();
    let size = || std::fs::metadata(&rec).map_or(0, |meta| meta.len());
    while size() < 30_000 {
        assert!(began.elapsed() < Duration::from_secs(120) && child.0.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(child);
    let said = replay(&rec, &[]).good().stdout;
    assert!(said.contains("was killed") && said.contains("bit for bit"), "{said}");
    // And in the middle of a frame.
    let bytes = std::fs::read(&rec).unwrap();
    std::fs::write(&rec, &bytes[..bytes.len() - 5]).unwrap();
    let said = replay(&rec, &[]).good().stdout;
    assert!(said.contains("its last frame is torn") && said.contains("bit for bit"), "{said}");
    // A byte that turned over is no end.
    let mut bytes = bytes;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&rec, &bytes).unwrap();
    let refused = replay(&rec, &[]).refused(2, tmp.path());
    assert!(refused.contains("frame "), "{refused}");
}
