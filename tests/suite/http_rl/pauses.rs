//! Pauses, aborts and sleep, in the words of vLLM and SGLang.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{file, step};
use crate::http_client::{Answer, Server};

/// A request that takes a while, in a thread of its own; it runs when this returns.
fn long(server: &Arc<Server>, tokens: usize) -> thread::JoinHandle<Answer> {
    let other = Arc::clone(server);
    let running = thread::spawn(move || {
        let params = json!({ "max_tokens": tokens, "ignore_eos": true, "temperature": 1.0, "seed": 5 });
        let body = json!({ "token_ids": [5, 6, 7], "sampling_params": params, "request_id": "long" });
        other.json("/inference/v1/generate", &body)
    });
    wait(|| load(server, "running") > 0);
    running
}

fn load(server: &Server, field: &str) -> u64 {
    server.get("/server_info").good()["internal_states"][0][field].as_u64().unwrap()
}

fn wait(ready: impl Fn() -> bool) {
    for _ in 0..2000 {
        if ready() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("it does not happen");
}

fn choice(answer: Answer) -> Value {
    answer.good()["choices"][0].clone()
}

#[test]
fn abort_ends_what_runs() {
    let server = Arc::new(Server::start(&[]));
    assert_eq!(server.get("/is_paused").good()["is_paused"], false);
    let running = long(&server, 500);
    assert_eq!(server.post("/pause").good()["status"], "paused");
    let got = choice(running.join().unwrap());
    assert_eq!(got["finish_reason"], "abort");
    assert!(got["token_ids"].as_array().unwrap().len() < 500);
    assert_eq!(server.get("/is_paused").good()["is_paused"], true);
    // What comes meanwhile waits.
    let other = Arc::clone(&server);
    let waiting = thread::spawn(move || {
        other.json(
            "/inference/v1/generate",
            &json!({ "token_ids": [1, 2], "sampling_params": { "max_tokens": 2, "ignore_eos": true } }),
        )
    });
    wait(|| load(&server, "waiting") == 1);
    assert_eq!(server.post("/resume").good()["status"], "resumed");
    assert_eq!(choice(waiting.join().unwrap())["finish_reason"], "length");
    assert_eq!(server.get("/is_paused").good()["is_paused"], false);
    assert!(server.post("/pause?mode=gently").refused(400).contains("gently"));
}

#[test]
fn wait_lets_it_end() {
    let server = Arc::new(Server::start(&[]));
    let running = long(&server, 60);
    server.post("/pause?mode=wait").good();
    let got = choice(running.join().unwrap());
    assert_eq!((&got["finish_reason"], got["token_ids"].as_array().unwrap().len()), (&json!("length"), 60));
    server.post("/resume").good();
}

/// Kept over an update, an answer says which of its tokens which weights made.
#[test]
fn keep_and_retract_go_on_with_the_new_weights() {
    for pause in ["/pause?mode=keep", "/pause_generation"] {
        let server = Arc::new(Server::start(&[]));
        let running = long(&server, 500);
        match pause {
            "/pause_generation" => {
                let answer = server.json(pause, &json!({ "mode": "retract" })).good();
                assert_eq!(answer["status"], "ok");
            }
            _ => drop(server.post(pause).good()),
        }
        server.bytes("/update_weights?weight_version=new", &file(&step(1), &[])).good();
        match pause {
            "/pause_generation" => drop(server.post("/continue_generation").good()),
            _ => drop(server.post("/resume").good()),
        }
        let got = choice(running.join().unwrap());
        assert_eq!(got["finish_reason"], "length", "{pause}");
        let versions = got["weight_versions"].as_array().unwrap();
        assert_eq!(versions.len(), 2, "{versions:?}");
        assert_eq!(versions[1]["version"], "new");
        assert_eq!((&versions[0]["end"], &versions[1]["end"]), (&versions[1]["start"], &json!(500)));
    }
}

/// Without a pause an answer is wholly of one set.
#[test]
fn an_update_beside_a_request_does_not_touch_it() {
    let server = Arc::new(Server::start(&[]));
    let alone = choice(long(&server, 200).join().unwrap());
    let running = long(&server, 200);
    server.bytes("/update_weights?weight_version=new", &file(&step(1), &[])).good();
    let beside = choice(running.join().unwrap());
    assert_eq!(beside["token_ids"], alone["token_ids"]);
    assert_eq!(beside["weight_versions"].as_array().unwrap().len(), 1);
    let after = choice(long(&server, 200).join().unwrap());
    assert_eq!(after["weight_versions"][0]["version"], "new");
}

#[test]
fn requests_are_aborted_by_id_or_all() {
    let server = Arc::new(Server::start(&[]));
    let running = long(&server, 500);
    assert_eq!(server.json("/abort_requests", &json!({ "request_ids": ["other"] })).good()["aborted"], 0);
    let answer = server.json("/abort_requests", &json!({ "request_ids": ["long"] })).good();
    assert_eq!((&answer["status"], &answer["aborted"]), (&json!("aborted"), &json!(1)));
    assert_eq!(choice(running.join().unwrap())["finish_reason"], "abort");
    let running = long(&server, 500);
    server.json("/abort_request", &json!({ "rid": "long" })).good();
    assert_eq!(choice(running.join().unwrap())["finish_reason"], "abort");
    let running = long(&server, 500);
    server.json("/abort_request", &json!({ "abort_all": true })).good();
    assert_eq!(choice(running.join().unwrap())["finish_reason"], "abort");
    let running = long(&server, 500);
    server.post("/abort_requests").good();
    assert_eq!(choice(running.join().unwrap())["finish_reason"], "abort");
    server.json("/abort_request", &json!({})).refused(400);
}

#[test]
fn sleep_and_wake() {
    let server = Arc::new(Server::start(&[]));
    let generate = || {
        server.json("/inference/v1/generate", &json!({ "token_ids": [1, 2], "sampling_params": { "max_tokens": 2 } }))
    };
    generate().good();
    server.post("/sleep?level=1").good();
    assert_eq!(server.get("/is_sleeping").good()["is_sleeping"], true);
    server.get("/health_generate").refused(503);
    let other = Arc::clone(&server);
    let waiting = thread::spawn(move || {
        other.json("/inference/v1/generate", &json!({ "token_ids": [1, 2], "sampling_params": { "max_tokens": 2 } }))
    });
    // verl wakes the weights first, sends new ones, and then the cache.
    server.post("/wake_up?tags=weights").good();
    assert_eq!(server.get("/is_sleeping").good()["is_sleeping"], true);
    server.bytes("/update_weights?weight_version=new", &file(&step(1), &[])).good();
    server.post("/wake_up?tags=kv_cache").good();
    assert_eq!(server.get("/is_sleeping").good()["is_sleeping"], false);
    assert_eq!(choice(waiting.join().unwrap())["weight_versions"][0]["version"], "new");
    server.post("/wake_up?tags=dreams").refused(400);
    server.post("/sleep?level=9").refused(400);
    server.post("/sleep?mode=keep").refused(400);
    server.json("/release_memory_occupation", &json!({ "tags": ["kv_cache"] })).good();
    server.json("/resume_memory_occupation", &json!({ "tags": ["kv_cache"] })).good();
    generate().good();
    assert_eq!(server.get("/health_generate").status, 200);
    for path in ["/flush_cache", "/reset_prefix_cache", "/release_kv_cache_memory"] {
        server.post(path).good();
    }
    server.get("/flush_cache").good();
}
