//! Wrong requests: refused with a status, a field and three parts, and the server goes on.

use serde_json::{Value, json};

use super::server::Server;
use crate::support::patchhost;

#[test]
fn wrong_requests_are_refused_by_name() {
    let server = Server::start(&["--max-body", "1"]);
    let complete = |more: Value| {
        let mut body = json!({ "prompt": "a", "max_tokens": 1 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/completions", &body)
    };
    let long = vec![5; 512];
    let wrong: Vec<(Value, Option<&str>)> = vec![
        (json!({ "prompt": null }), Some("prompt")),
        (json!({ "prompt": 7 }), Some("prompt")),
        (json!({ "prompt": [] }), Some("prompt")),
        (json!({ "prompt": "" }), Some("prompt")),
        (json!({ "prompt": [[1], []] }), Some("prompt")),
        (json!({ "prompt": [1, "a"] }), Some("prompt")),
        (json!({ "prompt": [-1] }), Some("prompt")),
        (json!({ "prompt": [2048] }), Some("prompt")),
        (json!({ "prompt": long }), Some("prompt")),
        (json!({ "prompt": "word ".repeat(600) }), Some("prompt")),
        (json!({ "prompt": "x".repeat(600_000) }), Some("prompt")),
        (json!({ "max_tokens": -1 }), Some("max_tokens")),
        (json!({ "max_tokens": 512 }), Some("max_tokens")),
        (json!({ "max_tokens": 1.5 }), Some("max_tokens")),
        (json!({ "max_tokens": "1" }), Some("max_tokens")),
        (json!({ "temperature": -0.1 }), Some("temperature")),
        (json!({ "temperature": 1e300 }), Some("temperature")),
        (json!({ "temperature": "hot" }), Some("temperature")),
        (json!({ "top_p": 0 }), Some("top_p")),
        (json!({ "top_p": 1.1 }), Some("top_p")),
        (json!({ "min_p": -1 }), Some("min_p")),
        (json!({ "top_k": -2 }), Some("top_k")),
        (json!({ "n": 0 }), Some("n")),
        (json!({ "n": 129 }), Some("n")),
        (json!({ "n": 100, "prompt": vec!["a"; 11] }), Some("n")),
        (json!({ "presence_penalty": 2.1 }), Some("presence_penalty")),
        (json!({ "frequency_penalty": -1e39 }), Some("frequency_penalty")),
        (json!({ "repetition_penalty": 0 }), Some("repetition_penalty")),
        (json!({ "seed": "x" }), Some("seed")),
        (json!({ "seed": 1e30 }), Some("seed")),
        (json!({ "stop": 5 }), Some("stop")),
        (json!({ "stop": "" }), Some("stop")),
        (json!({ "stop": vec!["x"; 65] }), Some("stop")),
        (json!({ "stop_token_ids": [2048] }), Some("stop_token_ids")),
        (json!({ "logprobs": 21 }), Some("logprobs")),
        (json!({ "logprobs": true }), Some("logprobs")),
        (json!({ "prompt_logprobs": 21 }), Some("prompt_logprobs")),
        (json!({ "logit_bias": { "x": 1 } }), Some("logit_bias")),
        (json!({ "logit_bias": { "5": 101 } }), Some("logit_bias")),
        (json!({ "logit_bias": { "2048": 1 } }), Some("logit_bias")),
        (json!({ "logit_bias": [1] }), Some("logit_bias")),
        (json!({ "allowed_token_ids": [] }), Some("allowed_token_ids")),
        (json!({ "allowed_token_ids": vec![1; 5000] }), Some("allowed_token_ids")),
        (json!({ "min_tokens": 2 }), Some("min_tokens")),
        (json!({ "stream_options": {} }), Some("stream_options")),
        (json!({ "request_id": "" }), Some("request_id")),
        (json!({ "request_id": "a b" }), Some("request_id")),
        (json!({ "request_id": "x".repeat(200) }), Some("request_id")),
        (json!({ "best_of": 3 }), Some("best_of")),
        (json!({ "use_beam_search": true }), Some("use_beam_search")),
        (json!({ "suffix": "end" }), Some("suffix")),
        (json!({ "prompt_embeds": "AA==" }), Some("prompt_embeds")),
        (json!({ "response_format": { "type": "json_schema", "json_schema": {} } }), Some("response_format")),
        (json!({ "structured_outputs": { "structural_tag": {} } }), Some("structured_outputs.structural_tag")),
        (json!({ "guided_json": [] }), Some("guided_json")),
        (json!({ "logits_processors": ["os.system"] }), Some("logits_processors")),
    ];
    for (more, param) in wrong {
        let answer = complete(more.clone());
        let shown: String = more.to_string().chars().take(80).collect();
        println!("{shown}");
        answer.refused(400, param);
    }
    complete(json!({ "model": "gpt-4\u{1b}[31m" })).refused(404, Some("model"));
    // What asks for nothing is no error, nor is what nobody knows.
    complete(
        json!({ "best_of": 1, "response_format": { "type": "text" }, "suffix": null, "guided_json": null, "user": "me",
        "logit_bias": {}, "stop": [], "new_field": { "x": 1 }, "priority": 3, "stream": false, "seed": null }),
    )
    .good();

    let chat = |more: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "a" }], "max_tokens": 1 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/chat/completions", &body)
    };
    let image = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "x" } }] }]);
    let call = json!([{ "role": "assistant", "tool_calls": [{ "id": "x" }] }]);
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    for (more, param) in [
        (json!({ "messages": [] }), Some("messages")),
        (json!({ "messages": "hi" }), Some("messages")),
        (json!({ "messages": [{ "content": "a" }] }), Some("messages[0]")),
        (json!({ "messages": [{ "role": 7, "content": "a" }] }), Some("messages[0].role")),
        (json!({ "messages": [{ "role": "", "content": "a" }] }), Some("messages[0].role")),
        (json!({ "messages": [{ "role": "tool" }] }), Some("messages[0].content")),
        (json!({ "messages": [{ "role": "user" }] }), Some("messages[0].content")),
        (json!({ "messages": [{ "role": "user", "content": [{ "type": "text" }] }] }), Some("messages[0].content[0]")),
        (json!({ "messages": image }), Some("messages[0].content[0]")),
        (json!({ "messages": call }), Some("messages[0].tool_calls[0].function")),
        (json!({ "tools": [{ "type": "function" }] }), Some("tools[0].function")),
        (json!({ "tool_choice": "required" }), Some("tool_choice")),
        (json!({ "tools": tools, "tool_choice": "sometimes" }), Some("tool_choice")),
        // The template of the bundled model teaches no form of calls.
        (json!({ "tools": tools }), Some("tool_choice")),
        (json!({ "functions": [{ "name": "f" }] }), Some("functions")),
        (json!({ "function_call": { "name": "f" } }), Some("function_call")),
        (json!({ "continue_final_message": true, "add_generation_prompt": true }), Some("continue_final_message")),
        (json!({ "modalities": ["text", "audio"] }), Some("modalities")),
        (json!({ "audio": {} }), Some("audio")),
        (json!({ "chat_template": "{{ x }}" }), Some("chat_template")),
        (json!({ "top_logprobs": 2 }), Some("top_logprobs")),
        (json!({ "logprobs": true, "top_logprobs": 21 }), Some("top_logprobs")),
        (json!({ "max_completion_tokens": -1 }), Some("max_completion_tokens")),
    ] {
        println!("{more}");
        chat(more).refused(400, param);
    }
    chat(json!({ "tools": [], "tool_choice": "none", "modalities": ["text"], "functions": null })).good();

    bodies(&server);
    tokens(&server);
    // Nothing of all that has hurt it, or is left behind.
    complete(json!({})).good();
    let status = server.status();
    assert_eq!((&status["load"]["running"], &status["load"]["waiting"]), (&json!(0), &json!(0)));
}

