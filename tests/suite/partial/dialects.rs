//! Partial updates over HTTP: every dialect, every way of saying it, and what is refused.

use serde_json::{Value, json};

use super::{replaced, some};
use crate::http_client::{Answer, Server, TOKEN, base64, token_file};
use crate::http_rl::{expected, file, step};
use crate::support::Tensor;

const FP8: [&str; 2] = ["moe_loader", "fp8_block"];
const BYTES: &str = "application/octet-stream";

/// How a sender says that the rest stays.
#[derive(Clone, Copy, PartialEq, Debug)]
enum How {
    No,
    Query,
    Header,
    Field,
}

impl How {
    fn send(self, server: &Server, path: &str, kind: &str, body: &[u8]) -> Answer {
        let mark = if path.contains('?') { '&' } else { '?' };
        let path = if self == Self::Query { format!("{path}{mark}complete=false") } else { path.to_string() };
        let said = if self == Self::Header { &[("X-Complete", "false")][..] } else { &[] };
        server.send("POST", &path, &[&[("Content-Type", kind)][..], said].concat(), body)
    }

    fn json(self, server: &Server, path: &str, mut body: Value) -> Answer {
        if self == Self::Field {
            body["complete"] = json!(false);
        }
        self.send(server, path, "application/json", body.to_string().as_bytes())
    }

    fn bytes(self, server: &Server, path: &str, body: &[u8]) -> Answer {
        self.send(server, path, BYTES, body)
    }
}

/// A part of an update, and how its sender says so.
type Send = fn(&Server, &[Tensor], How) -> Answer;

const WAYS: [(&str, Send, &[How]); 8] = [
    ("vLLM, one request", |s, t, how| how.bytes(s, "/update_weights", &file(t, &[])), &[How::Query, How::Header]),
    (
        "vLLM, JSON",
        |s, t, how| how.json(s, "/update_weights", json!({ "update_info": { "safetensors": base64(&file(t, &[])) } })),
        &[How::Query, How::Header, How::Field],
    ),
    (
        "vLLM, in what describes the bytes",
        |s, t, how| {
            let mut info = json!({ "safetensors": base64(&file(t, &[])) });
            if how == How::Field {
                info["complete"] = json!(false);
            }
            s.json("/update_weights", &json!({ "update_info": [info] }))
        },
        &[How::Field],
    ),
    (
        "vLLM, at the beginning",
        |s, t, how| {
            how.json(s, "/start_weight_update", json!({})).good();
            s.bytes("/update_weights", &file(t, &[])).good();
            s.post("/finish_weight_update")
        },
        &[How::Query, How::Header, How::Field],
    ),
    (
        "vLLM, at the end",
        |s, t, how| {
            s.post("/start_weight_update").good();
            s.bytes("/update_weights", &file(t, &[])).good();
            how.json(s, "/finish_weight_update", json!({}))
        },
        &[How::Query, How::Header, How::Field],
    ),
    (
        "SGLang, one request",
        |s, t, how| {
            let body = json!({ "serialized_named_tensors": base64(&file(t, &[])) });
            how.json(s, "/update_weights_from_tensor", body)
        },
        &[How::Query, How::Header, How::Field],
    ),
    (
        "SGLang, begun and ended",
        |s, t, how| {
            how.json(s, "/begin_weight_update", json!({})).good();
            s.bytes("/update_weights_from_tensor", &file(t, &[])).good();
            s.post("/end_weight_update")
        },
        &[How::Query, How::Header, How::Field],
    ),
    (
        "TRL",
        |s, t, how| {
            for (name, dtype, shape, data) in t {
                let body = json!({ "name": name, "dtype": format!("{dtype:?}"), "shape": shape, "data": base64(data) });
                how.json(s, "/update_named_param/", body).good();
            }
            s.post("/reset_prefix_cache/")
        },
        &[How::Query, How::Header, How::Field],
    ),
];

/// Each sends another part of other weights, so that none can pass because of the one before.
#[test]
fn every_dialect_takes_a_part_and_the_rest_stays() {
    let server = Server::start(&["--component", "fp8_block"]);
    let mut held = step(0);
    let parts: [fn(&str) -> bool; 3] =
        [|name| name.contains("q_proj"), |name| name.contains("experts.1."), |name| name.contains("embed_tokens")];
    let mut n = 0;
    for (way, send, hows) in WAYS {
        for how in hows {
            n += 1;
            let came = some(&step(n), parts[n as usize % parts.len()]);
            let before = server.checksums();
            let status = if way.starts_with("SGLang") { 400 } else { 422 };
            let text = send(&server, &came, How::No).refused(status);
            assert!(text.contains("a partial update says `\"complete\": false`"), "{way}: {text}");
            assert_eq!(server.checksums(), before, "{way}: a refusal changes nothing");
            let answer = send(&server, &came, *how).good();
            let answer = answer.get("published").unwrap_or(&answer).clone();
            let stayed = &answer["stayed"];
            assert_eq!(stayed["came"], came.len(), "{way}, {how:?}: {answer}");
            assert_eq!(stayed["tensors"], held.len() - came.len(), "{way}, {how:?}: {answer}");
            let names = stayed["names"].as_array().unwrap();
            assert!(!names.is_empty() && names.len() <= 16 && stayed["names_sha256"].is_string(), "{answer}");
            held = replaced(&held, &came);
            assert_eq!(server.checksums(), expected(&held, &FP8), "{way}, {how:?}");
        }
    }
    // A whole update says nothing of what stayed.
    assert!(server.bytes("/update_weights", &file(&step(0), &[])).good().get("stayed").is_none());
    assert_eq!(server.checksums(), expected(&step(0), &FP8));
}

