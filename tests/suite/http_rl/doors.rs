//! What upstream's clients ask of their servers beside weights and tokens: which log probabilities they get, what the model
//! is called, what the server is and how busy.

use serde_json::{Value, json};

use crate::http_client::Server;
use crate::support::repo;

const IDS: [u32; 3] = [40, 7, 300];

/// The logits behind [`IDS`], as the server itself gives them in the mode that changes nothing.
fn logits() -> Vec<f64> {
    let server = Server::start(&["--logprobs-mode", "raw_logits", "--max-logprobs", "-1"]);
    let body =
        json!({ "prompt": IDS, "max_tokens": 1, "logprobs": -1, "return_tokens_as_token_ids": true, "temperature": 0 });
    let answer = server.json("/v1/completions", &body).good();
    let top = answer["choices"][0]["logprobs"]["top_logprobs"][0].as_object().unwrap().clone();
    let mut all = vec![f64::NEG_INFINITY; top.len()];
    for (name, value) in top {
        all[name.strip_prefix("token_id:").unwrap().parse::<usize>().unwrap()] = value.as_f64().unwrap();
    }
    all
}

fn log_softmax(logits: &[f64], temperature: f64, of: u64) -> f64 {
    let scaled: Vec<f64> = logits.iter().map(|l| l / temperature).collect();
    let max = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scaled[of as usize] - max - scaled.iter().map(|l| (l - max).exp()).sum::<f64>().ln()
}

/// What the three doors give for a token sampled at temperature 0.5 among the two best, and what each says that it is.
fn three(server: &Server) -> [(u64, f64, String); 3] {
    let header = |path: &str, body: &Value| {
        let answer = ureq::post(format!("{}{path}", server.url)).send_json(body).unwrap();
        answer.headers()["x-patchhost-logprobs-mode"].to_str().unwrap().to_string()
    };
    let v1 = json!({ "prompt": IDS, "max_tokens": 1, "temperature": 0.5, "top_k": 2, "seed": 5, "logprobs": 0, "return_token_ids": true });
    let answer = server.json("/v1/completions", &v1).good();
    let choice = &answer["choices"][0];
    let one = (choice["token_ids"][0].as_u64().unwrap(), choice["logprobs"]["token_logprobs"][0].as_f64().unwrap());
    let sampling = json!({ "max_new_tokens": 1, "temperature": 0.5, "top_k": 2, "sampling_seed": 5 });
    let sglang = json!({ "input_ids": IDS, "sampling_params": sampling, "return_logprob": true, "top_logprobs_num": 2,
        "token_ids_logprob": [3], "logprob_start_len": 0 });
    let meta = server.json("/generate", &sglang).good()["meta_info"].clone();
    let first = &meta["output_token_logprobs"][0];
    let two = (first[1].as_u64().unwrap(), first[0].as_f64().unwrap());
    assert_eq!(meta["logprobs_mode"], header("/generate", &sglang));
    let trl = json!({ "prompts": [IDS], "max_tokens": 1, "temperature": 0.5, "top_k": 2, "generation_kwargs": { "seed": 5 } });
    let answer = server.json("/generate/", &trl).good();
    let three = (answer["completion_ids"][0][0].as_u64().unwrap(), answer["logprobs"][0][0].as_f64().unwrap());
    assert_eq!(answer["logprobs_mode"], header("/generate/", &trl));
    [
        (one.0, one.1, header("/v1/completions", &v1)),
        (two.0, two.1, header("/generate", &sglang)),
        (three.0, three.1, header("/generate/", &trl)),
    ]
}

