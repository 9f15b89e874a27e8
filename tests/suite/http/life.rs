//! Clients that go away, limits, signals.

use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::json;

use super::server::{Server, chunks};
use crate::support::{repo, tmp};

/// As many tokens as the context takes.
fn long() -> serde_json::Value {
    json!({ "prompt": "KING HENRY.\n", "max_tokens": 500, "ignore_eos": true, "temperature": 1 })
}

#[test]
fn who_hangs_up_ends_his_sequences() {
    let server = Server::start(&[]);
    let mut n = long();
    n["n"] = json!(4);
    let mut stream = server.open("/v1/completions", n);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert!(line.starts_with("data: {"), "{line}");
    assert!(server.status()["load"]["running"].as_u64().unwrap() > 0);
    drop(stream);
    let status = server.until("aborted", |s| s["load"]["running"] == 0 && s["load"]["waiting"] == 0);
    assert_eq!(status["load"]["aborted"], 4, "{status}");
    assert!(status["load"]["generation_tokens"].as_u64().unwrap() < 2000, "{status}");
    // The same for one who waits for a whole answer.
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_millis(100))).build();
    let impatient = config.new_agent().post(server.url("/v1/completions")).send_json(long());
    assert!(impatient.is_err());
    server.until("aborted", |s| s["load"]["running"] == 0 && s["load"]["aborted"] == 5);
}

/// Clients that send many requests and hang up before, while and after they are answered, and a standard output that
/// nobody reads any more: none of it ends the server. Writing to such a connection raises SIGPIPE.
#[test]
fn who_hangs_up_does_not_end_the_server() {
    let mut server = Server::start(&[]);
    server.close_output();
    let body = json!({ "prompt": "KING HENRY.\n", "max_tokens": 2, "temperature": 0, "stream": true }).to_string();
    let request = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let pipelined =
        request("/v1/completions").repeat(6) + &"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(40);
    for round in 0..60_usize {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        // Any of these may fail: the server is free to hang up too.
        let _ = stream.write_all(&pipelined.as_bytes()[..pipelined.len() * (1 + round % 4) / 4]);
        match round % 3 {
            // Unread answers: the kernel resets the connection.
            0 => {}
            1 => drop(stream.shutdown(Shutdown::Write)),
            _ => drop(stream.read(&mut [0; 64])),
        }
    }
    server.until("idle", |s| s["load"]["running"] == 0 && s["load"]["waiting"] == 0);
    server.signal("HUP");
    server.signal("PIPE");
    assert_eq!(server.status()["load"]["running"], 0);
    server.signal("TERM");
    assert_eq!(server.code(), 0);
}

#[test]
fn a_full_queue_and_a_late_answer() {
    let server = Server::start(&["--max-num-seqs", "1", "--max-waiting", "2", "--request-timeout", "1500ms"]);
    // Longer than the queue will ever be.
    let mut never = long();
    never["n"] = json!(3);
    server.post("/v1/completions", &never).refused(400, Some("n"));
    let chat = json!({ "messages": [{ "role": "user", "content": "a" }], "n": 3 });
    server.post("/v1/chat/completions", &chat).refused(400, Some("n"));
    let mut stream = server.open("/v1/completions", long());
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let (agent, url) = (server.agent.clone(), server.url("/v1/completions"));
            std::thread::spawn(move || agent.post(url).send_json(long()).unwrap().status().as_u16())
        })
        .collect();
    server.until("a full queue", |s| s["load"]["waiting"] == 2);
    let full = server.post("/v1/completions", &long());
    assert!(full.refused(429, None).contains("--max-waiting"));
    assert_eq!(full.headers["retry-after"].to_str().unwrap(), "1");
    assert_eq!(full.json()["error"]["type"], "rate_limit_error");
    drop(stream);
    // Each is served or told that it took too long; neither hangs.
    for status in waiting.into_iter().map(|t| t.join().unwrap()) {
        assert!([200, 408].contains(&status), "{status}");
    }
    server.until("idle", |s| s["load"]["running"] == 0 && s["load"]["waiting"] == 0);

    let hasty = Server::start(&["--request-timeout", "1ms"]);
    let late = hasty.post("/v1/completions", &long());
    assert!(late.refused(408, None).contains("--request-timeout"));
    hasty.until("idle", |s| s["load"]["running"] == 0 && s["load"]["waiting"] == 0);
}

#[test]
fn sigterm_lets_running_requests_end() {
    let server = Server::start(&[]);
    let mut stream = server.open("/v1/completions", long());
    let mut text = String::new();
    stream.read_line(&mut text).unwrap();
    server.signal("TERM");
    let rest = std::io::read_to_string(stream).unwrap();
    let chunks = chunks(&(text + &rest));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(server.agent.get(server.url("/readyz")).call().is_err(), "it takes no new connections");
    let (code, last) = server.ended();
    assert_eq!((code, last), (0, json!({ "stopped": true, "aborted": 0 })));
}

#[test]
fn what_does_not_end_in_time_is_aborted() {
    let server = Server::start(&["--drain-timeout", "0s"]);
    let mut stream = server.open("/v1/completions", long());
    let mut text = String::new();
    stream.read_line(&mut text).unwrap();
    server.signal("INT");
    let rest = std::io::read_to_string(stream).unwrap();
    let chunks = chunks(&(text + &rest));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "abort");
    let (code, last) = server.ended();
    assert_eq!((code, last), (0, json!({ "stopped": true, "aborted": 1 })));
}

/// A component file that is replaced takes effect with SIGHUP; a broken one does not, and the old one serves on.
#[test]
fn sighup_looks_at_the_files_again() {
    let tmp = tmp();
    let file = tmp.path().join("quant.wasm");
    let put = |name: &str| {
        let new = tmp.path().join("new");
        std::fs::copy(repo().join("guests").join(name), &new).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    put("fp8_block.wasm");
    let ledger = tmp.path().join("ledger.jsonl");
    let server = Server::start(&[
        "--component",
        file.to_str().unwrap(),
        "--watch-when",
        "now",
        "--ledger",
        ledger.to_str().unwrap(),
    ]);
    let ask = || {
        server.post("/v1/completions", &json!({ "prompt": "KING HENRY.\n", "max_tokens": 4, "temperature": 0 })).good()
    };
    let before = ask();
    assert_eq!(before["patch_set"], server.ready["patch_set"]);
    put("fp8_block_mse.wasm");
    server.signal("HUP");
    let status = server.until("another set", |s| s["live"]["patch_set"] != server.ready["patch_set"]);
    let after = ask();
    assert_eq!(after["patch_set"], status["live"]["patch_set"]);
    assert_ne!(after["patch_set"], before["patch_set"]);
    put("evil/spin.wasm");
    server.signal("HUP");
    server.until("a refusal", |s| s["live"]["board"]["refused"].as_u64().unwrap() >= 1);
    assert_eq!(ask()["patch_set"], after["patch_set"]);
    server.signal("TERM");
    assert_eq!(server.ended().0, 0);
    let written = std::fs::read_to_string(&ledger).unwrap();
    assert!(written.contains("sighup"), "{written}");
}
