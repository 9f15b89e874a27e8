//! Answers by a schema, an expression, a list of choices or a grammar.

use serde_json::{Value, json};

use super::server::{Server, joined};

const PROMPT: &str = "KING HENRY.\n";

fn body(more: Value) -> Value {
    let mut body = json!({ "prompt": PROMPT, "max_tokens": 90, "temperature": 1.0, "seed": 1 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string" },
            "age": { "type": "integer", "minimum": 0 },
            "role": { "enum": ["king", "fool"] },
            "tags": { "type": "array", "items": { "type": "string" }, "minItems": 1 }
        },
        "required": ["name", "age", "role", "tags"],
        "additionalProperties": false
    })
}

fn is_person(text: &str) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return false };
    let tags = value["tags"].as_array().is_some_and(|tags| !tags.is_empty() && tags.iter().all(Value::is_string));
    let role = value["role"] == "king" || value["role"] == "fool";
    tags && role
        && value["age"].is_u64()
        && value["name"].is_string()
        && value.as_object().is_some_and(|o| o.len() == 4)
}

#[test]
fn answers_have_the_structure_that_was_asked_for() {
    let server = Server::start(&[]);
    whole_and_streamed(&server);
    every_way_of_asking(&server);
    calls(&server);
    refusals(&server);
    probabilities(&server);
    server.get("/health");
}

fn whole_and_streamed(server: &Server) {
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "person", "strict": true, "schema": person() } });
    for seed in 0..8 {
        let asked = body(json!({ "seed": seed, "n": 2, "response_format": format }));
        let answer = server.post("/v1/completions", &asked).good();
        for choice in answer["choices"].as_array().unwrap() {
            let text = choice["text"].as_str().unwrap();
            assert!(is_person(text), "{text}");
            assert_eq!(choice["finish_reason"], "stop", "{text}");
        }
        let chunks = server.stream("/v1/completions", asked);
        for choice in 0..2 {
            assert_eq!(joined(&chunks, choice, "/text"), answer["choices"][choice]["text"]);
        }
    }
    let chat = json!({ "messages": [{ "role": "user", "content": "Who?" }], "response_format": { "type": "json_object" },
        "max_tokens": 40, "seed": 3 });
    let answer = server.post("/v1/chat/completions", &chat).good();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(text).unwrap().is_object(), "{text}");
}

fn every_way_of_asking(server: &Server) {
    let text = |path: &str, more: Value, at: &str| {
        let answer = server.post(path, &more).good();
        answer.pointer(at).and_then(Value::as_str).unwrap_or_else(|| panic!("{answer}")).to_string()
    };
    let complete = |more: Value| text("/v1/completions", body(more), "/choices/0/text");
    let choices = json!(["yea", "nay, (good) sir"]);
    for more in [json!({ "structured_outputs": { "choice": choices } }), json!({ "guided_choice": choices })] {
        let text = complete(more);
        assert!(choices.as_array().unwrap().contains(&json!(text)), "{text}");
    }
    for more in [json!({ "structured_outputs": { "regex": "[ab]{3}" } }), json!({ "guided_regex": "^[ab]{3}$" })] {
        let text = complete(more);
        assert!(text.len() == 3 && text.bytes().all(|b| b == b'a' || b == b'b'), "{text}");
    }
    let grammar = "root ::= \"x\" digit+ \"y\"\ndigit ::= [0-9]";
    for more in [json!({ "structured_outputs": { "grammar": grammar } }), json!({ "guided_grammar": grammar })] {
        let text = complete(more);
        let digits = text.strip_prefix('x').and_then(|rest| rest.strip_suffix('y'));
        assert!(digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit())), "{text}");
    }
    assert!(is_person(&complete(json!({ "guided_json": person().to_string() }))));
    let compact = complete(json!({ "structured_outputs": { "json": person(), "disable_any_whitespace": true } }));
    assert!(is_person(&compact) && compact.starts_with("{\"name\": "), "{compact}");
    // By the names of SGLang, of vLLM's tokens in and tokens out, and of TRL.
    let sampling = json!({ "json_schema": person().to_string(), "max_new_tokens": 90 });
    assert!(is_person(&text("/generate", json!({ "text": PROMPT, "sampling_params": sampling }), "/text")));
    let ids = json!({ "token_ids": [5, 6], "sampling_params": { "structured_outputs": { "choice": ["a"] }, "max_tokens": 5 } });
    let answer = server.post("/inference/v1/generate", &ids).good();
    let tokens = json!({ "tokens": answer["choices"][0]["token_ids"] });
    assert_eq!(server.post("/detokenize", &tokens).good()["prompt"], "a");
    let trl = json!({ "prompts": [PROMPT], "structured_outputs_regex": "[ab]", "max_tokens": 5 });
    let answer = server.post("/generate/", &trl).good();
    assert_eq!(answer["completion_ids"][0].as_array().unwrap().len(), 1, "{answer}");
}

