//! Adapters that come over HTTP: from tensors and from a folder in a root.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{file, step};
use crate::http_client::{Server, base64};
use crate::support::{Tensor, bf16_bytes, normal, patchhost};

const RANK: usize = 2;

/// An adapter of the query projections of the bundled model, as PEFT saves it.
fn adapter(seed: u64) -> (Value, Vec<Tensor>) {
    let mut tensors = Vec::new();
    for (name, _, shape, _) in step(0).iter().filter(|t| t.0.ends_with("q_proj.weight")) {
        let module = format!("base_model.model.{}", name.strip_suffix(".weight").unwrap());
        for (side, dims) in [("A", [RANK, shape[1]]), ("B", [shape[0], RANK])] {
            let values: Vec<f32> =
                normal(dims[0] * dims[1], seed + tensors.len() as u64).iter().map(|v| v * 20.0).collect();
            tensors.push((
                format!("{module}.lora_{side}.weight"),
                safetensors::Dtype::BF16,
                dims.to_vec(),
                bf16_bytes(&values),
            ));
        }
    }
    let config =
        json!({ "peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none" });
    (config, tensors)
}

fn tokens(server: &Server, model: Option<&str>) -> Value {
    let params = json!({ "max_tokens": 8, "temperature": 0.0, "ignore_eos": true, "logprobs": 0 });
    let body = json!({ "token_ids": [9, 8, 7, 6], "sampling_params": params, "model": model });
    server.json("/inference/v1/generate", &body).good()["choices"][0].clone()
}