#[test]
fn log_probabilities_are_what_the_original_of_each_door_gives() {
    let logits = logits();
    let mut best: Vec<usize> = (0..logits.len()).collect();
    best.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    // What top_k leaves, after temperature.
    let kept: Vec<f64> =
        logits.iter().enumerate().map(|(i, l)| if best[..2].contains(&i) { *l } else { f64::NEG_INFINITY }).collect();
    let raw = |id: u64| log_softmax(&logits, 1.0, id);
    let tempered = |id: u64| log_softmax(&logits, 0.5, id);
    let processed = |id: u64| log_softmax(&kept, 0.5, id);
    let near = |(id, found, mode): &(u64, f64, String), wanted: f64, name: &str| {
        assert!((found - wanted).abs() < 1e-4, "{mode} of token {id}: {found}, and must be {wanted}");
        assert_eq!(mode, name);
    };

    let server = Server::start(&[]);
    let [v1, sglang, trl] = three(&server);
    assert_eq!((v1.0, sglang.0), (trl.0, trl.0), "one seed, one token");
    assert!((raw(v1.0) - tempered(v1.0)).abs() > 1e-2 && (tempered(v1.0) - processed(v1.0)).abs() > 1e-2);
    near(&v1, raw(v1.0), "raw_logprobs");
    near(&sglang, tempered(sglang.0), "tempered_logprobs");
    near(&trl, processed(trl.0), "processed_logprobs");
    let info = server.get("/server_info").good();
    assert_eq!(
        info["logprobs_mode"],
        json!({ "vllm": "raw_logprobs", "sglang": "tempered_logprobs", "trl": "processed_logprobs" })
    );
    assert_eq!(info["vllm_config"]["model_config"]["logprobs_mode"], "raw_logprobs");

    // SGLang's other lists are of the same kind; those of the prompt are the model's own.
    let sampling = json!({ "max_new_tokens": 1, "temperature": 0.5, "sampling_seed": 5 });
    let body = json!({ "input_ids": IDS, "sampling_params": sampling, "return_logprob": true, "top_logprobs_num": 2,
        "token_ids_logprob": [3], "logprob_start_len": 0 });
    let meta = server.json("/generate", &body).good()["meta_info"].clone();
    let (top, by_id) = (&meta["output_top_logprobs"][0][0], &meta["output_token_ids_logprobs"][0][0]);
    assert_eq!(top[1], json!(best[0]));
    assert!((top[0].as_f64().unwrap() - tempered(best[0] as u64)).abs() < 1e-4, "{top}");
    assert!((by_id[0].as_f64().unwrap() - tempered(3)).abs() < 1e-4, "{by_id}");
    let echoed = json!({ "prompt": IDS, "max_tokens": 1, "temperature": 0.5, "prompt_logprobs": 0 });
    let echoed = server.json("/v1/completions", &echoed).good()["choices"][0]["prompt_logprobs"].clone();
    for (mine, theirs) in
        meta["input_token_logprobs"].as_array().unwrap().iter().zip(echoed.as_array().unwrap()).skip(1)
    {
        assert_eq!(mine[0], theirs[mine[1].to_string()]["logprob"]);
    }

    let all = Server::start(&["--logprobs-mode", "processed_logprobs"]);
    for door in three(&all) {
        near(&door, processed(door.0), "processed_logprobs");
    }
    let all = Server::start(&["--logprobs-mode", "raw_logprobs"]);
    for door in three(&all) {
        near(&door, raw(door.0), "raw_logprobs");
    }
}

