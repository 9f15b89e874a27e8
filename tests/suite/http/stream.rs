//! Streams say the same as whole answers.

use serde_json::{Value, json};

use super::server::{Server, joined};

const BODY: &str = r#"{"prompt": "KING HENRY.\n", "max_tokens": 20, "temperature": 1, "seed": 3, "n": 2, "echo": true,
    "logprobs": 2, "return_token_ids": true, "stop": "\n\n"}"#;

#[test]
fn a_stream_is_the_whole_answer_in_pieces() {
    let server = Server::start(&["--component", "fp8_block"]);
    let body: Value = serde_json::from_str(BODY).unwrap();
    let whole = server.post("/v1/completions", &body).good();
    let mut streamed = body.clone();
    streamed["stream_options"] = json!({ "include_usage": true });
    let chunks = server.stream("/v1/completions", streamed);
    for (i, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        for field in [
            "text",
            "logprobs/tokens",
            "logprobs/token_logprobs",
            "logprobs/top_logprobs",
            "logprobs/text_offset",
            "token_ids",
            "prompt_token_ids",
            "finish_reason",
            "stop_reason",
            "weight_versions",
        ] {
            let pointer = format!("/{field}");
            assert_eq!(&joined(&chunks, i, &pointer), choice.pointer(&pointer).unwrap(), "{field} of {i}");
        }
    }
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &whole["usage"]["total_tokens"]));
    assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert!(others.len() > 10 && others.iter().all(|c| c["usage"].is_null() && c["id"] == last["id"]));
    assert!(others.iter().all(|c| c["patch_set"] == server.ready["patch_set"]), "{others:?}");

    // Without extras: text only, and no chunk without any.
    let plain =
        server.stream("/v1/completions", json!({ "prompt": "KING HENRY.\n", "max_tokens": 20, "temperature": 0 }));
    let all = server.post("/v1/completions", &json!({ "prompt": "KING HENRY.\n", "max_tokens": 20, "temperature": 0 }));
    assert_eq!(joined(&plain, 0, "/text"), all.good()["choices"][0]["text"]);
    let (done, pieces) = plain.split_last().unwrap();
    assert_eq!(done["choices"][0]["finish_reason"], "length");
    assert!(pieces.iter().all(|c| c["choices"][0]["text"] != "" && c["choices"][0]["finish_reason"].is_null()));

    let chat = json!({ "messages": [{ "role": "user", "content": "Who goes there?" }], "max_tokens": 20, "temperature": 0,
        "logprobs": true, "top_logprobs": 2, "return_token_ids": true });
    let whole = server.post("/v1/chat/completions", &chat).good();
    let mut streamed = chat.clone();
    streamed["stream_options"] = json!({ "include_usage": true, "continuous_usage_stats": true });
    let chunks = server.stream("/v1/chat/completions", streamed);
    let choice = &whole["choices"][0];
    assert_eq!(joined(&chunks, 0, "/delta/content"), choice["message"]["content"]);
    assert_eq!(joined(&chunks, 0, "/delta/role"), "assistant");
    for field in ["logprobs/content", "token_ids", "finish_reason", "weight_versions"] {
        let pointer = format!("/{field}");
        assert_eq!(&joined(&chunks, 0, &pointer), choice.pointer(&pointer).unwrap(), "{field}");
    }
    assert_eq!(chunks[0]["prompt_token_ids"], whole["prompt_token_ids"]);
    assert!(chunks.iter().all(|c| c["usage"]["total_tokens"].is_u64() && c["object"] == "chat.completion.chunk"));
    assert_eq!(chunks.last().unwrap()["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
}
