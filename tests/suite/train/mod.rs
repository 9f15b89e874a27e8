//! `patchhost train`: its forward pass against the runtime's, its gradients against finite differences, and runs of the
//! verb from outside.

mod model;
mod refusals;
mod resume;
mod run;
mod swap;

use std::path::Path;

use serde_json::Value;

use crate::support::{Ran, patchhost};

/// A step of a few tokens.
const SMALL: [[&str; 2]; 3] = [["--prompts-per-step", "2"], ["--samples", "3"], ["--max-tokens", "6"]];

/// `patchhost train` with small steps and a metrics file.
fn train(metrics: &Path, more: &[&str]) -> Ran {
    patchhost(arguments(metrics, more))
}

fn arguments(metrics: &Path, more: &[&str]) -> Vec<String> {
    let metrics = metrics.display().to_string();
    let small = SMALL.iter().filter(|[name, _]| !more.contains(name)).flatten();
    let all = ["train", "--metrics-out", &metrics].into_iter().chain(small.copied()).chain(more.iter().copied());
    all.map(str::to_string).collect()
}

/// The lines of a metrics file without their times.
fn lines(metrics: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(metrics).unwrap();
    let whole = text.lines().filter(|_| text.ends_with('\n'));
    whole
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            assert!(value.as_object_mut().unwrap().shift_remove("timing").unwrap()["step"].as_f64().unwrap() > 0.0);
            value
        })
        .collect()
}

#[track_caller]
fn assert_same(a: &[Value], b: &[Value]) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a, b, "line {}", i + 1);
    }
}
