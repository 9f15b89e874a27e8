use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{arguments, assert_same, lines, train};
use crate::support::tmp;

const FP8: [&str; 2] = ["--component", "fp8_block"];

/// Six steps in one go.
fn whole(folder: &Path) -> Vec<serde_json::Value> {
    let path = folder.join("whole");
    train(&path, &[&FP8[..], &["--steps", "6"]].concat()).good();
    lines(&path)
}

#[test]
fn three_steps_and_three_more_are_six() {
    let tmp = tmp();
    let expected = whole(tmp.path());
    let (path, dir) = (tmp.path().join("m"), tmp.path().join("ckpt").display().to_string());
    let run = |steps: &str, more: &[&str]| {
        train(&path, &[&FP8[..], &["--checkpoint-dir", &dir, "--save-every", "2", "--steps", steps], more].concat())
    };
    run("3", &[]).good();
    assert_same(&lines(&path), &expected[..3]);
    // What a run wrote that was killed before its next checkpoint: a step more, and the beginning of another.
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str(&text.lines().last().unwrap().replace("\"step\":3", "\"step\":4"));
    text.push_str("\n{\"step\":5,\"rew");
    std::fs::write(&path, text).unwrap();
    let summary = run("6", &["--resume", "--format", "json"]).good().json();
    assert_same(&lines(&path), &expected);
    assert_eq!((&summary["resumed_at"], &summary["steps"]), (&3.into(), &6.into()));
    assert_eq!(summary["master_sha256"], expected[5]["master_sha256"]);

    // The newest two stay; a damaged one is passed over, and the run is the same again.
    let names = |d: &str| {
        let mut names: Vec<_> = std::fs::read_dir(d).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.retain(|n| n.to_str().unwrap().starts_with("step-"));
        names.sort();
        names
    };
    assert_eq!(names(&dir), ["step-00000004", "step-00000006"]);
    let damaged = Path::new(&dir).join("step-00000006/adamw.safetensors");
    let mut bytes = std::fs::read(&damaged).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let again = run("6", &["--resume"]).good();
    assert!(again.stderr.contains("is passed over: adamw.safetensors has sha256"), "{}", again.stderr);
    assert_same(&lines(&path), &expected);

    // Nothing is left to do.
    let done = run("6", &["--resume"]).good();
    assert!(done.stdout.contains("resumed after step"), "{}", done.stdout);
    assert_same(&lines(&path), &expected);
}

#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let tmp = tmp();
    let expected = whole(tmp.path());
    let (path, dir) = (tmp.path().join("m"), tmp.path().join("ckpt").display().to_string());
    let more = [&FP8[..], &["--steps", "6", "--checkpoint-dir", &dir, "--save-every", "1", "--resume"]].concat();
    // Killed at moments that fall where they fall: in a refit, a backward pass, a checkpoint.
    for round in 0..6u64 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"))
            .args(arguments(&path, &more))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let before = std::fs::read(&path).unwrap_or_default().len();
        let deadline = Instant::now() + Duration::from_secs(120);
        while child.try_wait().unwrap().is_none()
            && std::fs::read(&path).unwrap_or_default().len() <= before
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(7 * round));
        let _ = child.kill();
        child.wait().unwrap();
    }
    train(&path, &more).good();
    assert_same(&lines(&path), &expected);
    let hidden = |e: &std::fs::DirEntry| e.file_name().to_str().unwrap().contains(".patchhost-");
    assert!(!std::fs::read_dir(&dir).unwrap().any(|e| hidden(&e.unwrap())), "a leftover stays");
}

#[test]
fn sigterm_ends_after_the_step_with_a_checkpoint() {
    let tmp = tmp();
    let (path, dir) = (tmp.path().join("m"), tmp.path().join("ckpt"));
    let shown = dir.display().to_string();
    let more = [&FP8[..], &["--steps", "500", "--checkpoint-dir", &shown, "--save-every", "500"]].concat();
    let child = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"))
        .args(arguments(&path, &more))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while std::fs::read(&path).unwrap_or_default().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    let out = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && stderr.contains("stopped by a signal after step"), "{stderr}");
    let done = lines(&path).len();
    assert!((1..500).contains(&done) && dir.join(format!("step-{done:08}")).is_dir(), "{done}");
}
