//! Tokens in and out, in the forms of vLLM, SGLang and TRL. All three sample with one engine: the same seed gives the
//! same tokens.

use serde_json::{Value, json};

use crate::http_client::Server;

const IDS: [u32; 4] = [40, 7, 300, 21];

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn the_three_forms_give_the_same_tokens() {
    let server = Server::start(&["--component", "fp8_block"]);
    let params = json!({ "max_tokens": 12, "temperature": 0.0, "logprobs": 2, "ignore_eos": true });
    let vllm = server
        .json("/inference/v1/generate", &json!({ "token_ids": IDS, "sampling_params": params, "request_id": "r1" }))
        .good();
    assert_eq!(vllm["request_id"], "r1");
    let choice = &vllm["choices"][0];
    let tokens = ids(&choice["token_ids"]);
    assert_eq!((tokens.len(), &choice["finish_reason"]), (12, &json!("length")));
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 12);
    for (entry, token) in content.iter().zip(&tokens) {
        assert_eq!((&entry["token_id"], &entry["rank"]), (&json!(token), &json!(1)), "greedy takes the best");
        assert_eq!(entry["top_logprobs"][0]["token_id"], json!(token));
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
    }
    let version = &choice["weight_versions"][0];
    assert_eq!((&version["start"], &version["end"]), (&json!(0), &json!(12)));
    assert!(version["patch_set"].as_str().unwrap().starts_with("sha256:"));

    let params = json!({ "max_new_tokens": 12, "temperature": 0, "ignore_eos": true });
    let body = json!({ "input_ids": IDS, "sampling_params": params, "return_logprob": true, "logprob_start_len": 0,
        "top_logprobs_num": 2, "token_ids_logprob": [3, 4], "return_text_in_logprobs": true, "rid": "r2" });
    let sglang = server.json("/generate", &body).good();
    assert_eq!(ids(&sglang["output_ids"]), tokens);
    let meta = &sglang["meta_info"];
    assert_eq!(
        (&meta["id"], &meta["prompt_tokens"], &meta["completion_tokens"]),
        (&json!("r2"), &json!(4), &json!(12))
    );
    assert_eq!(meta["finish_reason"], json!({ "type": "length", "length": 12 }));
    let out = meta["output_token_logprobs"].as_array().unwrap();
    for ((triple, token), entry) in out.iter().zip(&tokens).zip(content) {
        assert_eq!((&triple[0], &triple[1]), (&entry["logprob"], &json!(token)));
        assert!(triple[2].is_string());
    }
    assert_eq!(meta["output_top_logprobs"][0].as_array().unwrap().len(), 2);
    assert_eq!(meta["output_token_ids_logprobs"][0][1][1], 4);
    let input = meta["input_token_logprobs"].as_array().unwrap();
    assert_eq!(input.len(), IDS.len());
    assert!(input[0][0].is_null() && input[1][0].as_f64().unwrap() < 0.0);
    assert_eq!(input.iter().map(|t| t[1].as_u64().unwrap() as u32).collect::<Vec<_>>(), IDS);
    assert_eq!(meta["weight_versions"][0]["patch_set"], version["patch_set"]);

    let body = json!({ "prompts": [IDS, [1, 2, 3]], "n": 2, "temperature": 0.0, "max_tokens": 12, "generation_kwargs": { "ignore_eos": true } });
    let trl = server.json("/generate/", &body).good();
    let completions = trl["completion_ids"].as_array().unwrap();
    assert_eq!(completions.len(), 4);
    assert_eq!((ids(&completions[0]), ids(&completions[1])), (tokens.clone(), tokens));
    assert_eq!(trl["prompt_ids"][1], json!([1, 2, 3]));
    assert_eq!(trl["logprobs"][0][0], content[0]["logprob"]);
    assert_eq!(server.get("/get_world_size/").good(), json!({ "world_size": 1 }));
    assert_eq!(server.get("/get_world_size?include_dp=true").good(), json!({ "world_size": 1 }));
    assert_eq!(server.get("/health/").good(), json!({ "status": "ok" }));
}

