//! Fields that nobody knows are said in the answer; bodies that are no objects are refused at every route; special tokens and
//! salts are what the request says.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::server::Server;
use crate::support::{binary, copy_folder, repo, tmp};

const HEADER: &str = "x-patchhost-ignored-fields";

#[test]
fn fields_that_nobody_knows_are_named_in_the_answer() {
    let server = Server::start(&[]);
    let chat = tmp();
    let template = chat.path().join("chat.jinja");
    std::fs::write(&template, "{{ messages[0].content }}").unwrap();
    let chatting = Server::start(&["--chat-template", template.to_str().unwrap()]);
    let messages =
        json!([{ "role": "user", "content": [{ "type": "text", "text": "a", "cache_control": {} }], "nmae": "x" }]);
    for (path, body, said) in [
        (
            "/v1/completions",
            json!({ "prompt": "a", "max_tokens": 1, "temprature": 1 }),
            "temprature (did you mean temperature?)",
        ),
        (
            "/v1/completions",
            json!({ "prompt": "a", "max_tokens": 1, "logit_biass": {}, "frobnicate": null, "stop": [] }),
            "logit_biass (did you mean logit_bias?), frobnicate",
        ),
        (
            "/v1/completions",
            json!({ "prompt": "a", "max_tokens": 1, "stream": true, "stream_options": { "include_usge": true } }),
            "stream_options.include_usge (did you mean stream_options.include_usage?)",
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": messages, "max_tokens": 1, "max_completion_token": 1 }),
            "messages[].content[].cache_control, max_completion_token (did you mean max_completion_tokens?), \
             messages[].nmae (did you mean messages[].name?)",
        ),
        (
            "/generate",
            json!({ "text": "a", "sampling_params": { "max_new_tokens": 1, "temprature": 1 }, "retrun_logprob": true }),
            "sampling_params.temprature (did you mean sampling_params.temperature?), retrun_logprob (did you mean return_logprob?)",
        ),
        (
            "/generate",
            json!({ "text": ["a", "b"], "sampling_params": [{ "max_new_tokens": 1, "tempratur": 1 }, { "max_new_tokens": 1 }] }),
            "sampling_params[].tempratur (did you mean sampling_params.temperature?)",
        ),
        (
            "/generate",
            json!({ "text": "a", "max_new_tokens": 1, "stream": true }),
            "max_new_tokens (did you mean sampling_params.max_new_tokens?)",
        ),
        (
            "/inference/v1/generate",
            json!({ "token_ids": [1], "sampling_params": { "max_tokens": 1, "max_token": 2 } }),
            "sampling_params.max_token (did you mean sampling_params.max_tokens?)",
        ),
        (
            "/generate/",
            json!({ "prompts": ["a"], "max_tokens": 1, "topp": 1, "generation_kwargs": { "min_token": 0 } }),
            "topp (did you mean top_p?), generation_kwargs.min_token (did you mean generation_kwargs.min_tokens?)",
        ),
        (
            "/tokenize",
            json!({ "prompt": "a", "add_special_token": false }),
            "add_special_token (did you mean add_special_tokens?)",
        ),
        (
            "/abort_requests",
            json!({ "request_id": ["x"], "request_ids": ["y"] }),
            "request_id (did you mean request_ids?)",
        ),
        ("/resume", json!({ "whatever": 1 }), "whatever"),
        ("/resume?mod=keep", json!({}), "?mod"),
    ] {
        let server = if path.contains("chat") { &chatting } else { &server };
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text);
        assert_eq!(answer.headers.get(HEADER).map(|v| v.to_str().unwrap()), Some(said), "{path} {body}");
    }
    // What is written in the body and belongs into the URL.
    let pause = server.post("/pause", &json!({ "mode": "keep" }));
    assert_eq!(pause.headers[HEADER].to_str().unwrap(), "mode (did you mean ?mode?)");
    let pause = server.post("/pause?mode=keep&clear_cach=false", &json!({}));
    assert_eq!(pause.headers[HEADER].to_str().unwrap(), "?clear_cach (did you mean ?clear_cache?)");
    server.post("/resume", &json!({})).good();
    // A refusal says it too, and one of a weights endpoint, whose body is two structs in one.
    let refused = server.post("/v1/completions", &json!({ "prompt": "a", "temprature": 1, "n": 0 }));
    refused.refused(400, Some("n"));
    assert!(refused.headers[HEADER].to_str().unwrap().starts_with("temprature"));
    let refused = server.post("/update_weights_from_disk", &json!({ "model_path": "x", "weight_verion": "1" }));
    assert_eq!(refused.headers[HEADER].to_str().unwrap(), "weight_verion (did you mean weight_version?)");
    let tensors =
        json!({ "lora_name": "x", "config_dict": {}, "serialized_named_tensors": "AA==", "expected_checksum": {} });
    let refused = server.post("/load_lora_adapter_from_tensors", &tensors);
    assert_eq!(refused.headers[HEADER].to_str().unwrap(), "expected_checksum (did you mean expected_checksums?)");
    // What is known, refused by name or not, is not said.
    let known = json!({ "prompt": "a", "max_tokens": 1, "suffix": null, "response_format": { "type": "text" }, "user": "me",
        "guided_json": null, "logit_bias": { "5": 1 }, "priority": 3, "cache_salt": "s", "add_special_tokens": true });
    let answer = server.post("/v1/completions", &known);
    answer.good();
    assert!(!answer.headers.contains_key(HEADER), "{:?}", answer.headers);
}

