//! Completions: what the parameters do.

use serde_json::{Value, json};

use super::server::Server;
use crate::support::patchhost;

const PROMPT: &str = "KING HENRY.\n";

fn choice(server: &Server, mut body: Value) -> Value {
    let defaults = json!({ "prompt": PROMPT, "max_tokens": 12, "temperature": 0 });
    for (key, value) in defaults.as_object().unwrap() {
        if body.get(key).is_none() {
            body[key] = value.clone();
        }
    }
    server.post("/v1/completions", &body).good()["choices"][0].clone()
}

fn text(choice: &Value) -> &str {
    choice["text"].as_str().unwrap()
}

/// Greedy text is that of `patchhost run`, through the same patches; the answer says what made it.
#[test]
fn an_answer_is_that_of_run_and_says_what_made_it() {
    let server = Server::start(&["--component", "fp8_block"]);
    let run =
        ["run", "--component", "fp8_block", "--prompt", PROMPT, "--max-tokens", "12", "--temperature", "0", "--no-kl"];
    let run = patchhost(run.iter().chain(&["--format", "json"])).good().json();
    let answer = server.post("/v1/completions", &json!({ "prompt": PROMPT, "max_tokens": 12, "temperature": 0 }));
    let json = answer.good();
    let choice = &json["choices"][0];
    assert_eq!(choice["text"], run["completions"][0]["text"]);
    assert_eq!(choice["finish_reason"], "length");
    let set = server.ready["patch_set"].as_str().unwrap().to_string();
    let set = set.as_str();
    assert_eq!(json["patch_set"].as_str(), Some(set));
    assert_eq!(answer.headers["x-patchhost-patch-set"].to_str().unwrap(), set);
    assert_eq!(json["system_fingerprint"], format!("fp_{}", &set["sha256:".len()..][..12]));
    let versions = choice["weight_versions"].as_array().unwrap();
    assert_eq!(versions.len(), 1);
    assert_eq!((&versions[0]["start"], &versions[0]["end"]), (&json!(0), &json!(12)));
    assert_eq!(versions[0]["patch_set"].as_str(), Some(set));
    let prompt = run["completions"][0]["prompt_tokens"].as_u64().unwrap();
    let usage = &json["usage"];
    assert_eq!((usage["prompt_tokens"].as_u64(), usage["completion_tokens"].as_u64()), (Some(prompt), Some(12)));
    assert_eq!(usage["total_tokens"].as_u64(), Some(prompt + 12));
    assert_eq!(
        (json["object"].as_str(), json["model"].as_str()),
        (Some("text_completion"), Some("tiny-shakespeare-moe"))
    );

    // Another set is another fingerprint.
    let plain = Server::start(&[]);
    assert_ne!(plain.ready["patch_set"].as_str(), Some(set));
}

/// Everything that needs no server of its own shares one: each costs a start.
#[test]
fn parameters() {
    let server = Server::start(&["--served-model-name", "bard", "--served-model-name", "will"]);
    prompts(&server);
    seeds(&server);
    ends(&server);
    bias(&server);
    echo_and_logprobs(&server);
    tokens(&server);
    names(&server);
    around(&server);
    documents(&server);
}