#[test]
fn how_many_log_probabilities_there_can_be_is_the_operators_word() {
    let ask = |server: &Server, n: i64| {
        let body = json!({ "prompt": IDS, "max_tokens": 2, "prompt_logprobs": n, "logprobs": n, "return_tokens_as_token_ids": true });
        server.json("/v1/completions", &body)
    };
    let few = Server::start(&[]);
    assert_eq!(ask(&few, 20).status, 200);
    for (n, word) in [(21, "at most 20"), (-1, "at most 20"), (-2, "-1 for the whole"), (100, "--max-logprobs")] {
        assert!(ask(&few, n).refused(400).contains(word), "{n}");
    }
    let all = Server::start(&["--max-logprobs", "-1"]);
    assert_eq!(all.get("/server_info").good()["vllm_config"]["model_config"]["max_logprobs"], -1);
    // As TRL's distillation asks, and all there are.
    for n in [100, -1] {
        let answer = ask(&all, n).good();
        let choice = &answer["choices"][0];
        let top = choice["logprobs"]["top_logprobs"][1].as_object().unwrap().len();
        let prompt = choice["prompt_logprobs"][2].as_object().unwrap().len();
        assert!(if n == 100 { (100..=101).contains(&top) } else { top > 500 }, "{n}: {top}");
        assert!(if n == 100 { (100..=101).contains(&prompt) } else { prompt > 500 }, "{n}: {prompt}");
    }
    let chat = json!({ "messages": [{ "role": "user", "content": "a" }], "max_tokens": 1, "logprobs": true, "top_logprobs": 300 });
    let answer = all.json("/v1/chat/completions", &chat).good();
    assert_eq!(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"].as_array().unwrap().len(), 300);
    assert!(ask(&all, 1_000_000).refused(400).contains("logprobs"));
}

#[test]
fn the_model_is_known_by_its_names_and_by_its_path() {
    let folder = repo().join("models/tiny-shakespeare-moe");
    let given = folder.display().to_string();
    let server = Server::start(&[&given, "--served-model-name", "bard", "will"]);
    let ask = |model: &str| server.json("/v1/completions", &json!({ "model": model, "prompt": "a", "max_tokens": 1 }));
    let whole = folder.canonicalize().unwrap().display().to_string();
    for name in ["bard", "will", &given, &format!("{given}/"), &whole] {
        assert_eq!(ask(name).status, 200, "{name}");
        assert_eq!(server.json("/tokenize", &json!({ "model": name, "prompt": "a" })).status, 200, "{name}");
    }
    assert!(ask("tiny").refused(404).contains("bard"));
    let models = server.get("/v1/models").good();
    let ids: Vec<&str> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["bard", "will"]);
    assert_eq!(models["data"][0]["root"], json!(given));
    assert_eq!(server.get("/v1/models/will").good()["id"], "will");
    assert_eq!(server.get(&format!("/v1/models/{}", given.replace('/', "%2F"))).good()["id"], "bard");
    server.get("/v1/models/Org/Other").refused(404);
    // A copy of the bundled model that is named by its folder chats as it does without a name.
    let chat = json!({ "model": given, "messages": [{ "role": "user", "content": "Who is there?" }], "max_tokens": 4, "temperature": 0 });
    let named = server.json("/v1/chat/completions", &chat).good()["choices"][0]["message"]["content"].clone();
    let bundled = Server::start(&["--served-model-name", &given]);
    assert_eq!(bundled.json("/v1/chat/completions", &chat).good()["choices"][0]["message"]["content"], named);
}

