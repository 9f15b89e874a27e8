//! A ledger that cannot grow: refits are refused before anything is live, whoever asks is told, and what is missing is said.

use std::path::Path;
use std::process::Command;

use patchhost::patch::{Actor, Ledger, LedgerOptions};
use serde_json::{Value, json};

use crate::http_client::{Answer, Server, TOKEN, token_file};
use crate::http_rl::{file, step};
use crate::support::{binary, patchhost, tmp};

/// A server that may write files of so many KiB; it gets an error beyond, and no signal.
fn limited(kib: Option<u32>, args: &[&str]) -> Server {
    let limit = kib.map(|kib| format!("ulimit -S -f {kib}; ")).unwrap_or_default();
    let script = format!("trap '' XFSZ; {limit}exec \"$0\" serve --format json --listen 127.0.0.1:0 \"$@\"");
    Server::of(Command::new("bash").args(["-c", &script]).arg(binary()).args(args))
        .unwrap_or_else(|e| panic!("it did not start: {e}"))
}

fn status_of(server: &Server) -> Value {
    server.as_admin("GET", "/admin/v1/status", &Value::Null).good()
}

fn verify(ledger: &Path) -> Value {
    patchhost(["log", "verify", &ledger.display().to_string(), "--allow-gaps", "--format", "json"]).good().json()
}

#[test]
fn a_refit_that_cannot_be_written_down_is_refused_and_the_gap_is_said() {
    let tmp = tmp();
    let (ledger, token) = (tmp.path().join("ledger.jsonl"), token_file(tmp.path(), TOKEN));
    let args = ["--ledger", &ledger.display().to_string(), "--admin-token-file", &token.display().to_string()]
        .map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // Instances need files of some size too, so the limit is not small and the ledger is nearly as large already.
    const KIB: u32 = 8 << 10;
    {
        let (writer, _) = Ledger::open(&ledger, LedgerOptions::default()).unwrap();
        let left = || u64::from(KIB) * 1024 - std::fs::metadata(&ledger).unwrap().len();
        while left() > 8_000 {
            let text = "x".repeat(usize::try_from(left() - 6_000).unwrap().min(1_000_000));
            let Value::Object(fields) = json!({ "text": text }) else { unreachable!("an object") };
            writer.append("test.filler", &Actor::cli(), fields).unwrap();
        }
    }
    let server = limited(Some(KIB), &args);
    let (good, other) = (file(&step(1), &[]), file(&step(2), &[]));
    let mut published = 0;
    while server.bytes("/update_weights", &good).status == 200 {
        published += 1;
        assert!(published < 50, "the ledger grows beyond its limit");
    }
    let before = status_of(&server);
    assert_eq!(before["last_refit"]["refit"], json!(published + 1));
    // Refused, as often as it is tried; the weights of before serve.
    for _ in 0..3 {
        let Answer { status, text } = server.bytes("/update_weights", &other);
        assert_eq!(status, 503, "{text}");
        assert!(text.contains("event `refit`") && text.contains("the ledger cannot be written"), "{text}");
    }
    let status = status_of(&server);
    assert_eq!((&status["weight_version"], &status["last_refit"]), (&before["weight_version"], &before["last_refit"]));
    assert_eq!(status["ledger"]["ok"], false, "{status}");
    assert!(status["ledger"]["why"].as_str().unwrap().contains("large"), "{status}");
    // The refusals themselves are what could not be stopped: one for each refit that was refused.
    assert_eq!(status["ledger"]["lost"], 4, "{status}");
    let metrics = server.get("/metrics").text;
    assert!(
        metrics.contains("patchhost_ledger_up 0") && metrics.contains("patchhost_ledger_lost_events_total 4"),
        "{metrics}"
    );
    let verified = verify(&ledger);
    assert_eq!(verified["ledger"]["lost"], 4, "{verified}");
    assert!(verified["ledger"]["notes"][0].as_str().unwrap().starts_with("gap at the end: 4 events"), "{verified}");
    let shown = patchhost(["log", "verify", &ledger.display().to_string()]);
    assert_eq!(shown.code, 1, "{}", shown.stderr);
    assert!(shown.stderr.contains("4 events could not be written to it") && shown.stderr.contains("--allow-gaps"));
    assert!(shown.stdout.starts_with("good chain with gaps (4 events missing)"), "{}", shown.stdout);
    // It is killed while nothing can be written. The next one says what is missing, and goes on.
    drop(server);
    let server = limited(None, &args);
    assert_eq!(server.bytes("/update_weights", &other).status, 200);
    let status = status_of(&server);
    assert_eq!((&status["ledger"]["ok"], &status["ledger"]["lost"]), (&json!(true), &json!(0)), "{status}");
    let verified = verify(&ledger);
    assert_eq!(verified["ledger"]["lost"], 4, "{verified}");
    let gap = verified["ledger"]["notes"][0].as_str().unwrap();
    assert!(gap.starts_with("gap at seq ") && gap.contains("4 events could not be written"), "{gap}");
    let refits =
        patchhost(["log", "show", &ledger.display().to_string(), "--event", "refit", "--format", "json"]).good().json();
    let refits = refits["records"].as_array().unwrap().iter().filter(|r| r["event"] == "refit").count();
    // Every set of weights that was live: the loads of two processes, and the updates.
    assert_eq!(refits, 2 + published + 1);
}