fn prompts(server: &Server) {
    let ids = server.post("/tokenize", &json!({ "prompt": PROMPT })).good()["tokens"].clone();
    let one = choice(server, json!({}));
    assert_eq!(text(&choice(server, json!({ "prompt": ids }))), text(&one));
    let other = choice(server, json!({ "prompt": "My lord, " }));
    for prompts in [
        json!([PROMPT, "My lord, "]),
        json!([ids, server.post("/tokenize", &json!({ "prompt": "My lord, " })).good()["tokens"]]),
    ] {
        let body = json!({ "prompt": prompts, "max_tokens": 12, "temperature": 0, "n": 2 });
        let json = server.post("/v1/completions", &body).good();
        let texts: Vec<&str> = json["choices"].as_array().unwrap().iter().map(text).collect();
        assert_eq!(texts, [text(&one), text(&one), text(&other), text(&other)]);
        let indices: Vec<u64> =
            json["choices"].as_array().unwrap().iter().map(|c| c["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, [0, 1, 2, 3]);
    }
    // The last token of the prompt alone.
    let last = ids.as_array().unwrap().last().unwrap();
    let cut = choice(server, json!({ "truncate_prompt_tokens": 1 }));
    assert_eq!(text(&cut), text(&choice(server, json!({ "prompt": [last] }))));
}

fn seeds(server: &Server) {
    let hot = json!({ "prompt": PROMPT, "max_tokens": 12, "temperature": 1, "seed": 7, "n": 3 });
    let texts = |body: &Value| -> Vec<String> {
        let json = server.post("/v1/completions", body).good();
        json["choices"].as_array().unwrap().iter().map(|c| text(c).to_string()).collect()
    };
    let first = texts(&hot);
    assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
    // The same under load.
    std::thread::scope(|scope| {
        let again: Vec<_> = (0..4).map(|_| scope.spawn(|| texts(&hot))).collect();
        again.into_iter().for_each(|t| assert_eq!(t.join().unwrap(), first));
    });
    let mut other = hot.clone();
    other["seed"] = json!(8);
    assert_ne!(texts(&other), first);
    other["seed"] = json!(-1);
    assert_ne!(texts(&other), first);
}

fn ends(server: &Server) {
    let whole = choice(server, json!({ "max_tokens": 24, "return_token_ids": true }));
    let stop: String = text(&whole).chars().skip(8).take(3).collect();
    let at = text(&whole).find(&stop).unwrap();
    let stopped = choice(server, json!({ "max_tokens": 24, "stop": stop }));
    assert_eq!(text(&stopped), &text(&whole)[..at]);
    assert_eq!((&stopped["finish_reason"], &stopped["stop_reason"]), (&json!("stop"), &json!(stop)));
    let with =
        choice(server, json!({ "max_tokens": 24, "stop": ["never there", stop], "include_stop_str_in_output": true }));
    assert_eq!(text(&with), &text(&whole)[..at + stop.len()]);
    // A token that ends the answer, and `min_tokens` that forbids it for a while.
    let ids = whole["token_ids"].as_array().unwrap();
    let fifth = &ids[5];
    let first = ids.iter().position(|id| id == fifth).unwrap();
    let at_token = choice(server, json!({ "max_tokens": 24, "stop_token_ids": [fifth], "return_token_ids": true }));
    assert_eq!((&at_token["finish_reason"], &at_token["stop_reason"]), (&json!("stop"), fifth));
    assert_eq!(at_token["token_ids"].as_array().unwrap()[..], ids[..=first]);
    let later = choice(
        server,
        json!({ "max_tokens": 24, "stop_token_ids": [fifth], "min_tokens": 20, "return_token_ids": true }),
    );
    assert!(later["token_ids"].as_array().unwrap().len() >= 20, "{later}");
    // The model's end token, and going on behind it.
    let end = json!({ "logit_bias": { "0": 100 }, "max_tokens": 5, "return_token_ids": true });
    let ended = choice(server, end.clone());
    assert_eq!((&ended["finish_reason"], text(&ended)), (&json!("stop"), ""));
    let mut on = end;
    on["ignore_eos"] = json!(true);
    let on = choice(server, on);
    assert_eq!((&on["finish_reason"], &on["token_ids"]), (&json!("length"), &json!([0, 0, 0, 0, 0])));
    // Nothing at all.
    let none = choice(server, json!({ "max_tokens": 0 }));
    assert_eq!((text(&none), &none["finish_reason"]), ("", &json!("length")));
}

fn bias(server: &Server) {
    let only = choice(server, json!({ "allowed_token_ids": [77], "return_token_ids": true, "max_tokens": 3 }));
    assert_eq!(only["token_ids"], json!([77, 77, 77]));
    let forced = choice(server, json!({ "logit_bias": { "78": 100 }, "return_token_ids": true, "max_tokens": 3 }));
    assert_eq!(forced["token_ids"], json!([78, 78, 78]));
    let free = choice(server, json!({ "max_tokens": 40, "return_token_ids": true }));
    let often = |c: &Value| {
        let ids = c["token_ids"].as_array().unwrap();
        ids.iter().map(|id| ids.iter().filter(|i| *i == id).count()).max().unwrap()
    };
    let penalized = choice(
        server,
        json!({ "max_tokens": 40, "return_token_ids": true, "frequency_penalty": 2, "presence_penalty": 2 }),
    );
    assert!(often(&penalized) < often(&free), "{penalized} {free}");
    assert_ne!(choice(server, json!({ "max_tokens": 40, "repetition_penalty": 2.0 }))["text"], free["text"]);
}

fn echo_and_logprobs(server: &Server) {
    let plain = choice(server, json!({}));
    let c = choice(server, json!({ "echo": true, "logprobs": 3, "max_tokens": 4 }));
    let l = &c["logprobs"];
    let tokens: Vec<&str> = l["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert!(text(&c).starts_with(PROMPT) && text(&plain).starts_with(&text(&c)[PROMPT.len()..]), "{c}");
    assert_eq!(tokens.concat(), text(&c));
    assert!(l["token_logprobs"][0].is_null() && l["top_logprobs"][0].is_null(), "{l}");
    let mut offset = 0;
    for (i, token) in tokens.iter().enumerate() {
        assert_eq!(l["text_offset"][i], offset);
        offset += token.chars().count();
        let Some(own) = l["token_logprobs"][i].as_f64() else { continue };
        let top = l["top_logprobs"][i].as_object().unwrap();
        assert!(own <= 0.0 && (3..=4).contains(&top.len()), "{top:?}");
        assert_eq!(top[*token].as_f64(), Some(own), "its own is among them");
        let best = top.values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
        // Greedy: what was generated was the best.
        assert!(i < tokens.len() - 4 || own == best, "{top:?} {token}");
        assert!(top.values().map(|v| v.as_f64().unwrap().exp()).sum::<f64>() <= 1.0 + 1e-5);
    }
    // The prompt alone: how evaluation harnesses score texts. The same numbers as behind a prompt.
    let score = choice(server, json!({ "prompt": text(&c), "echo": true, "logprobs": 0, "max_tokens": 0 }));
    let (a, b) = (l["token_logprobs"].as_array().unwrap(), score["logprobs"]["token_logprobs"].as_array().unwrap());
    assert_eq!(a, b);
    assert_eq!(text(&score), text(&c));
    // vLLM's form for the prompt, by id.
    let p = choice(server, json!({ "prompt_logprobs": 2, "return_token_ids": true }));
    let prompt = p["prompt_logprobs"].as_array().unwrap();
    let ids = p["prompt_token_ids"].as_array().unwrap();
    assert_eq!(prompt.len(), ids.len());
    assert!(prompt[0].is_null());
    for (i, (entry, id)) in prompt.iter().zip(ids).enumerate().skip(1) {
        assert_eq!(entry[id.to_string()]["logprob"], a[i], "{entry}");
        assert!(entry[id.to_string()]["rank"].as_u64().unwrap() >= 1);
        assert!(entry.as_object().unwrap().values().any(|v| v["rank"] == 1), "{entry}");
    }
    // Named tokens at every position, and tokens by id.
    let named = choice(
        server,
        json!({ "logprobs": 0, "logprob_token_ids": [77], "return_tokens_as_token_ids": true, "max_tokens": 2 }),
    );
    for (token, top) in named["logprobs"]["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .zip(named["logprobs"]["top_logprobs"].as_array().unwrap())
    {
        assert!(token.as_str().unwrap().starts_with("token_id:"), "{named}");
        assert!(top.get("token_id:77").is_some() && top.get(token.as_str().unwrap()).is_some(), "{named}");
    }
}

fn tokens(server: &Server) {
    let c = choice(server, json!({ "return_token_ids": true }));
    let back = server.post("/detokenize", &json!({ "tokens": c["token_ids"] })).good();
    assert_eq!(back["prompt"], c["text"]);
    let t = server.post("/tokenize", &json!({ "prompt": "My lord, größe", "return_token_strs": true })).good();
    assert_eq!(t["count"].as_u64().unwrap() as usize, t["tokens"].as_array().unwrap().len());
    assert_eq!(t["count"].as_u64().unwrap() as usize, t["token_strs"].as_array().unwrap().len());
    assert_eq!(t["max_model_len"], 512);
    assert_eq!(server.post("/detokenize", &json!({ "tokens": t["tokens"] })).good()["prompt"], "My lord, größe");
}

fn names(server: &Server) {
    let models = server.get("/v1/models").good();
    let ids: Vec<&str> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["bard", "will"]);
    assert_eq!(models["data"][0]["max_model_len"], 512);
    assert_eq!(server.get("/v1/models/will").good()["root"], "bard");
    let none = server.get("/v1/models/gpt%2d4").refused(404, Some("model"));
    assert!(none.contains("gpt-4") && none.contains("bard"), "{none}");
    for name in ["bard", "will"] {
        let json = server
            .post("/v1/completions", &json!({ "model": name, "prompt": "a", "max_tokens": 1, "request_id": "me" }));
        assert_eq!((json.good()["model"].as_str(), json.good()["id"].as_str()), (Some(name), Some("cmpl-me")));
    }
}

fn around(server: &Server) {
    assert_eq!((server.get("/health").status, server.get("/health").text.as_str()), (200, ""));
    assert_eq!(server.get("/healthz").good()["status"], "ok");
    assert_eq!(server.get("/readyz").good()["status"], "ok");
    assert_eq!(server.get("/version").good()["version"], env!("CARGO_PKG_VERSION"));
    let status = server.status();
    assert_eq!(status["live"]["board"]["active"], server.ready["patch_set"]);
    assert_eq!((&status["draining"], &status["paused"]), (&json!(false), &Value::Null));
    assert_eq!(server.get("/livez").good()["status"], "ok");
    assert_eq!(server.get("/ready").good()["status"], "ok");
    assert_eq!((server.get("/ping").status, server.post("/ping", &json!({})).status), (200, 200));
    for path in ["/health", "/readyz", "/v1/models", "/metrics", "/openapi.json"] {
        let head = server.agent.head(server.url(path)).call().unwrap();
        assert_eq!(head.status(), 200, "HEAD {path}");
        assert_eq!(head.into_body().read_to_string().unwrap(), "", "HEAD {path}");
    }
    let open = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let open = server.agent.get(server.url("/metrics")).header("accept", open).call().unwrap();
    assert!(
        open.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text; version=1.0.0")
    );
    let open = open.into_body().read_to_string().unwrap();
    assert!(open.contains("# TYPE vllm:prompt_tokens counter\n") && open.ends_with("# EOF\n"), "{open}");
    let metrics = server.get("/metrics");
    assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert!(metrics.text.contains("# TYPE vllm:prompt_tokens_total counter\n"), "{}", metrics.text);
    let value = |name: &str| -> f64 {
        let line = metrics.text.lines().find(|l| name.split(' ').all(|part| l.contains(part)) && !l.starts_with('#'));
        let line = line.unwrap_or_else(|| panic!("no {name}\n{}", metrics.text));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("vllm:prompt_tokens_total{model_name=\"bard\"}") > 100.0);
    assert!(value("vllm:generation_tokens_total") > 100.0);
    assert_eq!(value("vllm:num_requests_running"), 0.0);
    assert_eq!(value("vllm:num_requests_waiting"), 0.0);
    assert_eq!(value("vllm:kv_cache_usage_perc"), 0.0);
    assert!(value("vllm:request_success_total{model_name=\"bard\",finished_reason=\"stop\"}") >= 1.0);
    for histogram in ["time_to_first_token", "inter_token_latency", "e2e_request_latency"] {
        let count = value(&format!("vllm:{histogram}_seconds_count"));
        assert!(count > 10.0, "{histogram} {count}");
    }
    assert_eq!(value("patchhost_refits_total"), 1.0);
    assert_eq!(value("patchhost_tainted"), 0.0);
    assert!(value("patchhost_patch_calls_total patch=\"moe_loader\",generation=\"") > 0.0);
    assert!(value("patchhost_patch_fuel_total function=\"masked\"") > 0.0);
    let set = server.ready["patch_set"].as_str().unwrap();
    assert!(metrics.text.contains(&format!("patch_set=\"{set}\"")), "{}", metrics.text);
    assert!(metrics.text.contains("patchhost_http_responses_total{route=\"/v1/completions\",status=\"200\"}"));
    assert!(!metrics.text.contains("# EOF") && !metrics.text.contains("# UNIT"), "{}", metrics.text);
}

fn documents(server: &Server) {
    let api = server.get("/openapi.json").good();
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"));
    for path in [
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/tokenize",
        "/detokenize",
        "/health",
        "/readyz",
        "/metrics",
    ] {
        assert!(api["paths"].get(path).is_some(), "{path}");
    }
    let fields = &api["components"]["schemas"]["CompletionRequest"]["properties"];
    assert_eq!(fields["temperature"]["minimum"], 0.0);
    // What is refused by name is no part of the document.
    assert!(fields["best_of"].is_null() && fields["prompt"].is_object(), "{fields}");
    assert_eq!(api["components"]["schemas"]["CompletionRequest"]["required"], json!(["prompt"]));
}