#[test]
fn what_the_server_is_is_said_in_the_words_of_vllm_and_sglang() {
    let server = Server::start(&["--served-model-name", "bard"]);
    let info = server.get("/server_info?config_format=json").good();
    let config = &info["vllm_config"];
    let model = &config["model_config"];
    assert_eq!((&model["dtype"], &model["max_model_len"]), (&json!("torch.bfloat16"), &json!(512)));
    assert_eq!((&model["served_model_name"], &info["served_model_name"]), (&json!("bard"), &json!("bard")));
    // What TRL's clients read.
    assert_eq!(config["weight_transfer_config"], Value::Null);
    assert_eq!(config["parallel_config"]["data_parallel_size"], 1);
    assert!(config["lora_config"]["max_lora_rank"].as_u64().unwrap() > 1000, "{config}");
    assert!(server.get("/server_info?config_format=text").good()["vllm_config"].is_string());
    assert!(server.get("/server_info?config_format=yaml").refused(400).contains("yaml"));
    assert_eq!(server.get("/get_server_info").good()["vllm_config"], *config);
    // What slime compares with the arguments it would have started an engine with.
    assert_eq!(
        (&info["tp_size"], &info["pp_size"], &info["enable_memory_saver"]),
        (&json!(1), &json!(1), &json!(false))
    );
    let model = server.get("/model_info").good();
    assert_eq!((&model["is_generation"], &model["served_model_name"]), (&json!(true), &json!("bard")));
    assert_eq!(server.get("/get_model_info").good(), model);
    assert_eq!(server.json("/get_model_info", &json!({})).good(), model);
    for path in ["/get_weight_version", "/weight_version"] {
        assert_eq!(server.get(path).good(), json!({ "weight_version": "default" }));
    }
    let loads = server.get("/v1/loads?include=core").good();
    assert_eq!((&loads["loads"][0]["dp_rank"], &loads["loads"][0]["num_running_reqs"]), (&json!(0), &json!(0)));
    assert_eq!(server.get("/get_load").good()[0]["num_tokens"], 0);
    assert_eq!(server.get("/load").good(), json!({ "server_load": 0 }));
    assert!(server.get("/v1/loads?format=prometheus").text.contains("sglang_num_running_reqs{dp_rank=\"0\"} 0\n"));
    for wrong in ["dp_rank=1", "include=core,nothing", "format=xml", "dp_rank=x"] {
        server.get(&format!("/v1/loads?{wrong}")).refused(400);
    }
    let tokenizer = server.get("/tokenizer_info").good();
    assert_eq!(
        (&tokenizer["tokenizer_class"], &tokenizer["eos_token"]),
        (&json!("PreTrainedTokenizerFast"), &json!("<|endoftext|>"))
    );
    assert_eq!(tokenizer["added_tokens_decoder"]["0"], "<|endoftext|>");
    assert!(tokenizer["chat_template"].as_str().unwrap().contains("message.role"));
    let refused = Server::try_start(&["--weight-transfer-config", "{\"backend\": \"nccl\"}"]).err().unwrap();
    assert!(refused.contains("patchhost.trl.Rollout"), "{refused}");
}

#[test]
fn a_conversation_that_is_too_long_is_refused_in_openais_words() {
    let server = Server::start(&[]);
    let long = "Speak! ".repeat(600);
    let chat = |content: &str, more: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": content }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.json("/v1/chat/completions", &body)
    };
    for (answer, words) in [
        (chat(&long, json!({})), "However, your messages resulted in"),
        (chat("Hi", json!({ "max_tokens": 512 })), "in the messages, 512 in the completion)"),
        (chat(&long.repeat(100), json!({})), "However, your prompt has"),
        (server.json("/generate", &json!({ "text": long })), "However, your messages resulted in"),
        (server.json("/inference/v1/generate", &json!({ "token_ids": vec![1; 512] })), "512 tokens, which leaves none"),
    ] {
        let text = answer.refused(400);
        assert!(text.contains("This model's maximum context length is 512 tokens. ") && text.contains(words), "{text}");
        if let Some(error) = answer.json().get("error") {
            assert_eq!(error["code"], "context_length_exceeded");
        }
    }
}

/// Health says that weights are being loaded; liveness does not care.
#[test]
fn health_is_not_good_before_weights_serve() {
    let tmp = tempfile::tempdir().unwrap();
    let socket = tmp.path().join("s");
    let seen = (0..20).any(|_| {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"))
            .args(["serve", "--threads", "1", "--component", "fp8_block_mse", "--listen"])
            .arg(format!("unix:{}", socket.display()))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !socket.exists() {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        // It is there a moment before somebody listens.
        std::thread::sleep(std::time::Duration::from_millis(5));
        let ask = |path: &str| crate::http_client::over_socket(&socket, "GET", path, &Value::Null);
        let mut seen = false;
        loop {
            let health = ask("/health");
            if health.status == 200 {
                break;
            }
            seen = true;
            let text = health.refused(503);
            assert!(text.contains("being loaded") && text.contains("/livez"), "{text}");
            for path in ["/livez", "/healthz"] {
                assert_eq!(ask(path).status, 200, "{path} while it loads");
            }
        }
        assert_eq!(ask("/readyz").status, 200);
        child.kill().unwrap();
        child.wait().unwrap();
        let _ = std::fs::remove_file(&socket);
        seen
    });
    assert!(seen, "it was never seen loading");
}