#[test]
fn the_log_says_an_unknown_field_once() {
    let mut child = Command::new(binary())
        .args(["serve", "--listen", "127.0.0.1:0", "--format", "json", "--threads", "1"])
        .env_remove("PATCHHOST_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    let ready: Value = serde_json::from_str(&ready).unwrap();
    let url = format!("{}/v1/completions", ready["listen"][0].as_str().unwrap());
    for _ in 0..3 {
        let body = json!({ "prompt": "a", "max_tokens": 1, "temprature": 1 });
        assert_eq!(ureq::post(&url).send_json(&body).unwrap().status(), 200);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(log.matches("temprature").count(), 1, "{log}");
    assert!(log.contains("/v1/completions") && log.contains("did you mean temperature?"), "{log}");
}

/// Every route that is posted to, as the server's own document has them.
fn posts(server: &Server) -> Vec<String> {
    let document = server.get("/openapi.json").good();
    let paths = document["paths"].as_object().unwrap();
    let posts: Vec<String> =
        paths.iter().filter(|(_, item)| item["post"].is_object()).map(|(path, _)| path.clone()).collect();
    assert!(posts.len() > 40, "{posts:?}");
    posts
}

#[test]
fn a_body_that_is_json_and_no_object_is_refused_at_every_route() {
    let server = Server::start(&[]);
    let running = json!({ "prompt": "KING HENRY.\n", "max_tokens": 4, "temperature": 0 });
    let before = server.post("/v1/completions", &running).good()["choices"][0]["text"].clone();
    for path in posts(&server) {
        let path = path.replace(['{', '}'], "");
        for body in ["[]", "[null, null]", "[\"abort\"]", " \n [1]", "null", "1", "-0.5", "\"x\"", "true", "false"] {
            let answer = server.post_raw(&path, "application/json", body.as_bytes());
            let object = server.post_raw(&path, "application/json", b"{}");
            if object.status >= 400 && object.text == answer.text {
                // Refused whatever is in the body, which is not read: who may not, and what nobody may.
                continue;
            }
            assert_eq!(answer.status, 400, "{path} {body}: {}", answer.text);
            let text = answer.text.replace("\\n", "\n");
            assert!(
                text.contains("not an object") && text.contains("  why: ") && text.contains("  next: "),
                "{path}: {text}"
            );
        }
    }
    // Nothing of that was done.
    assert_eq!(server.get("/is_paused").good()["is_paused"], false);
    assert_eq!(server.get("/is_sleeping").good()["is_sleeping"], false);
    assert_eq!(server.post("/v1/completions", &running).good()["choices"][0]["text"], before);
    // Where a body is optional, its content type is too, and a list is refused all the same.
    for path in ["/abort_requests", "/pause_generation", "/resume", "/flush_cache"] {
        for kind in ["application/x-www-form-urlencoded", "text/plain"] {
            assert_eq!(server.post_raw(path, kind, b"[]").status, 400, "{path} as {kind}");
        }
        assert_eq!(server.post_raw(path, "application/json", b"").status, 200, "{path} without a body");
        server.post(path, &json!({})).good();
    }
    server.post("/continue_generation", &json!({})).good();
    // An ordinary body that comes in pieces, white space first, is read as before.
    let spaced = format!("{}{running}", " ".repeat(100_000));
    server.post_raw("/v1/completions", "application/json", spaced.as_bytes()).good();
}

#[test]
fn special_tokens_are_added_where_the_request_says_so() {
    let tmp = tmp();
    let model = copy_folder(&repo().join("models/tiny-shakespeare-moe"), &tmp.path().join("m"));
    let path = model.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    tokenizer["post_processor"] = json!({ "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<|endoftext|>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { "<|endoftext|>": { "id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"] } } });
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    std::fs::write(model.join("chat_template.jinja"), "{{ bos_token }}{{ messages[0].content }}").unwrap();
    let server = Server::start(&[model.to_str().unwrap()]);
    let zeros = |ids: &Value| ids.as_array().unwrap().iter().filter(|id| **id == 0).count();
    let complete = |prompt: Value, special: Value| {
        let body =
            json!({ "prompt": prompt, "max_tokens": 1, "return_token_ids": true, "add_special_tokens": special });
        zeros(&server.post("/v1/completions", &body).good()["choices"][0]["prompt_token_ids"])
    };
    for (special, count) in [(json!(null), 1), (json!(true), 1), (json!(false), 0)] {
        assert_eq!(complete(json!("KING"), special.clone()), count, "{special}");
        assert_eq!(complete(json!(["KING", "QUEEN"]), special.clone()), count, "{special}");
        assert_eq!(complete(json!([5, 6]), special.clone()), 0, "tokens are taken as they are");
        assert_eq!(complete(json!("<|endoftext|>KING"), special), count + 1);
    }
    let chat = |special: Value| {
        let body = json!({ "messages": [{ "role": "user", "content": "KING" }], "max_tokens": 1, "return_token_ids": true,
            "add_special_tokens": special });
        zeros(&server.post("/v1/chat/completions", &body).good()["prompt_token_ids"])
    };
    assert_eq!([json!(null), json!(false), json!(true)].map(chat), [1, 1, 2]);
}

#[test]
fn a_salt_keeps_prefixes_apart() {
    let server = Server::start(&[]);
    let prompt: Vec<u32> = (0..200).map(|i| 300 + i % 50).collect();
    let cached = |salt: Value| {
        let body = json!({ "prompt": prompt, "max_tokens": 1, "temperature": 0, "cache_salt": salt });
        let answer = server.post("/v1/completions", &body).good();
        (
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(),
            answer["choices"][0]["text"].clone(),
        )
    };
    let (cold, text) = cached(json!(null));
    assert_eq!(cold, 0);
    assert_eq!(cached(json!(null)), (199, text.clone()));
    assert_eq!(cached(json!("a")), (0, text.clone()), "another salt finds nothing");
    assert_eq!(cached(json!("a")), (199, text.clone()));
    assert_eq!(cached(json!("b")), (0, text));
    let vllm = json!({ "token_ids": prompt, "cache_salt": "c", "sampling_params": { "max_tokens": 1 } });
    server.post("/inference/v1/generate", &vllm).good();
    let sglang = |key: &str| {
        let body = json!({ "input_ids": prompt, "extra_key": key, "sampling_params": { "max_new_tokens": 1 } });
        server.post("/generate", &body).good()["meta_info"]["cached_tokens"].clone()
    };
    assert_eq!((sglang("c"), sglang("d")), (json!(199), json!(0)));
    let empty = json!({ "prompt": "a", "cache_salt": "" });
    server.post("/v1/completions", &empty).refused(400, Some("cache_salt"));
    let long = json!({ "prompt": "a", "cache_salt": "x".repeat(2000) });
    server.post("/v1/completions", &long).refused(400, Some("cache_salt"));
}