#[test]
fn streams_end_as_the_whole_answer() {
    let server = Server::start(&[]);
    let params = json!({ "max_new_tokens": 10, "temperature": 0.7, "sampling_seed": 11, "ignore_eos": true });
    let mut body = json!({ "text": "KING HENRY.\n", "sampling_params": params, "return_logprob": true });
    let whole = server.json("/generate", &body).good();
    body["stream"] = json!(true);
    let stream = server.json("/generate", &body);
    let events: Vec<&str> = stream.text.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"), "{}", stream.text);
    let parsed: Vec<Value> = events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    // Each holds all so far.
    for pair in parsed.windows(2) {
        let text = |v: &Value| v["text"].as_str().unwrap().to_string();
        assert!(text(&pair[1]).starts_with(&text(&pair[0])));
    }
    let last = parsed.last().unwrap();
    assert_eq!((&last["text"], &last["output_ids"]), (&whole["text"], &whole["output_ids"]));
    assert_eq!(last["meta_info"]["output_token_logprobs"], whole["meta_info"]["output_token_logprobs"]);
    assert_eq!(last["meta_info"]["finish_reason"], whole["meta_info"]["finish_reason"]);

    let params = json!({ "max_tokens": 10, "temperature": 0.7, "seed": 11, "ignore_eos": true, "n": 2, "logprobs": 0 });
    let mut body = json!({ "token_ids": IDS, "sampling_params": params });
    let whole = server.json("/inference/v1/generate", &body).good();
    body["stream"] = json!(true);
    let stream = server.json("/inference/v1/generate", &body);
    let mut pieces = [Vec::new(), Vec::new()];
    for event in stream.text.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|e| *e != "[DONE]") {
        let event: Value = serde_json::from_str(event).unwrap();
        let choice = &event["choices"][0];
        pieces[choice["index"].as_u64().unwrap() as usize].extend(ids(&choice["token_ids"]));
    }
    for (i, piece) in pieces.iter().enumerate() {
        assert_eq!(*piece, ids(&whole["choices"][i]["token_ids"]), "choice {i}");
    }
    assert_ne!(pieces[0], pieces[1], "two samples of one seed differ");
}

#[test]
fn batches_samples_and_stops() {
    let server = Server::start(&[]);
    let params = json!({ "max_new_tokens": 4, "temperature": 0, "ignore_eos": true });
    let answers = server.json("/generate", &json!({ "text": ["ROMEO.\n", "JULIET.\n"], "sampling_params": [params, { "max_new_tokens": 2, "temperature": 0, "ignore_eos": true }] })).good();
    let counts: Vec<u64> =
        answers.as_array().unwrap().iter().map(|a| a["meta_info"]["completion_tokens"].as_u64().unwrap()).collect();
    assert_eq!(counts, [4, 2]);
    let one = server.json("/generate", &json!({ "input_ids": [[1, 2, 3]], "sampling_params": params })).good();
    let first = ids(&one[0]["output_ids"]);
    // The second token as a stop token.
    let params = json!({ "max_new_tokens": 4, "temperature": 0, "ignore_eos": true, "stop_token_ids": [first[1]] });
    let stopped = server.json("/generate", &json!({ "input_ids": [1, 2, 3], "sampling_params": params })).good();
    assert_eq!(stopped["meta_info"]["finish_reason"], json!({ "type": "stop", "matched": first[1] }));
    let params = json!({ "max_new_tokens": 3, "n": 3, "temperature": 1.0 });
    let samples = server.json("/generate", &json!({ "input_ids": [1, 2, 3], "sampling_params": params })).good();
    assert_eq!(samples.as_array().unwrap().len(), 3);
}

#[test]
fn wrong_requests_are_refused_by_name() {
    let server = Server::start(&[]);
    for (body, name) in [
        (json!({}), "input_ids"),
        (json!({ "text": "a", "input_ids": [1] }), "both"),
        (json!({ "input_ids": [] }), "no tokens"),
        (json!({ "input_ids": [[1], 2] }), "mixes"),
        (json!({ "input_ids": [999_999] }), "999999"),
        (json!({ "input_ids": [1], "sampling_params": { "temperature": -1 } }), "temperature"),
        (json!({ "input_ids": [1], "sampling_params": { "regex": "[a-" } }), "regular expression"),
        (json!({ "input_ids": [1], "custom_logit_processor": "gASV" }), "pickle of code"),
        (json!({ "input_ids": [1], "return_routed_experts": true }), "return_routed_experts"),
        (json!({ "input_ids": [1], "image_data": "x" }), "image_data"),
        (json!({ "input_ids": [1], "lora_path": "none" }), "none"),
        (json!({ "input_ids": [1], "sampling_params": [{}, {}] }), "sampling_params"),
        (json!({ "input_ids": [1], "return_logprob": true, "logprob_start_len": 9 }), "logprob_start_len"),
        (json!({ "input_ids": [1], "return_logprob": true, "top_logprobs_num": 1000 }), "top_logprobs_num"),
        (json!({ "input_ids": [1], "sampling_params": { "max_new_tokens": 100_000 } }), "100000"),
    ] {
        let answer = server.json("/generate", &body);
        let status = answer.status;
        assert!(matches!(status, 400 | 404), "{body}: {}", answer.text);
        let text = answer.refused(status);
        assert!(text.contains(name), "{body}: {text}");
    }
    for (body, name) in [
        (json!({ "token_ids": [] }), "no tokens"),
        (json!({ "token_ids": [1], "sampling_params": { "top_p": 0 } }), "top_p"),
        (json!({ "token_ids": [1], "sampling_params": { "logprobs": 5000 } }), "logprobs"),
        (json!({ "token_ids": [1], "cache_salt": "" }), "cache_salt"),
        (json!({ "token_ids": "x" }), "token_ids"),
        (json!({ "token_ids": [1], "request_id": "a b" }), "request id"),
    ] {
        let text = server.json("/inference/v1/generate", &body).refused(400);
        assert!(text.contains(name), "{body}: {text}");
    }
    assert!(server.json("/generate/", &json!({ "prompts": ["a"], "images": [1] })).refused(400).contains("images"));
}