#[test]
fn tensors_and_folders_give_the_same_adapter() {
    let tmp = tempfile::tempdir().unwrap();
    let server = Server::start(&["--root", tmp.path().to_str().unwrap()]);
    let (config, tensors) = adapter(1);
    let plain = tokens(&server, None);

    let sums: serde_json::Map<String, Value> = tensors
        .iter()
        .map(|t| (t.0.clone(), json!(Sha256::digest(&t.3).iter().map(|b| format!("{b:02x}")).collect::<String>())))
        .collect();
    let body = json!({ "lora_name": "a", "config_dict": config, "serialized_named_tensors": [base64(&file(&tensors, &[]))],
        "expected_checksums": sums });
    let answer = server.json("/load_lora_adapter_from_tensors", &body).good();
    assert!(answer["loaded_adapters"]["a"].is_u64(), "{answer}");
    let with = tokens(&server, Some("a"));
    assert_ne!(with["logprobs"], plain["logprobs"]);
    assert_eq!(with["weight_versions"][0]["adapter"]["name"], "a");
    assert_eq!(tokens(&server, None)["logprobs"], plain["logprobs"], "without it nothing changes");

    // As the body itself, with what adapter_config.json says in the URL.
    let url = format!("/load_lora_adapter_from_tensors?lora_name=b&config_dict={}", escape(&config.to_string()));
    server.bytes(&url, &file(&tensors, &[])).good();
    assert_eq!(tokens(&server, Some("b"))["logprobs"], with["logprobs"]);

    // From a folder.
    std::fs::create_dir(tmp.path().join("peft")).unwrap();
    super::save(&tmp.path().join("peft/adapter_model.safetensors"), &tensors, &[]);
    std::fs::write(tmp.path().join("peft/adapter_config.json"), config.to_string()).unwrap();
    let answer = server.json("/v1/load_lora_adapter", &json!({ "lora_name": "c", "lora_path": "peft" }));
    assert_eq!((answer.status, answer.text.as_str()), (200, "Success: LoRA adapter 'c' added successfully."));
    assert_eq!(tokens(&server, Some("c"))["logprobs"], with["logprobs"]);
    let again = server.json("/v1/load_lora_adapter", &json!({ "lora_name": "c", "lora_path": "peft" })).refused(400);
    assert!(again.contains("load_inplace"), "{again}");
    let inplace = json!({ "lora_name": "c", "lora_path": "peft", "load_inplace": true });
    assert_eq!(server.json("/v1/load_lora_adapter", &inplace).status, 200);

    // SGLang names it in `lora_path`.
    let body = json!({ "input_ids": [9, 8, 7, 6], "lora_path": "a", "sampling_params": { "max_new_tokens": 8, "temperature": 0, "ignore_eos": true } });
    assert_eq!(server.json("/generate", &body).good()["output_ids"], with["token_ids"]);

    let models = server.get("/v1/models").good();
    let names: Vec<&str> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert!(["a", "b", "c"].iter().all(|n| names.contains(n)), "{names:?}");
    assert_eq!(server.json("/v1/unload_lora_adapter", &json!({ "lora_name": "c" })).status, 200);
    server.json("/v1/unload_lora_adapter", &json!({ "lora_name": "c" })).refused(404);
    let left = server.json("/unload_lora_adapter", &json!({ "lora_name": "b" })).good();
    assert_eq!(left["loaded_adapters"].as_object().unwrap().len(), 1);
    assert_eq!(server.json("/inference/v1/generate", &json!({ "token_ids": [1], "model": "c" })).status, 404);
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[test]
fn a_wrong_adapter_is_refused_whole() {
    let server = Server::start(&[]);
    let (config, tensors) = adapter(1);
    let load = |config: &Value, tensors: &[Tensor], more: Value| {
        let mut body =
            json!({ "lora_name": "a", "config_dict": config, "serialized_named_tensors": base64(&file(tensors, &[])) });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.json("/load_lora_adapter_from_tensors", &body)
    };
    assert!(load(&config, &tensors[1..], json!({})).refused(400).contains("it is missing"));
    let wrong = json!({ "expected_checksums": { tensors[0].0.clone(): "00" } });
    assert!(load(&config, &tensors, wrong).refused(400).contains("00 was expected"));
    let absent = json!({ "expected_checksums": { "nothing": "00" } });
    assert!(load(&config, &tensors, absent).refused(400).contains("did not come"));
    let mut nan = tensors.clone();
    nan[0].3[..2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    load(&config, &nan, json!({})).refused(400);
    let mut rank = config.clone();
    rank["r"] = json!(3);
    load(&rank, &tensors, json!({})).refused(400);
    load(&json!({}), &tensors, json!({})).refused(400);
    load(&config, &tensors, json!({ "load_format": "my.loader" })).refused(400);
    for name in ["", "a b", "tiny-shakespeare-moe"] {
        load(&config, &tensors, json!({ "lora_name": name })).refused(400);
    }
    assert_eq!(server.json("/inference/v1/generate", &json!({ "token_ids": [1], "model": "a" })).status, 404);
}

/// What an adapter's config says and the host does not apply is refused by name at every door, whatever the patch says.
#[test]
fn settings_that_are_not_applied_are_refused_at_every_door() {
    let tmp = tempfile::tempdir().unwrap();
    let server = Server::start(&["--root", tmp.path().to_str().unwrap()]);
    let (config, tensors) = adapter(1);
    let folder = tmp.path().join("peft");
    std::fs::create_dir(&folder).unwrap();
    super::save(&folder.join("adapter_model.safetensors"), &tensors, &[]);
    let encoded = base64(&file(&tensors, &[]));
    for (name, value) in [
        ("alora_invocation_tokens", json!([60, 124])),
        ("layer_replication", json!([[0, 1], [0, 1]])),
        ("peft_type", json!("IA3")),
        ("peft_type", json!("LOHA")),
        ("lora_bias", json!(true)),
        ("use_dora", json!(true)),
        ("use_bdlora", json!({ "nblocks": 2 })),
        ("init_lora_weights", json!("pissa")),
        ("rank_pattern", json!({ "q_proj": 4 })),
        ("trainable_token_indices", json!([1])),
        ("field_of_tomorrow", json!(2)),
    ] {
        let mut config = config.clone();
        config[name] = value;
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        let from_folder = json!({ "lora_name": "x", "lora_path": "peft" });
        let from_tensors = json!({ "lora_name": "x", "config_dict": config, "serialized_named_tensors": encoded });
        for (path, body) in [
            ("/v1/load_lora_adapter", &from_folder),
            ("/load_lora_adapter", &from_folder),
            ("/load_lora_adapter_from_tensors", &from_tensors),
        ] {
            let answer = server.json(path, body);
            assert!((400..500).contains(&answer.status), "{path}: {}", answer.text);
            let text = answer.refused(answer.status);
            assert!(text.contains(&format!("`{name}`")), "{path}: {text}");
        }
        let lora = folder.to_str().unwrap();
        let text = patchhost(["run", "--lora", lora, "--max-tokens", "1", "--no-kl"]).refused(1, tmp.path());
        assert!(text.contains(&format!("`{name}`")), "run: {text}");
    }
    assert_eq!(server.json("/inference/v1/generate", &json!({ "token_ids": [1], "model": "x" })).status, 404);
}