#[test]
fn a_run_that_cannot_be_written_down_does_not_start() {
    let tmp = tmp();
    let ledger = tmp.path().join("ledger.jsonl");
    let script =
        format!("trap '' XFSZ; ulimit -S -f 0; exec \"$0\" serve --listen 127.0.0.1:0 --ledger {}", ledger.display());
    // The lock file beside it is the first thing that has no room.
    let out = Command::new("bash").args(["-c", &script]).arg(binary()).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && text.contains("\n  why: ") && text.contains("ledger"), "{text}");
}

/// Runs a verb that may write files of so many KiB, and gives its exit code and what it said.
fn verb(kib: u32, args: &[&str]) -> (Option<i32>, String) {
    let script = format!("trap '' XFSZ; ulimit -S -f {kib}; exec \"$0\" \"$@\"");
    let out = Command::new("bash").args(["-c", &script]).arg(binary()).args(args).output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

#[test]
fn a_verb_that_has_no_room_leaves_no_half_made_file() {
    let tmp = tmp();
    let at = |name: &str| tmp.path().join(name).display().to_string();
    let (code, said) = verb(0, &["keygen", "--out", &at("k"), "--name", "a"]);
    assert!(code != Some(0) && said.contains("\n  why: "), "{said}");
    assert_eq!(names(tmp.path()), [""; 0]);
    patchhost(["keygen", "--out", &at("k"), "--name", "a"]).good();
    // The other verbs start a patch, which needs room for itself.
    const KIB: u32 = 8 << 10;
    let input = crate::support::matrix_file(tmp.path(), 4096, 4096).display().to_string();
    let before = names(tmp.path());
    let (code, said) = verb(KIB, &["quantize", &input, &at("out.safetensors"), "--component", "fp8_block"]);
    assert!(code != Some(0) && said.contains("was not written") && said.contains("\n  why: "), "{said}");
    assert_eq!(names(tmp.path()), before);
    // A file that was there stays as it was.
    std::fs::write(at("out.safetensors"), "old").unwrap();
    let args = ["quantize", &input, &at("out.safetensors"), "--component", "fp8_block", "--force"];
    assert_ne!(verb(KIB, &args).0, Some(0));
    assert_eq!(std::fs::read(at("out.safetensors")).unwrap(), b"old");
    // The recording, whose first bytes have no room.
    let record = at("calls.rec");
    let (code, said) =
        verb(0, &["quantize", &input, &at("other.safetensors"), "--component", "fp8_block", "--record", &record]);
    assert_ne!(code, Some(0), "{said}");
    assert!(!Path::new(&record).exists(), "{said}");
}