#[test]
fn files_and_frames_are_parts_too() {
    let tmp = tempfile::tempdir().unwrap();
    let server = Server::start(&["--root", tmp.path().to_str().unwrap()]);
    let norms = some(&step(1), |name| name.contains("norm"));
    std::fs::write(tmp.path().join("part.safetensors"), file(&norms, &[])).unwrap();
    let disk = |more: Value| {
        let mut body = json!({ "model_path": "part.safetensors" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.json("/update_weights_from_disk", &body)
    };
    assert!(disk(json!({})).refused(400).contains("partial update"));
    let message = disk(json!({ "complete": false })).good()["message"].as_str().unwrap().to_string();
    assert!(message.contains("tensors stay as they were"), "{message}");
    let held = replaced(&step(0), &norms);
    assert_eq!(server.checksums(), expected(&held, &["moe_loader"]));
    let one = some(&step(2), |name| name == "model.norm.weight");
    let (name, _, shape, data) = &one[0];
    let header = json!({
        "bucket_meta": { name.as_str(): { "dtype": "bfloat16", "shape": shape, "offset": 0 } }, "complete": false,
    });
    let mut frame = (header.to_string().len() as u64).to_le_bytes().to_vec();
    frame.extend(header.to_string().bytes());
    frame.extend(data);
    server.send("POST", "/update_weights", &[("Content-Type", "application/x-bucket")], &frame).good();
    assert_eq!(server.checksums(), expected(&replaced(&held, &one), &["moe_loader"]));
}

#[test]
fn the_last_word_about_all_tensors_counts_and_a_manifest_is_exact() {
    let server = Server::start(&[]);
    let part = some(&step(1), |name| name.contains("k_proj"));
    // Begun as a part, ended as a whole: tensors are missing then.
    server.json("/start_weight_update", &json!({ "complete": false })).good();
    server.bytes("/update_weights", &file(&part, &[])).good();
    assert!(server.json("/finish_weight_update", &json!({ "complete": true })).refused(422).contains("lacks"));
    for wrong in [json!({ "complete": "perhaps" }), json!({ "complete": 3 })] {
        assert!(server.json("/start_weight_update", &wrong).refused(400).contains("neither true nor false"));
    }
    server.json("/start_weight_update", &json!({ "complete": false })).good();
    assert!(server.post("/finish_weight_update").refused(422).contains("no tensor came"));
    let promise = |names: &[&str]| {
        let tensors: serde_json::Map<String, Value> = names.iter().map(|n| (n.to_string(), json!({}))).collect();
        json!({ "complete": false, "manifest": { "tensors": tensors } })
    };
    // What was promised and does not come is not taken from what is held.
    let [norm, k] = ["model.norm.weight", part[0].0.as_str()];
    server.json("/start_weight_update", &promise(&[norm, k])).good();
    let other = server.bytes("/update_weights", &file(&part[1..2], &[])).refused(422);
    assert!(other.contains("the manifest does not name it"), "{other}");
    server.bytes("/update_weights", &file(&part[..1], &[])).good();
    let missing = server.post("/finish_weight_update").refused(422);
    assert!(missing.contains(norm) && missing.contains("did not come"), "{missing}");
    assert_eq!(server.checksums(), expected(&step(0), &["moe_loader"]));
    server.json("/start_weight_update", &promise(&[k])).good();
    server.bytes("/update_weights", &file(&part[..1], &[])).good();
    server.post("/finish_weight_update").good();
    assert_eq!(server.checksums(), expected(&replaced(&step(0), &part[..1]), &["moe_loader"]));
    // Names that the model does not have are no part of it.
    let mut stray = part[0].clone();
    stray.0 = "model.layers.0.self_attn.k_projj.weight".to_string();
    let unknown = server.bytes("/update_weights?complete=false", &file(&[stray], &[])).refused(422);
    assert!(unknown.contains("did you mean `model.layers.0.self_attn.k_proj.weight`"), "{unknown}");
}

/// A swap loads the last weights again: those that stayed, and those that came. The ledger says what stayed.
#[test]
fn a_swap_after_a_partial_update_loads_all_of_it() {
    let tmp = tempfile::tempdir().unwrap();
    let token = token_file(tmp.path(), TOKEN);
    let server = Server::start(&["--admin-token-file", token.to_str().unwrap()]);
    let mut held = step(0);
    for n in 1..4 {
        let came = some(&step(n), |name| name.contains(["q_proj", "experts.0.", "norm"][n as usize - 1]));
        server.bytes("/update_weights?complete=false", &file(&came, &[])).good();
        held = replaced(&held, &came);
    }
    assert_eq!(server.checksums(), expected(&held, &["moe_loader"]));
    let staged = server.as_admin("POST", "/admin/v1/stage", &json!({ "bundled": "fp8_block" })).good();
    server.as_admin("POST", "/admin/v1/swap", &json!({ "to": staged["generation"], "when": "now" })).good();
    assert_eq!(server.checksums(), expected(&held, &FP8));
    let ledger = server.as_admin("GET", "/admin/v1/ledger?last=50", &json!({})).good().to_string();
    assert!(ledger.contains("\"stayed\"") && ledger.contains("names_sha256"), "{ledger}");
    // And the next part builds on it.
    let came = some(&step(9), |name| name.contains("o_proj"));
    server.bytes("/update_weights?complete=false", &file(&came, &[])).good();
    assert_eq!(server.checksums(), expected(&replaced(&held, &came), &FP8));
}
