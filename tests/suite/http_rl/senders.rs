//! Several senders at one server, by mistake or because one was started again: whose tensors belong to which update.

use serde_json::{Value, json};

use super::{expected, file, step};
use crate::http_client::{Answer, Server};
use crate::support::Tensor;

fn put(server: &Server, tensors: &[Tensor]) -> Answer {
    server.bytes("/update_weights", &file(tensors, &[]))
}

fn named(server: &Server, path: &str, id: &str, tensors: &[Tensor]) -> Answer {
    let headers = [("Content-Type", "application/octet-stream"), ("X-Update-Id", id)];
    server.send("POST", path, &headers, &file(tensors, &[]))
}

fn begin(server: &Server, version: &str) -> Answer {
    server.json("/start_weight_update", &json!({ "weight_version": version }))
}

fn parameter(server: &Server, t: &Tensor) -> Answer {
    let dims: Vec<String> = t.2.iter().map(ToString::to_string).collect();
    let url = format!("/update_named_param/?name={}&dtype=bfloat16&shape={}", t.0, dims.join(","));
    server.bytes(&url, &t.3)
}

fn plain(n: u32) -> std::collections::BTreeMap<String, String> {
    expected(&step(n), &["moe_loader"])
}

/// A part says that it is one, and a whole update in one request is never taken for one.
#[test]
fn a_whole_update_is_no_part_of_one_that_was_left_open() {
    let server = Server::start(&[]);
    let (a, b) = (step(1), step(2));
    let before = server.checksums();
    // In the same words: it brings again what came, and more.
    begin(&server, "left open").good();
    let part = put(&server, &a[..40]).good();
    assert!(part["message"].as_str().unwrap().contains("nothing is live before POST /finish_weight_update"), "{part}");
    for refusal in [
        put(&server, &b),
        // By what it is called.
        server.bytes("/update_weights?weight_version=other", &file(&b[50..], &[])),
        // By another protocol.
        server.bytes("/update_weights_from_tensor", &file(&b, &[])),
        server.bytes("/update_weights_from_tensor", &file(&b[50..], &[])),
        parameter(&server, &b[50]),
        server.post("/end_weight_update"),
    ] {
        let text = refusal.refused(409);
        for says in ["`left open`", "40 tensors came", "/start_weight_update", "/abort_weight_update"] {
            assert!(text.contains(says), "{text}");
        }
    }
    assert_eq!(server.checksums(), before);
    put(&server, &a[40..]).good();
    server.post("/finish_weight_update").good();
    assert_eq!(server.checksums(), plain(1), "nothing of the others slipped in");
    // And while TRL's is open, which nobody began by a call.
    parameter(&server, &a[0]).good();
    put(&server, &b).refused(409);
    server.bytes("/update_weights_from_tensor", &file(&b, &[])).refused(409);
    server.post("/start_weight_update").refused(409);
    server.post("/abort_weight_update").good();
    put(&server, &b).good();
    assert_eq!(server.checksums(), plain(2));
}

/// A request that is refused leaves nothing behind, wherever in it the reason is.
#[test]
fn a_request_is_taken_whole_or_not_at_all() {
    let server = Server::start(&[]);
    let (a, b) = (step(1), step(2));
    begin(&server, "a").good();
    put(&server, &a[60..62]).good();
    // Its last tensor came before; the others did not.
    let mut mixed = b[..20].to_vec();
    mixed.push(b[60].clone());
    assert!(put(&server, &mixed).refused(422).contains("given twice"));
    let rest: Vec<Tensor> = a.iter().filter(|t| t.0 != a[60].0 && t.0 != a[61].0).cloned().collect();
    put(&server, &rest).good();
    server.post("/finish_weight_update").good();
    assert_eq!(server.checksums(), plain(1));
}

