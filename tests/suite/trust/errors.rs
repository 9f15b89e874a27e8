//! What people read when something is refused.

use super::Desk;

#[test]
fn each_refusal_says_why_and_what_to_do() {
    let desk = Desk::new(&["fp8_block", "gpu_layout", "fp8_block_mse"]);
    let mut said = Vec::new();
    let mut say = |code: i32, line: &str| {
        let text = desk.run(line).refused(code, desk.folder());
        said.push(format!("$ patchhost {line}\n{text}\n"));
    };
    say(1, "run --locked");
    say(1, "run --lock none.lock");
    say(2, "lock --check");
    say(2, "lock --list");
    say(2, "lock nothing.wasm");
    say(2, "lock fp8_block.wasm --limit memory_byte=1");
    say(2, "lock fp8_block.wasm --limit memory_bytes=2GiB");
    say(2, "lock fp8_block.wasm --set profile");
    say(2, "lock fp8_block.wasm --set profile=none");
    say(2, "grant fp8_block.wasm");
    say(2, "grant fp8_block.wasm --dir /nowhere=/x");
    say(2, "grant fp8_block.wasm --dir .=x");
    say(2, "grant fp8_block.wasm --env A=B");
    say(2, "revoke fp8 --reason why");
    say(2, "revoke sha256:12 --reason why");
    desk.run("lock fp8_block.wasm --set profile=hf --note looked --by me").good();
    say(1, "run --component fp8_block.wasm --set profile=deepseek");
    say(1, "run --component gpu_layout.wasm");
    say(2, "lock --remove fp8");
    std::fs::copy(super::guest("fp8_block_mse"), desk.path("fp8_block.wasm")).unwrap();
    say(1, "run --component fp8_block.wasm --set profile=hf");
    say(1, "lock --check");
    say(1, "grant fp8_block.wasm --clocks");
    desk.write("patchhost.lock", "version = 1\n[[patch]]\nnme = \"x\"\n");
    say(2, "run");
    say(2, "lock gpu_layout.wasm");
    desk.write("patchhost.toml", "[trust]\nthreshhold = 2\n");
    say(2, "run");
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn a_decision_is_shown_with_what_it_changes() {
    let desk = Desk::new(&["fp8_block", "fp8_block_mse"]);
    let mut said = Vec::new();
    let mut say = |line: &str| {
        let ran = desk.run(line).good();
        let shown: Vec<&str> =
            ran.stdout.lines().filter(|l| !l.contains("generation") && !l.contains("audit:")).collect();
        let hidden = shown.join("\n").split_inclusive([' ', '\n']).map(hide).collect::<String>();
        said.push(format!("$ patchhost {line}\n{hidden}\n"));
    };
    say("lock fp8_block.wasm --set profile=hf");
    say("lock fp8_block.wasm --set profile=hf");
    say("grant fp8_block.wasm --wasi inert --env HOME --limit memory_bytes=32MiB");
    say("grant fp8_block.wasm --wasi none");
    std::fs::copy(super::guest("fp8_block_mse"), desk.path("fp8_block.wasm")).unwrap();
    say("lock fp8_block.wasm");
    say("lock fp8_block.wasm --name second --set candidates=8");
    say("lock --remove second");
    insta::assert_snapshot!(said.join("\n"));
    let json = desk.run("--format json lock fp8_block.wasm --note again").good().json();
    assert_eq!(json["entry"]["review"]["who"], "reviewer");
    assert_eq!(json["changes"][0]["part"], "review");
    assert_eq!(json["trust"]["lock"]["state"], "no-lock");
    let listed = desk.run("--format json lock --list").good().json();
    assert_eq!(listed["patches"].as_array().unwrap().len(), 1);
}

/// Digests and sizes change whenever a guest is rebuilt.
fn hide(word: &str) -> String {
    let bare = word.trim_end();
    let number = bare.len() > 4 && bare.bytes().all(|b| b.is_ascii_digit());
    match bare.starts_with("sha256:") || number {
        true => word.replace(bare, if number { "[size]" } else { "[digest]" }),
        false => word.to_owned(),
    }
}
