//! Ends of texts: each of the files that may name an end token ends texts at every door, whatever the others say.

use std::path::{Path, PathBuf};

use patchhost::train::rollout::{Ask, sample};
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::Engine;
use patchhost_runtime::engine::EngineOptions;
use patchhost_runtime::tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::server::{Server, joined};
use crate::oracle::hooks;
use crate::support::{copy_folder, patchhost, repo, tmp};

const PROMPT: &str = "KING HENRY.\n";
/// Tokens that are asked for.
const MOST: usize = 24;

/// A copy of the bundled model that names no end token at all, and whose conversations are their first text.
fn endless(folder: &Path) -> PathBuf {
    let model = copy_folder(&repo().join("models/tiny-shakespeare-moe"), folder);
    for (file, key) in [
        ("config.json", "eos_token_id"),
        ("generation_config.json", "eos_token_id"),
        ("tokenizer_config.json", "eos_token"),
    ] {
        edit(&model, file, |json| _ = json.as_object_mut().unwrap().shift_remove(key));
    }
    std::fs::write(model.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    model
}

fn edit(model: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = model.join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|_| "{}".to_string());
    let mut json = serde_json::from_str(&text).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

/// The tokens that each door of a server gives.
fn doors(server: &Server) -> Vec<(&'static str, Vec<u32>)> {
    let ids =
        |value: &Value| serde_json::from_value::<Vec<u32>>(value.clone()).unwrap_or_else(|e| panic!("{e}: {value}"));
    let complete = json!({ "prompt": PROMPT, "max_tokens": MOST, "temperature": 0, "return_token_ids": true });
    let completion = server.post("/v1/completions", &complete).good();
    let prompt = &completion["choices"][0]["prompt_token_ids"];
    let chat = json!({ "messages": [{ "role": "user", "content": PROMPT }], "max_tokens": MOST, "temperature": 0,
        "return_token_ids": true });
    let sglang = json!({ "max_new_tokens": MOST, "temperature": 0 });
    let vllm = json!({ "max_tokens": MOST, "temperature": 0 });
    let stream = |path: &str, body: &Value| ids(&joined(&server.stream(path, body.clone()), 0, "/token_ids"));
    vec![
        ("completions", ids(&completion["choices"][0]["token_ids"])),
        ("completions, streamed", stream("/v1/completions", &complete)),
        ("chat", ids(&server.post("/v1/chat/completions", &chat).good()["choices"][0]["token_ids"])),
        ("chat, streamed", stream("/v1/chat/completions", &chat)),
        (
            "SGLang",
            ids(&server.post("/generate", &json!({ "text": PROMPT, "sampling_params": sglang })).good()["output_ids"]),
        ),
        (
            "vLLM",
            ids(&server
                .post("/inference/v1/generate", &json!({ "token_ids": prompt, "sampling_params": vllm }))
                .good()["choices"][0]["token_ids"]),
        ),
        (
            "TRL",
            ids(&server
                .post("/generate/", &json!({ "prompts": [PROMPT], "max_tokens": MOST, "temperature": 0 }))
                .good()["completion_ids"][0]),
        ),
    ]
}

/// What the model says where nothing ends it, and the place of a token that comes only there.
fn endless_text(model: &Path) -> (Vec<u32>, usize) {
    let server = Server::start(&[model.to_str().unwrap()]);
    let all = doors(&server);
    let text = all[0].1.clone();
    assert_eq!(text.len(), MOST);
    assert!(all.iter().all(|(_, ids)| *ids == text), "{all:?}");
    let at = (4..MOST - 4).find(|i| !text[..*i].contains(&text[*i])).expect("a token that is new");
    (text, at)
}

#[test]
fn every_file_that_names_an_end_token_ends_texts_at_every_door() {
    let tmp = tmp();
    let plain = endless(&tmp.path().join("plain"));
    let (text, at) = endless_text(&plain);
    let (end, expected) = (text[at], &text[..=at]);
    let word = Tokenizer::open(&plain).unwrap().token(end).unwrap();
    // An id of another token, which comes behind the end, and one that does not exist.
    let list = json!([text[MOST - 1], end, 1 << 30, -1]);
    let cases: Vec<(&str, &str, Value)> = vec![
        ("tokenizer_config.json", "eos_token", json!(word)),
        ("tokenizer_config.json", "eos_token", json!({ "content": word, "lstrip": false, "special": true })),
        ("special_tokens_map.json", "eos_token", json!({ "content": word })),
        ("generation_config.json", "eos_token_id", json!(end)),
        ("generation_config.json", "eos_token_id", list.clone()),
        ("config.json", "eos_token_id", json!(end)),
        ("config.json", "text_config", json!({ "eos_token_id": list })),
    ];
    for (i, (file, key, value)) in cases.iter().enumerate() {
        let model = copy_folder(&plain, &tmp.path().join(format!("m{i}")));
        edit(&model, file, |json| json[*key] = value.clone());
        // Another source that names a token which never comes does not hide it.
        let other = if *file == "generation_config.json" { "config.json" } else { "generation_config.json" };
        edit(&model, other, |json| json["eos_token_id"] = json!(0));
        let server = Server::start(&[model.to_str().unwrap()]);
        for (door, ids) in doors(&server) {
            assert_eq!(ids, expected, "{door}, with {value} as {key} of {file}");
        }
        more(&server, &text, at);
        let ran = patchhost([
            "run",
            model.to_str().unwrap(),
            "--raw",
            "--prompt",
            PROMPT,
            "--temperature",
            "0",
            "--no-kl",
            "--max-tokens",
            "24",
            "--format",
            "json",
        ]);
        let ran = ran.good().json();
        let completion = &ran["completions"][0];
        // `run` does not give the end token out.
        assert_eq!(completion["token_ids"], json!(expected[..at]), "run, with {value} as {key} of {file}");
        assert_eq!(completion["finish_reason"], "stop");
        rollout(&model, &[end, 0]);
    }
}

/// What requests say about ends goes on working.
fn more(server: &Server, text: &[u32], at: usize) {
    let ids = |more: Value| {
        let mut body = json!({ "prompt": PROMPT, "max_tokens": MOST, "temperature": 0, "return_token_ids": true });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let choice = server.post("/v1/completions", &body).good()["choices"][0].clone();
        (serde_json::from_value::<Vec<u32>>(choice["token_ids"].clone()).unwrap(), choice)
    };
    assert_eq!(ids(json!({ "ignore_eos": true })).0, text);
    let (late, _) = ids(json!({ "min_tokens": at + 3 }));
    assert!(late.len() >= at + 3 && !late[..at + 3].contains(&text[at]), "{late:?}");
    let (early, choice) = ids(json!({ "stop_token_ids": [text[1]] }));
    assert_eq!((early.as_slice(), &choice["stop_reason"]), (&text[..2], &json!(text[1])));
    let sglang =
        json!({ "text": PROMPT, "sampling_params": { "max_new_tokens": MOST, "temperature": 0, "ignore_eos": true } });
    assert_eq!(server.post("/generate", &sglang).good()["output_ids"], json!(text));
}

/// Rollouts of `train`: each ends at its first end token, and nowhere else.
fn rollout(model: &Path, ends: &[u32]) {
    let engine = Engine::open(model, EngineOptions::default()).unwrap();
    engine.refit(&Checkpoint::open(model).unwrap(), &hooks(&["moe_loader"]), &|_, _, _| {}).unwrap();
    let tokenizer = Tokenizer::open(model).unwrap();
    let prompt = tokenizer.encode(PROMPT).unwrap();
    let asks: Vec<Ask<'_>> = (0..16).map(|seed| Ask { prompt: &prompt, seed }).collect();
    let made = sample(engine.model(), &engine.live().unwrap(), &tokenizer, &asks, 64).unwrap();
    let mut ended = 0;
    for sample in made {
        let is_end = |id: &u32| tokenizer.eos().contains(id);
        let (last, before) = sample.response.split_last().unwrap();
        assert!(!before.iter().any(is_end), "{sample:?}");
        ended += usize::from(ends.contains(last));
        assert!(is_end(last) || sample.response.len() == 64);
    }
    assert!(ended > 0, "no rollout of 16 ended");
}

#[test]
fn an_end_token_that_is_none_is_refused_by_file() {
    let tmp = tmp();
    let plain = endless(&tmp.path().join("plain"));
    for (i, (file, value)) in [
        ("generation_config.json", json!("<|endoftext|>")),
        ("generation_config.json", json!([0, 1.5])),
        ("config.json", json!({ "id": 0 })),
    ]
    .into_iter()
    .enumerate()
    {
        let model = copy_folder(&plain, &tmp.path().join(format!("m{i}")));
        edit(&model, file, |json| json["eos_token_id"] = value);
        for verb in ["run", "serve"] {
            let ran = patchhost([verb, model.to_str().unwrap(), "--threads", "1"]);
            let text = ran.refused(2, tmp.path());
            assert!(text.contains(&format!("`eos_token_id` of {file}")), "{verb}: {text}");
        }
    }
}
