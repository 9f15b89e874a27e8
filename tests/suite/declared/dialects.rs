//! Narrowing over HTTP: the same words and the same way out in every dialect.

use serde_json::{Value, json};

use super::{cast, moved, tensors_of};
use crate::http_client::{Answer, Server, base64};
use crate::http_rl::file;
use crate::support::{Tensor, copy_folder, edit_tensors, repo, tmp};
use safetensors::tensor::Dtype;

const GATE: &str = "model.layers.1.mlp.gate.weight";
/// Header and value.
const HEADER: [(&str, &str); 2] = [("X-Allow-Narrowing", "true"), ("Content-Type", "application/octet-stream")];

/// Sends tensors; says with `how` that narrowing is allowed.
type Send = fn(&Server, &[Tensor], How) -> Answer;

#[derive(Clone, Copy, PartialEq, Debug)]
enum How {
    No,
    Query,
    Header,
    Field,
}

impl How {
    fn url(self, path: &str) -> String {
        let mark = if path.contains('?') { '&' } else { '?' };
        if self == Self::Query { format!("{path}{mark}allow_narrowing=true") } else { path.to_string() }
    }

    fn field(self, mut body: Value) -> Value {
        if self == Self::Field {
            body["allow_narrowing"] = json!(true);
        }
        body
    }

    fn json(self, server: &Server, path: &str, body: Value) -> Answer {
        let headers = [HEADER[0], ("Content-Type", "application/json")];
        let headers = if self == Self::Header { &headers[..] } else { &headers[1..] };
        server.send("POST", &self.url(path), headers, self.field(body).to_string().as_bytes())
    }

    fn bytes(self, server: &Server, path: &str, body: &[u8]) -> Answer {
        let headers = if self == Self::Header { &HEADER[..] } else { &HEADER[1..] };
        server.send("POST", &self.url(path), headers, body)
    }
}

fn trl(server: &Server, tensors: &[Tensor], how: How, at_the_end: bool) -> Answer {
    let (first, last) = if at_the_end { (How::No, how) } else { (how, How::No) };
    for (i, (name, dtype, shape, data)) in tensors.iter().enumerate() {
        let how = if i == 0 { first } else { How::No };
        let body = json!({ "name": name, "dtype": format!("{dtype:?}"), "shape": shape, "data": base64(data) });
        how.json(server, "/update_named_param/", body).good();
    }
    last.json(server, "/reset_prefix_cache/", json!({}))
}

/// Every way in, and the ways of saying it that it has.
const WAYS: [(&str, Send, &[How]); 8] = [
    ("vLLM, one request", |s, t, how| how.bytes(s, "/update_weights", &file(t, &[])), &[How::Query, How::Header]),
    (
        "vLLM, one request as JSON",
        |s, t, how| {
            let body = json!({ "update_info": { "safetensors": base64(&file(t, &[])) } });
            how.json(s, "/update_weights", body)
        },
        &[How::Query, How::Header, How::Field],
    ),
    (
        "vLLM, said at the beginning",
        |s, t, how| {
            how.json(s, "/start_weight_update", json!({})).good();
            s.bytes("/update_weights", &file(t, &[])).good();
            s.json("/finish_weight_update", &json!({}))
        },
        &[How::Query, How::Header, How::Field],
    ),
    (
        "vLLM, said at the end",
        |s, t, how| {
            s.json("/start_weight_update", &json!({})).good();
            s.bytes("/update_weights", &file(t, &[])).good();
            how.json(s, "/finish_weight_update", json!({}))
        },
        &[How::Query, How::Header, How::Field],
    ),
    (
        "SGLang, one request",
        |s, t, how| {
            how.json(s, "/update_weights_from_tensor", json!({ "serialized_named_tensors": base64(&file(t, &[])) }))
        },
        &[How::Query, How::Header, How::Field],
    ),
    (
        "SGLang, said with the tensors",
        |s, t, how| {
            s.json("/begin_weight_update", &json!({})).good();
            how.bytes(s, "/update_weights_from_tensor", &file(t, &[])).good();
            s.json("/end_weight_update", &json!({}))
        },
        &[How::Query, How::Header],
    ),
    ("TRL, said with the first parameter", |s, t, how| trl(s, t, how, false), &[How::Query, How::Header, How::Field]),
    ("TRL, said at the end", |s, t, how| trl(s, t, how, true), &[How::Query, How::Header]),
];

#[test]
fn every_dialect_refuses_in_the_same_words_and_has_a_way_out() {
    let tmp = tmp();
    let folder = copy_folder(&repo().join("models/tiny-shakespeare-moe"), &tmp.path().join("m"));
    edit_tensors(&folder, |tensors| {
        tensors.iter_mut().filter(|t| t.0 == GATE).for_each(|t| *t = moved(t));
    });
    let own = tensors_of(&folder);
    let low: Vec<Tensor> = own.iter().map(|t| cast(t, Dtype::BF16)).collect();
    let wide: Vec<Tensor> = own.iter().map(moved).collect();
    let server = Server::start(&[folder.to_str().unwrap()]);
    let first = server.checksums();
    let mut words: Option<String> = None;
    for (way, send, hows) in WAYS {
        let answer = send(&server, &low, How::No);
        let status = if way.starts_with("SGLang") { 400 } else { 422 };
        let text = answer.refused(status);
        assert!(
            text.contains(GATE) && text.contains("declared F32") && text.contains("allow_narrowing"),
            "{way}: {text}"
        );
        assert_eq!(*words.get_or_insert_with(|| text.clone()), text, "{way}");
        assert_eq!(server.checksums(), first, "{way}");
        for how in hows {
            send(&server, &low, *how).good();
            assert_ne!(server.checksums(), first, "{way}, {how:?}");
            // f32 everywhere, and then the model's own file: no push locks it out.
            if how == &hows[0] {
                send(&server, &wide, How::No).good();
            }
            send(&server, &own, How::No).good();
            assert_eq!(server.checksums(), first, "{way}, {how:?}");
        }
    }
    let odd = server.bytes("/update_weights?allow_narrowing=maybe", b"x").refused(400);
    assert!(odd.contains("`maybe`"), "{odd}");
    let told = server.bytes("/update_weights", &file(&wide, &[])).good();
    assert!(told["notes"][0].as_str().unwrap().contains("rounded to Bf16"), "{told}");

    let root = tmp.path().join("root");
    crate::support::copy_folder(&folder, &root.join("low"));
    edit_tensors(&root.join("low"), |tensors| tensors.clone_from(&low));
    drop(server);
    let server = Server::start(&[folder.to_str().unwrap(), "--root", root.to_str().unwrap()]);
    let disk = |how: How| how.json(&server, "/update_weights_from_disk", json!({ "model_path": "low" }));
    assert_eq!(disk(How::No).refused(400), words.unwrap());
    for how in [How::Query, How::Header, How::Field] {
        disk(how).good();
    }
    drop(server);
    // For senders that cannot say it.
    let server = Server::start(&[folder.to_str().unwrap(), "--allow-narrowing"]);
    server.bytes("/update_weights", &file(&low, &[])).good();
}
