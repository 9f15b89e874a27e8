//! One byte of wasm, settings, limits or grants: another identity, which a locked run refuses with the command that would
//! accept it.

use super::{Desk, guest};

const SET: &str = "--component fp8_block.wasm --set profile=deepseek";

fn locked() -> Desk {
    let desk = Desk::new(&["fp8_block"]);
    desk.run("lock fp8_block.wasm --set profile=deepseek --limit memory_bytes=32MiB --wasi inert").good();
    desk.load(SET).good();
    desk
}

/// A changed file that is still a component: a byte of a name in its producers section.
#[test]
fn of_the_wasm() {
    let desk = locked();
    let mut bytes = std::fs::read(desk.path("fp8_block.wasm")).unwrap();
    let name = b"wit-component";
    let at = bytes.windows(name.len()).rposition(|w| w == name).unwrap();
    bytes[at] = b'W';
    std::fs::write(desk.path("fp8_block.wasm"), bytes).unwrap();
    let refused = desk.load(SET);
    assert!(
        refused.stderr.contains("PH710 digest-mismatch: the lock has `fp8_block` with sha256:"),
        "{}",
        refused.stderr
    );
    // New bytes start from nothing: neither grants nor limits are in the command.
    assert!(!refused.stderr.contains("--wasi") && !refused.stderr.contains("--limit"), "{}", refused.stderr);
    desk.accept(&refused);
    desk.load(SET).good();
    assert!(desk.text("patchhost.lock").contains("memory_bytes = 67108864"));
}

#[test]
fn of_a_setting() {
    let desk = locked();
    let other = "--component fp8_block.wasm --set profile=deepgemm";
    for line in [other, "--component fp8_block.wasm"] {
        let refused = desk.load(line);
        assert!(refused.stderr.contains("the settings are "), "{}", refused.stderr);
        desk.accept(&refused);
        desk.load(line).good();
        // What was granted to these bytes stays with them.
        assert!(desk.text("patchhost.lock").contains("memory_bytes = 33554432"));
    }
}

#[test]
fn of_a_limit_and_of_a_grant_in_the_lock() {
    for (from, to) in [
        ("memory_bytes = 33554432", "memory_bytes = 33554433"),
        ("fuel_base = 50000000", "fuel_base = 50000001"),
        ("wasi = \"inert\"", "wasi = { random = true }"),
        ("wasi = \"inert\"", ""),
    ] {
        let desk = locked();
        desk.edit("patchhost.lock", from, to);
        let refused = desk.load(SET);
        assert!(refused.stderr.contains("is not as it was locked"), "{}", refused.stderr);
        assert_eq!(desk.run("lock --check").code, 1);
        desk.accept(&refused);
        desk.load(SET).good();
        assert!(desk.text("patchhost.lock").contains(if to.contains("random") { "random = true" } else { to }));
        desk.run("lock --check").good();
    }
}

#[test]
fn of_a_limit_in_the_policy() {
    let desk = locked();
    desk.write("patchhost.toml", "[limits]\nfuel_base = 40000000\n");
    let refused = desk.load(SET);
    assert!(
        refused.stderr.contains("limit fuel_base is 50000000 there, and 40000000 by the policy"),
        "{}",
        refused.stderr
    );
    desk.accept(&refused);
    desk.load(SET).good();
    assert!(desk.text("patchhost.lock").contains("fuel_base = 40000000"));
}

/// Every verb that loads patches asks the same gate.
#[test]
fn in_every_verb() {
    let desk = Desk::new(&["fp8_block", "gpu_layout"]);
    desk.run("lock gpu_layout.wasm").good();
    let tensors = crate::support::matrix_file(desk.folder(), 256, 256).display().to_string();
    let out = desk.path("out").display().to_string();
    let model = crate::support::data("oracle/qwen3_moe").display().to_string();
    for line in [
        "run --component fp8_block.wasm --max-tokens 1".to_owned(),
        format!("refit {model} --from {model} --component fp8_block.wasm"),
        "verify-refit --component fp8_block.wasm".to_owned(),
        "explain --component fp8_block.wasm".to_owned(),
        "patches --component fp8_block.wasm".to_owned(),
        format!("quantize {tensors} {out} --component fp8_block.wasm"),
        format!("train --component fp8_block.wasm --steps 1 --metrics-out {out}.m"),
        "serve --component fp8_block.wasm --listen 127.0.0.1:0".to_owned(),
        format!("compare fp8_block.wasm fp8_block {tensors}"),
    ] {
        let refused = desk.run(&line);
        assert!(refused.stderr.contains("PH709 not-in-lock"), "{line}: {} {}", refused.stdout, refused.stderr);
        refused.refused(1, desk.folder());
    }
    // Bundled ones without settings are the host's own.
    desk.load("--component fp8_block").good();
    let refused = desk.load("--component fp8_block --set profile=hf");
    desk.accept(&refused);
    desk.load("--component fp8_block --set profile=hf").good();
}

#[test]
fn with_names_that_a_shell_would_take_apart() {
    let desk = Desk::new(&["gpu_layout"]);
    desk.run("lock gpu_layout.wasm").good();
    let odd = "it's $(a) \"patch\"\n.wasm";
    std::fs::copy(guest("fp8_block"), desk.path(odd)).unwrap();
    let load = || {
        let out = desk.path("o").display().to_string();
        let tensors = crate::support::matrix_file(desk.folder(), 128, 128).display().to_string();
        super::ran(desk.command().args(["quantize", &tensors, &out, "--component", odd]))
    };
    let refused = load();
    // A line feed in a name stays out of the lock: names are for people.
    assert_eq!(refused.code, 1);
    std::fs::rename(desk.path(odd), desk.path("it's $(a).wasm")).unwrap();
    let load = || {
        let out = desk.path("o").display().to_string();
        let tensors = desk.path("in.safetensors").display().to_string();
        super::ran(desk.command().args(["quantize", &tensors, &out, "--component", "it's $(a).wasm"]))
    };
    desk.accept(&load());
    load().good();
}
