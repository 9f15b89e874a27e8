//! Tools and templates of requests, from outside.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::server::{Server, joined};
use crate::support::{copy_folder, repo, tmp};

/// A template that writes all that an agent's turns have.
const TEMPLATE: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for d in documents or [] %}[{{ d.text }}]{% endfor %}\
    {% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.name }}{{ m.reasoning_content }}{{ m.tool_call_id }}{{ m.mood }}\
    {% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}{{ c.function.arguments.city }}</tool_call>{% endfor %}\
    {% endfor %}{% if add_generation_prompt %}<go>{% endif %}";

fn model(folder: &Path, template: &str) -> PathBuf {
    let model = copy_folder(&repo().join("models/tiny-shakespeare-moe"), &folder.join("m"));
    std::fs::write(model.join("chat_template.jinja"), template).unwrap();
    model
}

fn tools() -> Value {
    json!([{ "type": "function", "function": { "name": "weather", "parameters": { "type": "object" } } }])
}

fn written(server: &Server, body: &Value) -> String {
    let tokens = server.post("/tokenize", body).good()["tokens"].clone();
    server.post("/detokenize", &json!({ "tokens": tokens })).good()["prompt"].as_str().unwrap().to_owned()
}

#[test]
fn all_that_an_agent_says_reaches_the_template() {
    let tmp = tmp();
    let server = Server::start(&[model(tmp.path(), TEMPLATE).to_str().unwrap()]);
    let call = json!({ "id": "c1", "type": "function", "function": { "name": "weather", "arguments": "{\"city\": \"Paris\"}" } });
    let messages = json!([
        { "role": "developer", "content": "Be brief." },
        { "role": "user", "content": "Weather?", "name": "bob", "mood": "grim" },
        { "role": "assistant", "content": null, "reasoning": "hm", "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "c1", "content": [{ "type": "text", "text": "18" }, { "type": "text", "text": "C" }] },
    ]);
    let turns = "<system>Be brief.<user>Weather?bobgrim<assistant>hm<tool_call>weatherParis</tool_call><tool>18\nCc1";
    assert_eq!(written(&server, &json!({ "messages": messages })), format!("{turns}<go>"));
    let body = json!({ "messages": messages, "tools": tools(), "documents": [{ "text": "doc" }], "add_generation_prompt": false });
    let schema = r#"[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]"#;
    assert_eq!(written(&server, &body), format!("{schema}[doc]{turns}"));
    let open = json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "To be " }],
        "continue_final_message": true });
    assert_eq!(written(&server, &open), "<user>a<assistant>To be ");
    // Fields that the template does not know are said.
    let body = json!({ "messages": [{ "role": "user", "content": "a", "mod": 1 }], "max_tokens": 1 });
    let answer = server.post("/v1/chat/completions", &body);
    assert_eq!(answer.headers["x-patchhost-ignored-fields"], "messages[].mod");
}

