use std::process::Stdio;

use super::{Desk, guest, ran};

/// Eight programs at once: each writes its entry, none is lost, and the lock is whole whenever somebody looks.
#[test]
fn eight_programs_lose_nothing() {
    let desk = Desk::new(&[]);
    let mut children = Vec::new();
    for i in 0..8 {
        let name = if i % 2 == 0 { "fp8_block" } else { "gpu_layout" };
        std::fs::copy(guest(name), desk.path(&format!("p{i}.wasm"))).unwrap();
        let line = format!("lock p{i}.wasm --limit fuel_base={}", 40_000_000 + i);
        let child = desk.command().args(line.split(' ')).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        children.push(child.unwrap());
    }
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let listed = desk.run("--format json lock --list").good().json();
    let entries = listed["patches"].as_array().unwrap();
    assert_eq!(entries.len(), 8);
    for (i, entry) in entries.iter().enumerate() {
        assert_eq!(entry["name"], format!("p{i}"));
        assert_eq!(entry["limits"]["fuel_base"], 40_000_000 + i);
    }
    desk.run("lock --check").good();
    let left = std::fs::read_dir(desk.folder()).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.contains(".new")).count(), 0);
}

/// A lock that nobody can read is never replaced, whoever wants to.
#[test]
fn garbage_stays_as_it_is() {
    let desk = Desk::new(&["fp8_block"]);
    for garbage in ["", "version = 1\n[[patch]", "\0\0\0", "version = 7\n"] {
        desk.write("patchhost.lock", garbage);
        for line in ["lock fp8_block.wasm", "grant fp8_block.wasm --clocks", "lock --remove x", "run", "lock --check"] {
            desk.run(line).refused(2, desk.folder());
            assert_eq!(desk.text("patchhost.lock"), garbage, "{line}");
        }
    }
    std::fs::remove_file(desk.path("patchhost.lock")).unwrap();
    std::os::unix::fs::symlink("elsewhere", desk.path("patchhost.lock")).unwrap();
    desk.run("lock fp8_block.wasm").refused(2, desk.folder());
    desk.run("run").refused(2, desk.folder());
}

#[test]
fn files_lie_where_the_policy_says() {
    let desk = Desk::new(&["fp8_block"]);
    std::fs::create_dir(desk.path("conf")).unwrap();
    desk.write("conf/policy.toml", "[trust]\nlock = \"locks/my.lock\"\nrevocations = \"gone.toml\"\n");
    std::fs::create_dir(desk.path("conf/locks")).unwrap();
    desk.run("lock fp8_block.wasm --policy conf/policy.toml").good();
    assert!(desk.path("conf/locks/my.lock").is_file());
    let load = |more: &str| desk.load(format!("--component fp8_block.wasm --policy conf/policy.toml {more}").trim());
    load("").good();
    let refused = load("--set profile=hf");
    assert!(refused.stderr.contains("--set profile=hf --policy conf/policy.toml"), "{}", refused.stderr);
    desk.accept(&refused);
    load("--set profile=hf").good();
    desk.run("revoke fp8_block --reason bad --policy conf/policy.toml").good();
    assert!(desk.path("conf/gone.toml").is_file());
    assert!(load("").refused(1, desk.folder()).contains("PH714"));
    // Without the policy nothing of it holds.
    desk.load("--component fp8_block.wasm").good();
    let _ = ran(desk.command().arg("--version")).good();
}
