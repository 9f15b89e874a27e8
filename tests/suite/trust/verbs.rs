//! Every verb that takes a component, found by the command line's own table: what starts or asks one refuses a revoked
//! component and one that the lock does not have.

use super::Desk;
use crate::support::{Ran, ids_file, repo};

/// Verbs that start or ask a component, each as somebody would write it. `X` is the file.
const START: &[(&str, &str)] = &[
    ("run", "run --component X --max-tokens 1"),
    ("serve", "serve --component X --listen 127.0.0.1:0"),
    ("train", "train --component X --steps 1"),
    ("logits", "logits --ids ids.safetensors --out logits.safetensors --component X"),
    ("refit", "refit --from MODEL MODEL --component X"),
    ("verify-refit", "verify-refit --component X"),
    ("explain", "explain --component X"),
    ("compare", "compare X fp8_block_mse"),
    ("quantize", "quantize in.safetensors out.safetensors --component X"),
    ("export", "export out --for vllm --component X"),
    ("patches", "patches --component X"),
    ("replay", "replay calls.rec --component X"),
    // With `--probe` it asks; without, it only reads (below).
    ("audit", "audit X --probe"),
];

/// Verbs that only review a component or change who trusts it: they start nothing for a run.
const REVIEW: &[(&str, &str)] = &[
    ("audit", "without --probe it reads bytes"),
    ("lock", "decides whether the component may run; it starts it once, to write down what it says of itself"),
    ("grant", "the same for what it may reach"),
    ("sign", "signs bytes"),
    ("verify", "checks signatures of bytes"),
    ("rebuild", "compares bytes with a build of their sources"),
];

/// Verbs that hand a component to a running server, whose own gate decides (`live.rs` beside this file tries that).
const SEND: &[(&str, &str)] = &[("swap", "the server that it is sent to admits it, or does not")];

/// The verbs with an argument that is a component: a value called `….wasm`.
fn verbs_with_components() -> Vec<String> {
    let command = patchhost::cmd::command();
    let takes = |verb: &&clap::Command| {
        let mut names = verb.get_arguments().flat_map(|arg| arg.get_value_names().unwrap_or_default());
        names.any(|name| name.to_lowercase().contains(".wasm"))
    };
    command.get_subcommands().filter(takes).map(|verb| verb.get_name().to_owned()).collect()
}

#[test]
fn every_verb_that_takes_a_component_is_tried_or_named() {
    let verbs = verbs_with_components();
    assert!(verbs.len() > 15, "{verbs:?}");
    let named: Vec<&str> = START.iter().chain(REVIEW).chain(SEND).map(|(verb, _)| *verb).collect();
    for verb in &verbs {
        assert!(
            named.contains(&verb.as_str()),
            "`patchhost {verb}` takes a component: give it a line in START, so that it is tried with a revoked one, or say in \
             REVIEW why it starts nothing"
        );
    }
    for verb in named {
        assert!(verbs.iter().any(|v| v == verb), "`{verb}` is in a list and no verb takes a component by that name");
    }
}

/// A desk with a component that works, a recording of its calls, and everything that the verbs above want to read.
fn desk() -> Desk {
    let desk = Desk::new(&["fp8_block", "gpu_layout"]);
    crate::support::matrix_file(desk.folder(), 256, 256);
    ids_file(desk.folder(), &[1, 2, 3]);
    desk.run("run --component fp8_block.wasm --max-tokens 1 --record calls.rec").good();
    desk
}

fn each(desk: &Desk, what: &str, check: impl Fn(&str, &Ran, String)) {
    let model = repo().join("tests/data/oracle/qwen3_moe").display().to_string();
    for (verb, line) in START {
        let line = line.replace('X', "fp8_block.wasm").replace("MODEL", &model);
        let ran = desk.run(&line);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.code, 1, "`{line}` with a component that is {what}: exit {}\n{said}", ran.code);
        check(verb, &ran, said);
    }
}

#[test]
fn every_verb_that_starts_a_component_refuses_a_revoked_one() {
    let desk = desk();
    desk.run("revoke fp8_block.wasm --reason broken").good();
    each(&desk, "revoked", |verb, _, said| {
        assert!(said.contains("PH714") && said.contains("broken"), "`{verb}` does not say why:\n{said}");
    });
}

#[test]
fn every_verb_that_starts_a_component_refuses_one_that_the_lock_does_not_have() {
    let desk = desk();
    desk.run("lock gpu_layout.wasm").good();
    each(&desk, "not in the lock", |verb, _, said| {
        assert!(said.contains("PH709"), "`{verb}` does not say why:\n{said}");
        assert!(said.contains("patchhost lock"), "`{verb}` does not say how to accept it:\n{said}");
    });
    // Where there must be a lock and there is none, nothing is started either.
    std::fs::remove_file(desk.path("patchhost.lock")).unwrap();
    let ran = desk.run("replay calls.rec --component fp8_block.wasm --locked");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    desk.run("replay calls.rec --component fp8_block.wasm").good();
}

#[test]
fn reviewing_a_revoked_component_is_allowed() {
    let desk = desk();
    desk.run("revoke fp8_block.wasm --reason broken").good();
    let ran = desk.run("audit fp8_block.wasm");
    assert!(ran.stdout.contains("PH714"), "it is said: {}", ran.stdout);
    assert!(!ran.stdout.contains("asked fp8_block"), "and nothing is asked");
}