#[test]
fn a_request_is_rendered_without_an_answer() {
    let tmp = tmp();
    let server =
        Server::start(&[model(tmp.path(), TEMPLATE).to_str().unwrap(), "--exclude-tools-when-tool-choice-none"]);
    let body = json!({ "messages": [{ "role": "user", "content": "Who?" }], "tools": tools(), "tool_choice": "none", "max_tokens": 5,
        "temperature": 0, "seed": 7, "stop": ["x"], "cache_salt": "s" });
    let rendered = server.post("/v1/chat/completions/render", &body).good();
    let text = server.post("/detokenize", &json!({ "tokens": rendered["token_ids"] })).good();
    assert_eq!(text["prompt"], "<user>Who?<go>", "tools are left out where the answer may not call them");
    let params = json!({ "n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 5, "seed": 7, "stop": ["x"] });
    assert_eq!((&rendered["sampling_params"], &rendered["stream"]), (&params, &json!(false)));
    assert!(rendered["request_id"].as_str().unwrap().starts_with("chatcmpl-") && rendered["features"].is_null());
    // What was rendered is generated from as it is.
    let chat = server
        .post(
            "/v1/chat/completions",
            &json!({ "return_token_ids": true, "messages": body["messages"], "max_tokens": 5,
        "temperature": 0, "seed": 7, "stop": ["x"] }),
        )
        .good();
    let generated = server.post("/inference/v1/generate", &rendered).good();
    assert_eq!(generated["choices"][0]["token_ids"], chat["choices"][0]["token_ids"]);
    let several = server.post("/v1/completions/render", &json!({ "prompt": ["a", "b"], "max_tokens": 3 })).good();
    assert_eq!((several.as_array().unwrap().len(), &several[1]["sampling_params"]["max_tokens"]), (2, &json!(3)));
    server.post("/v1/chat/completions/render", &json!({ "messages": [] })).refused(400, Some("messages"));
}

#[test]
fn templates_of_requests_are_taken_where_they_are_trusted() {
    let body =
        json!({ "messages": [{ "role": "user", "content": "a" }], "chat_template": "{{ messages[0].content * 3 }}" });
    let careful = Server::start(&[]);
    let why = careful.post("/tokenize", &body).refused(400, Some("chat_template"));
    assert!(why.contains("--trust-request-chat-template"), "{why}");
    drop(careful);
    assert_eq!(written(&Server::start(&["--trust-request-chat-template"]), &body), "aaa");
}

/// The bundled model with another vocabulary: it says `pieces`, one for each token.
fn parrot(folder: &Path, pieces: &[&str]) -> (PathBuf, Value) {
    let model = model(folder, "K");
    let path = model.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    tokenizer["model"]["merges"] = json!([]);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    // No token comes twice, so each can have a text of its own.
    let mut body = json!({ "messages": [{ "role": "user", "content": "a" }], "max_tokens": pieces.len() + 1, "temperature": 0,
        "repetition_penalty": 100, "ignore_eos": true, "logit_bias": { "0": -100 }, "return_token_ids": true });
    let server = Server::start(&[model.to_str().unwrap()]);
    let answer = server.post("/v1/chat/completions", &body).good();
    let ids: Vec<u64> =
        answer["choices"][0]["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    // As the byte-level alphabet writes it.
    let text = |piece: &str| piece.replace(' ', "Ġ").replace('\n', "Ċ");
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    for (id, piece) in ids.iter().zip(pieces) {
        let old = vocabulary.iter().find(|(_, v)| v.as_u64() == Some(*id)).map(|(name, _)| name.clone()).unwrap();
        vocabulary.remove(&old);
        assert!(vocabulary.insert(text(piece), json!(id)).is_none(), "{piece}");
    }
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    body["stop_token_ids"] = json!([ids[pieces.len()]]);
    (model, body)
}

#[test]
fn a_model_that_calls_tools_is_heard() {
    let tmp = tmp();
    let pieces = [
        "I look",
        ".\n<tool_c",
        "all>\n{\"na",
        "me\": \"weather\", \"arg",
        "uments\": {\"city\"",
        ": \"Par",
        "is\"}}\n</tool",
        "_call>",
    ];
    let (model, mut body) = parrot(tmp.path(), &pieces);
    body["tools"] = tools();
    let model = model.to_str().unwrap();
    let server = Server::start(&[model]);
    let why = server.post("/v1/chat/completions", &body).refused(400, Some("tool_choice"));
    assert!(why.contains("--tool-call-parser (hermes, deepseek_v3, deepseek_v31)"), "{why}");
    body["tool_choice"] = json!("none");
    let plain = server.post("/v1/chat/completions", &body).good()["choices"][0].clone();
    assert_eq!(plain["message"]["content"], pieces.concat());
    assert_eq!((&plain["finish_reason"], plain["message"].get("tool_calls")), (&json!("stop"), None));
    drop(server);

    let server = Server::start(&[model, "--tool-call-parser", "hermes", "--enable-auto-tool-choice"]);
    body["tool_choice"] = json!("auto");
    let choice = server.post("/v1/chat/completions", &body).good()["choices"][0].clone();
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &json!("I look.")));
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"], json!({ "name": "weather", "arguments": "{\"city\": \"Paris\"}" }));
    assert!(call["id"].as_str().unwrap().starts_with("chatcmpl-tool-") && call["type"] == "function");

    let chunks = server.stream("/v1/chat/completions", body.clone());
    assert_eq!(joined(&chunks, 0, "/delta/content"), "I look.");
    let deltas: Vec<&Value> =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["tool_calls"].as_array()).flatten().collect();
    assert_eq!((&deltas[0]["function"]["name"], deltas[0]["index"].as_u64()), (&json!("weather"), Some(0)));
    let arguments: String = deltas.iter().filter_map(|d| d["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, "{\"city\": \"Paris\"}");
    assert!(deltas.len() > 2 && deltas[1..].iter().all(|d| d.get("id").is_none()), "{deltas:?}");
    assert_eq!(chunks.iter().rev().find_map(|c| c["choices"][0]["finish_reason"].as_str()), Some("tool_calls"));
}
