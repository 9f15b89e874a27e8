//! The environment of a process: variables that mean nothing are refused at every verb, and a limit of address space is named.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use patchhost::checkpoint::bundled;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::error::RuntimeError;

use crate::support::{Ran, binary, repo, tmp};

fn ran(command: &mut Command) -> Ran {
    let out = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: out.status.code().unwrap_or(-1), stdout: text(out.stdout), stderr: text(out.stderr) }
}

fn with(variable: &str, value: &OsStr, args: &[&str]) -> Ran {
    ran(Command::new(binary()).args(args).env(variable, value))
}

#[test]
fn a_variable_that_means_nothing_is_refused() {
    let tmp = tmp();
    let file = tmp.path().join("file");
    std::fs::write(&file, "").unwrap();
    let raw = OsStr::from_bytes(b"4\xff");
    for (variable, values, allowed) in [
        ("PATCHHOST_ISA", &["", "bogus", "AVX2", "avx512 "].map(OsStr::new)[..], "portable"),
        ("PATCHHOST_ISA", &[raw], "portable"),
        (
            "PATCHHOST_THREADS",
            &["", "0", "-1", "4.0", "many", "257", "18446744073709551617"].map(OsStr::new),
            "from 1 to 256",
        ),
        ("PATCHHOST_THREADS", &[raw], "from 1 to 256"),
        ("PATCHHOST_LOG", &["loud", "inof"].map(OsStr::new), "debug"),
        ("PATCHHOST_LOG", &[raw], "UTF-8"),
        ("PATCHHOST_CACHE", &[OsStr::new("OFF"), file.as_os_str()], "`off`"),
        ("PATCHHOST_SERVER", &[raw], "UTF-8"),
        ("PATCHHOST_TOKEN_FILE", &[raw], "UTF-8"),
        ("PATCHHOST_ADMIN", &[raw], "UTF-8"),
        ("PATCHHOST_PYTHON", &[raw], "UTF-8"),
    ] {
        for value in values {
            let text = with(variable, value, &["patches"]).refused(2, tmp.path());
            assert!(text.contains(variable) && text.contains(allowed), "{variable}={value:?}: {text}");
        }
    }
}

#[test]
fn every_verb_refuses_it_and_help_does_not() {
    let tmp = tmp();
    let verbs: [&[&str]; 12] = [
        &["run"],
        &["serve", "--listen", "127.0.0.1:0"],
        &["train"],
        &["logits", "x", "--ids", "x", "--out", "x"],
        &["audit", "x"],
        &["explain", "x"],
        &["compare", "x"],
        &["patches"],
        &["status"],
        &["log", "verify", "x"],
        &["keygen", "--out", "x"],
        &["lock", "x"],
    ];
    for verb in verbs {
        for (variable, value) in [("PATCHHOST_THREADS", "-1"), ("PATCHHOST_ISA", "bogus")] {
            let text = with(variable, OsStr::new(value), verb).refused(2, tmp.path());
            assert!(text.contains(&format!("{variable}=\"{value}\"")), "{verb:?}: {text}");
        }
    }
    let json = with("PATCHHOST_THREADS", OsStr::new("-1"), &["patches", "--format", "json"]);
    assert_eq!((json.code, json.json()["exit"].as_u64()), (2, Some(2)));
    let json = json.json();
    let names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["error", "exit", "what", "why", "next"]);
    let part = |name: &str| json[name].as_str().unwrap();
    let (what, why, next) = (part("what"), part("why"), part("next"));
    assert_eq!(what, "the environment variable PATCHHOST_THREADS=\"-1\"");
    assert_eq!(part("error"), format!("refused: {what}\n  why: {why}\n  next: {next}"));
    with("PATCHHOST_THREADS", OsStr::new("-1"), &["--help"]).good();
    with("PATCHHOST_THREADS", OsStr::new("2"), &["patches"]).good();
    with("PATCHHOST_ISA", OsStr::new("portable"), &["patches"]).good();
}

/// Runs in a process of its own, with an environment that means nothing: see below.
#[test]
fn library_child() {
    if std::env::var("PATCHHOST_THREADS").as_deref() != Ok("-1") {
        return;
    }
    let error = Engine::new(bundled::CONFIG, EngineOptions::default()).err().unwrap();
    assert!(
        matches!(&error, RuntimeError::Environment(refusal) if refusal.what.contains("PATCHHOST_THREADS")),
        "{error}"
    );
    println!("refused by type");
}

#[test]
fn the_library_refuses_it_by_type() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "environment::library_child", "--nocapture"]).env("PATCHHOST_THREADS", "-1");
    assert!(ran(&mut child).good().stdout.contains("refused by type"));
}

#[test]
fn a_limit_of_address_space_is_named() {
    let tmp = tmp();
    let limited = |kib: u64, args: &str| {
        let program = binary();
        ran(Command::new("sh")
            .args(["-c", &format!("ulimit -v {kib} && exec '{}' {args}", program.display())])
            .env("PATCHHOST_CACHE", "off")
            .env("PATCHHOST_THREADS", "1"))
    };
    for args in ["run --max-tokens 1 --threads 1", "serve --listen 127.0.0.1:0 --threads 1"] {
        let text = limited(6_000_000, args).refused(4, tmp.path());
        assert!(text.contains("ulimit -v 6000000") && text.contains("address space"), "{args}: {text}");
        assert!(text.contains("ulimit -v unlimited"), "{args}: {text}");
    }
    // Reading a component needs no sandbox.
    let component = repo().join("guests/fp8_block.wasm");
    let audited = limited(2_000_000, &format!("audit {}", component.display()));
    assert_eq!(audited.code, 0, "{}{}", audited.stdout, audited.stderr);
}
