use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{arguments, assert_same, lines, train};
use crate::support::{repo, tmp};

const STEPS: &str = "14";

fn guest(name: &str) -> PathBuf {
    repo().join("guests").join(format!("{name}.wasm"))
}

/// A run whose watched component is replaced and put back while it goes on: its lines, and where the swaps are.
fn with_two_swaps(folder: &Path, more: &[&str]) -> (Vec<Value>, [usize; 2]) {
    let (file, path) = (folder.join("quant.wasm"), folder.join("m"));
    std::fs::copy(guest("fp8_block"), &file).unwrap();
    let component = file.display().to_string();
    let args = ["--component", &component, "--watch", &component, "--steps", STEPS];
    let mut child = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"))
        .args(arguments(&path, &[&args[..], more].concat()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let written = || std::fs::read_to_string(&path).unwrap_or_default().matches('\n').count();
    let wait_for = |n: usize| {
        let deadline = Instant::now() + Duration::from_secs(300);
        while written() < n && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    // The run does not wait: the step that is under way may have begun before or after each replacement.
    let mut windows = Vec::new();
    for (wait, name) in [(2, "fp8_block_mse"), (7, "fp8_block")] {
        wait_for(wait);
        let new = folder.join(".new");
        std::fs::copy(guest(name), &new).unwrap();
        let before = written();
        std::fs::rename(&new, &file).unwrap();
        windows.push(before + 1..=written() + 2);
    }
    assert!(child.wait().unwrap().success());

    let made = lines(&path);
    assert_eq!(made.len(), 14);
    let swaps: Vec<usize> = (0..made.len()).filter(|i| !made[*i]["swap"].is_null()).collect();
    assert_eq!(swaps.len(), 2, "{swaps:?}");
    for (at, window) in swaps.iter().zip(&windows) {
        assert!(window.contains(&(at + 1)), "swap at step {}, replaced within {window:?}", at + 1);
        assert_eq!(made[*at]["swap"]["from"], made[at - 1]["patch_set"]);
        assert_eq!(made[*at]["swap"]["to"], made[*at]["patch_set"]);
    }
    for (i, line) in made.iter().enumerate() {
        let between = (swaps[0]..swaps[1]).contains(&i);
        assert_eq!(line["patch_set"] == made[0]["patch_set"], !between, "step {}", i + 1);
        let name = if between { "fp8_block_mse" } else { "fp8_block" };
        assert!(line["patches"].as_array().unwrap().iter().any(|p| p["name"] == name), "step {}", i + 1);
    }
    (made, [swaps[0], swaps[1]])
}

#[test]
fn a_replaced_component_takes_effect_between_two_steps_and_changes_nothing_before() {
    let tmp = tmp();
    let ledger = tmp.path().join("ledger.jsonl");
    let plot = tmp.path().join("run.html");
    let (ledger_name, plot_name) = (ledger.display().to_string(), plot.display().to_string());
    let (made, swaps) = with_two_swaps(tmp.path(), &["--ledger", &ledger_name, "--plot", &plot_name]);
    // Both marks in every panel that has a line, and each set in the legend, by the digest that the metrics have.
    let page = std::fs::read_to_string(&plot).unwrap();
    let (panels, marks) = (page.matches("<div class=\"area\">").count(), page.matches("<path class=\"swap\"").count());
    assert!(panels >= 3 && marks == 2 * panels, "{panels} {marks}");
    for (number, at) in [(1, 0), (2, swaps[0]), (3, swaps[1])] {
        let digest = made[at]["patch_set"].as_str().unwrap();
        assert!(page.contains(&format!("<code>{number}: {digest}</code>")), "{digest}");
        assert!(page.contains(&format!("{number}: {}", &digest.trim_start_matches("sha256:")[..12])), "{digest}");
    }

    let path = tmp.path().join("undisturbed");
    train(&path, &["--component", &guest("fp8_block").display().to_string(), "--steps", STEPS]).good();
    let undisturbed = lines(&path);
    assert_same(&made[..swaps[0]], &undisturbed[..swaps[0]]);
    // The refit of the step that swaps gets the same masters and makes other weights of them.
    assert_ne!(made[swaps[0]]["weights_sha256"], undisturbed[swaps[0]]["weights_sha256"]);

    let ledger = std::fs::read_to_string(ledger).unwrap();
    assert_eq!(ledger.matches(r#""event":"swap.landed""#).count(), 2, "{ledger}");
}

/// With a learning rate that is zero in f32 the master weights stand still, so what differs is the patches' doing.
#[test]
fn a_patch_that_is_back_makes_the_same_bits_again() {
    let tmp = tmp();
    let (made, swaps) = with_two_swaps(tmp.path(), &["--lr", "1e-60"]);
    for (i, line) in made.iter().enumerate() {
        assert_eq!(line["master_sha256"], made[0]["master_sha256"]);
        let between = (swaps[0]..swaps[1]).contains(&i);
        assert_eq!(line["weights_sha256"] == made[0]["weights_sha256"], !between, "step {}", i + 1);
    }
}

/// A watched file that does not pass is told, and the run goes on with what it has.
#[test]
fn a_broken_candidate_never_takes_part() {
    let tmp = tmp();
    let watched = tmp.path().join("watched");
    std::fs::create_dir(&watched).unwrap();
    std::fs::write(watched.join("broken.wasm"), b"\0asm nothing").unwrap();
    let path = tmp.path().join("m");
    let watched = watched.display().to_string();
    let ran = train(&path, &["--component", "fp8_block", "--watch", &watched, "--steps", "2"]).good();
    assert!(ran.stderr.contains("broken.wasm is not used"), "{}", ran.stderr);
    let made = lines(&path);
    assert!(made.iter().all(|l| l["swap"].is_null() && l["patch_set"] == made[0]["patch_set"]));
}

#[test]
fn other_patches_may_be_given_when_a_run_is_resumed() {
    let tmp = tmp();
    let (path, dir) = (tmp.path().join("m"), tmp.path().join("ckpt").display().to_string());
    let run = |component: &str, steps: &str, more: &[&str]| {
        let args = ["--component", component, "--checkpoint-dir", &dir, "--steps", steps];
        train(&path, &[&args[..], more].concat()).good()
    };
    run("fp8_block", "2", &[]);
    run("fp8_block_mse", "3", &["--resume"]);
    let made = lines(&path);
    assert_eq!(made[2]["swap"]["from"], made[1]["patch_set"]);
    assert_ne!(made[2]["patch_set"], made[1]["patch_set"]);
}
