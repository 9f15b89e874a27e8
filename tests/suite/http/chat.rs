//! Chat completions.

use serde_json::json;

use super::server::Server;
use crate::support::tmp;

#[test]
fn a_conversation_goes_through_the_template() {
    let tmp = tmp();
    let template = tmp.path().join("chat.jinja");
    let text = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}{{ mood }}";
    std::fs::write(&template, text).unwrap();
    let server = Server::start(&["--chat-template", template.to_str().unwrap()]);
    let messages = json!([
        { "role": "developer", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "Who" }, { "type": "text", "text": "goes?" }] },
        { "role": "assistant", "content": null },
        { "role": "user", "content": "Well?", "name": "HAMLET" },
    ]);
    let written = |extra: serde_json::Value| {
        let mut body = json!({ "messages": messages });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let tokens = server.post("/tokenize", &body).good()["tokens"].clone();
        server.post("/detokenize", &json!({ "tokens": tokens })).good()["prompt"].as_str().unwrap().to_string()
    };
    assert_eq!(written(json!({})), "<system>Be brief.<user>Who\ngoes?<assistant><user>Well?<go>");
    let bare = json!({ "add_generation_prompt": false, "chat_template_kwargs": { "mood": "grim", "messages": [] } });
    assert_eq!(written(bare), "<system>Be brief.<user>Who\ngoes?<assistant><user>Well?grim");

    let body = json!({ "messages": messages, "max_completion_tokens": 9, "max_tokens": 3, "temperature": 0, "n": 2,
        "logprobs": true, "top_logprobs": 3, "return_token_ids": true });
    let answer = server.post("/v1/chat/completions", &body).good();
    assert_eq!((answer["object"].as_str(), answer["choices"].as_array().unwrap().len()), (Some("chat.completion"), 2));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    // The same as the rendered prompt by completions.
    let raw = json!({ "prompt": answer["prompt_token_ids"], "max_tokens": 9, "temperature": 0, "logprobs": 3 });
    let raw = server.post("/v1/completions", &raw).good()["choices"][0].clone();
    assert_eq!(choice["message"]["content"], raw["text"]);
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 9);
    for (i, entry) in content.iter().enumerate() {
        let bytes: Vec<u8> = entry["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), entry["token"].as_str().unwrap());
        assert_eq!(entry["logprob"], raw["logprobs"]["token_logprobs"][i]);
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(entry["top_logprobs"][0]["token"], entry["token"], "greedy");
    }
    // Everything else of the context where nobody says how much.
    let long = json!({ "messages": messages, "temperature": 0, "ignore_eos": true });
    let usage = server.post("/v1/chat/completions", &long).good()["usage"].clone();
    assert_eq!(usage["total_tokens"], 512);
    assert_eq!(answer["usage"]["completion_tokens"], 18);

    // Where the template itself says no.
    std::fs::write(&template, "{{ raise_exception('no conversation please') }}").unwrap();
    drop(server);
    let server = Server::start(&["--chat-template", template.to_str().unwrap()]);
    let refused = server.post("/v1/chat/completions", &json!({ "messages": messages })).refused(400, None);
    assert!(refused.contains("no conversation please"), "{refused}");
}