fn bodies(server: &Server) {
    let raw = |body: &[u8]| server.post_raw("/v1/completions", "application/json", body);
    let cut = b"{\"prompt\": \"a\", \"max_tokens\":";
    let deep = format!("{{\"prompt\": \"a\", \"stop\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [
        &b""[..],
        b"{",
        cut,
        b"{\"prompt\": \"a\", \"temperature\": NaN}",
        b"{\"prompt\": \"a\"} x",
        b"\xff\xfe",
        deep.as_bytes(),
    ] {
        assert!(raw(body).refused(400, None).contains("not JSON"));
    }
    raw(b"[]").refused(400, None);
    raw(b"{}").refused(400, Some("prompt"));
    raw(b"{\"prompt\": \"a\", \"prompt\": \"b\"}").refused(400, None);
    let large = format!("{{\"prompt\": \"{}\"}}", "a".repeat(2 << 20));
    let refused = raw(large.as_bytes()).refused(413, None);
    assert!(refused.contains("--max-body"), "{refused}");
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"] {
        let refused = server.post_raw("/v1/completions", kind, b"{\"prompt\": \"a\"}").refused(415, None);
        assert!(refused.contains("Content-Type"), "{refused}");
    }
    let utf8 = server.post_raw(
        "/v1/completions",
        "application/json; charset=utf-8",
        b"{\"prompt\": \"a\", \"max_tokens\": 1}",
    );
    utf8.good();
    assert!(server.get("/v2/nothing").refused(404, None).contains("/v2/nothing"));
    let method = server.get("/v1/completions");
    method.refused(405, None);
    assert_eq!(method.headers["allow"].to_str().unwrap(), "POST");
    server.get("/v1/models/%ff").refused(400, Some("model"));
}

fn tokens(server: &Server) {
    server.post("/tokenize", &json!({})).refused(400, Some("prompt"));
    let both = json!({ "prompt": "a", "messages": [{ "role": "user", "content": "a" }] });
    server.post("/tokenize", &both).refused(400, Some("prompt"));
    server.post("/tokenize", &json!({ "prompt": "a", "model": "x" })).refused(404, Some("model"));
    server.post("/detokenize", &json!({ "tokens": [99999] })).refused(400, Some("tokens"));
    server.post("/detokenize", &json!({})).refused(400, Some("tokens"));
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_loaded() {
    let tmp = crate::support::tmp();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let text = patchhost(["serve", "--listen", &taken]).refused(2, tmp.path());
    assert!(text.contains(&format!("--listen {taken}")), "{text}");
    let file = tmp.path().join("file");
    std::fs::write(&file, "").unwrap();
    let admin = format!("unix:{}", file.display());
    let text = patchhost(["serve", "--listen", "127.0.0.1:0", "--admin", &admin]).refused(2, tmp.path());
    assert!(text.contains("not a socket"), "{text}");
    let text = patchhost(["serve", "--chat-template", "/nowhere.jinja"]).refused(2, tmp.path());
    assert!(text.contains("/nowhere.jinja"), "{text}");
    for args in
        [["--listen", "8000"], ["--request-timeout", "soon"], ["--max-num-seqs", "0"], ["--admin", "127.0.0.1:1"]]
    {
        assert_eq!(patchhost(["serve"].iter().chain(&args)).code, 2, "{args:?}");
    }
}