/// A choice that binds the model gives calls by the functions' schemas, from a model that knows nothing of tools; streamed the same.
fn calls(server: &Server) {
    let tool = |name: &str, parameters: Value| json!({ "type": "function", "function": { "name": name, "parameters": parameters } });
    let point = json!({ "type": "object", "properties": { "at": { "$ref": "#/$defs/at" } }, "required": ["at"],
        "additionalProperties": false, "$defs": { "at": { "enum": ["here", "there"] } } });
    let tools = json!([tool("person", person()), tool("point", point)]);
    let named = json!({ "type": "function", "function": { "name": "point" } });
    for (choice, parallel, reason) in
        [(json!("required"), true, "tool_calls"), (json!("required"), false, "tool_calls"), (named, true, "stop")]
    {
        for seed in 0..4 {
            let body = json!({ "messages": [{ "role": "user", "content": "Who?" }], "tools": tools, "tool_choice": choice,
                "parallel_tool_calls": parallel, "max_tokens": 150, "seed": seed });
            let answer = server.post("/v1/chat/completions", &body).good();
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], reason, "{choice}");
            let calls = choice["message"]["tool_calls"].as_array().unwrap();
            assert!(!calls.is_empty() && (parallel || calls.len() == 1), "{choice}");
            for call in calls {
                let text = call["function"]["arguments"].as_str().unwrap();
                let arguments: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
                match call["function"]["name"].as_str().unwrap() {
                    "person" if reason == "tool_calls" => assert!(is_person(text), "{text}"),
                    "point" => assert!(arguments["at"] == "here" || arguments["at"] == "there", "{text}"),
                    other => panic!("{other}"),
                }
            }
            let mut streamed = String::new();
            for chunk in server.stream("/v1/chat/completions", body) {
                let deltas = chunk["choices"][0]["delta"]["tool_calls"].as_array().cloned().unwrap_or_default();
                let first = deltas.iter().filter(|delta| delta["index"] == 0);
                first.for_each(|delta| streamed.push_str(delta["function"]["arguments"].as_str().unwrap_or_default()));
            }
            assert_eq!(calls[0]["function"]["arguments"], streamed);
        }
    }
}

fn refusals(server: &Server) {
    let schema = |schema: Value| json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    for (more, param) in [
        (json!({ "response_format": schema(json!({ "type": "objekt" })) }), "response_format.json_schema.schema"),
        (json!({ "response_format": { "type": "yaml" } }), "response_format"),
        (json!({ "response_format": {} }), "response_format"),
        (json!({ "structured_outputs": { "regex": "[a-" } }), "structured_outputs.regex"),
        (json!({ "structured_outputs": { "regex": "(?=a)b" } }), "structured_outputs.regex"),
        (json!({ "structured_outputs": { "grammar": "root ::= nowhere" } }), "structured_outputs.grammar"),
        (json!({ "structured_outputs": { "choice": [] } }), "structured_outputs.choice"),
        (json!({ "structured_outputs": {} }), "structured_outputs"),
        (json!({ "structured_outputs": { "regex": "a" }, "guided_json": {} }), "structured_outputs.regex"),
        (json!({ "guided_json": 7 }), "guided_json"),
    ] {
        println!("{more}");
        server.post("/v1/completions", &body(more)).refused(400, Some(param));
    }
}

/// Log probabilities are those of the masked distribution, in each mode; a request beside it is as if it were alone.
fn probabilities(server: &Server) {
    let plain = body(json!({ "logprobs": 5, "max_tokens": 20 }));
    let alone = server.post("/v1/completions", &plain).good();
    let (beside, masked) = std::thread::scope(|scope| {
        let beside = scope.spawn(|| server.post("/v1/completions", &plain).good());
        let more = json!({ "structured_outputs": { "choice": ["a", "b"] }, "logprobs": 20, "n": 4, "max_tokens": 3 });
        let masked = server.post("/v1/completions", &body(more)).good();
        (beside.join().unwrap(), masked)
    });
    assert_eq!(alone["choices"], beside["choices"]);
    for choice in masked["choices"].as_array().unwrap() {
        let top = choice["logprobs"]["top_logprobs"][0].as_object().unwrap();
        let mut texts: Vec<&str> = top.keys().map(String::as_str).collect();
        texts.sort_unstable();
        assert_eq!(texts, ["a", "b"], "no other token is possible");
        let sum: f64 = top.values().map(|p| p.as_f64().unwrap().exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        let own = choice["logprobs"]["token_logprobs"][0].as_f64().unwrap();
        assert_eq!(top[choice["text"].as_str().unwrap()].as_f64().unwrap(), own);
    }
}