#[test]
fn after_a_refused_begin_updates_are_named() {
    let server = Server::start(&[]);
    let (a, b) = (step(1), step(2));
    begin(&server, "A").good();
    begin(&server, "B").refused(409);
    // The one that was open goes on as it began.
    put(&server, &a[..60]).good();
    put(&server, &a[60..]).good();
    server.json("/finish_weight_update", &json!({ "weight_version": "A" })).good();
    assert_eq!(server.checksums(), plain(1));
    // B may still believe that it has begun: whose is a part that says nothing?
    let begun = begin(&server, "A2").good();
    assert_eq!(begun["must_be_named"], true, "{begun}");
    let id = begun["update_id"].as_str().unwrap().to_string();
    assert!(put(&server, &b[60..]).refused(409).contains("X-Update-Id"));
    named(&server, "/update_weights", "u-another", &b[60..]).refused(409);
    named(&server, "/update_weights", &id, &step(3)[..60]).good();
    named(&server, "/update_weights", &id, &step(3)[60..]).good();
    server.json("/finish_weight_update", &json!({ "update_id": "u-another" })).refused(409);
    server.json("/finish_weight_update", &json!({ "update_id": id })).good();
    assert_eq!(server.checksums(), plain(3));
    // An end that names nothing ends such an update without effect.
    begin(&server, "A3").good();
    server.post("/finish_weight_update").refused(409);
    assert!(server.post("/finish_weight_update").refused(409).contains("no update is open"));
    // The refused one gets its turn, and all is as before.
    assert_eq!(begin(&server, "B").good()["must_be_named"], false);
    put(&server, &b).good();
    server.post("/finish_weight_update").good();
    assert_eq!(server.checksums(), plain(2));
    assert_eq!(begin(&server, "C").good()["must_be_named"], false);
}

/// A trainer that was started again gets through with the calls of its own protocol.
#[test]
fn a_restarted_trainer_gets_a_clean_start() {
    let server = Server::start(&[]);
    let mut n = 0;
    for (start, send, end) in [
        ("/start_weight_update", "/update_weights", "/finish_weight_update"),
        ("/begin_weight_update", "/update_weights_from_tensor", "/end_weight_update"),
    ] {
        for versions in [[Value::Null, Value::Null], [json!("12"), json!("11")]] {
            n += 1;
            let t = step(n);
            server.json(start, &json!({ "weight_version": versions[0] })).good();
            server.bytes(send, &file(&t[..5], &[])).good();
            server.json(start, &json!({ "weight_version": versions[1] })).refused(409);
            // What it does to clear the place: the end is refused, for tensors are missing.
            let end_early = server.post(end);
            assert!((400..500).contains(&end_early.status), "{}", end_early.text);
            let begun = server.json(start, &json!({ "weight_version": versions[1] })).good();
            assert_ne!(begun["must_be_named"], true, "{begun}");
            server.bytes(send, &file(&t, &[])).good();
            server.post(end).good();
            assert_eq!(server.checksums(), plain(n));
        }
    }
    // With an id of its own it needs no detour.
    let own = json!({ "update_id": "run-7" });
    server.json("/start_weight_update", &own).good();
    named(&server, "/update_weights", "run-7", &step(1)[..5]).good();
    server.json("/start_weight_update", &json!({ "update_id": "run-8" })).refused(409);
    server.json("/start_weight_update", &own).good();
    named(&server, "/update_weights", "run-7", &step(9)).good();
    server.send("POST", "/finish_weight_update?update_id=run-7", &[], b"").good();
    assert_eq!(server.checksums(), plain(9));
    for bad in ["with space", "", "é"] {
        let answer = server.json("/finish_weight_update", &json!({ "update_id": bad }));
        answer.refused(if bad.is_empty() { 409 } else { 400 });
    }
}

/// TRL begins with its first parameter, and begins again with it.
#[test]
fn trl_starts_over_with_its_first_parameter() {
    let server = Server::start(&[]);
    let (a, b) = (step(1), step(2));
    let end = || server.post("/reset_prefix_cache/");
    a[..5].iter().for_each(|t| drop(parameter(&server, t).good()));
    b.iter().for_each(|t| drop(parameter(&server, t).good()));
    end().good();
    assert_eq!(server.checksums(), plain(2));
    // Two at once: one parameter of both is enough to give up what came.
    a[..9].iter().for_each(|t| drop(parameter(&server, t).good()));
    assert!(parameter(&server, &b[4]).refused(409).contains("two senders"));
    a[9..].iter().for_each(|t| drop(parameter(&server, t).good()));
    end().refused(422);
    assert_eq!(server.checksums(), plain(2));
    a.iter().for_each(|t| drop(parameter(&server, t).good()));
    end().good();
    assert_eq!(server.checksums(), plain(1));
}
