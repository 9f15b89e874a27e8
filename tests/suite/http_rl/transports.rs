//! Weights in every transport, bits compared with a refit that is made here.

use serde_json::{Value, json};

use super::{expected, file, save, step};
use crate::http_client::{Server, base64};

const FP8: [&str; 2] = ["moe_loader", "fp8_block"];

#[test]
fn an_update_in_chunks_is_bit_for_bit_a_local_refit() {
    let server = Server::start(&["--component", "fp8_block"]);
    let tensors = step(1);
    assert_eq!(server.checksums(), expected(&step(0), &FP8), "the first load");
    let before = server.checksums();
    server.json("/start_weight_update", &json!({ "weight_version": 7 })).good();
    // Whole tensors, in several bodies.
    let (first, rest) = tensors.split_at(40);
    let received = server.bytes("/update_weights", &file(first, &[])).good();
    assert_eq!(received["tensors"], 40, "{received}");
    // The largest of the rest in two parts, each with its range.
    let (at, large) = rest.iter().enumerate().max_by_key(|(_, t)| t.3.len()).unwrap();
    let cut = large.3.len() / 2 - 1;
    for (start, part) in [(cut, &large.3[cut..]), (0, &large.3[..cut])] {
        let piece = (large.0.clone(), safetensors::Dtype::U8, vec![part.len()], part.to_vec());
        let dims: Vec<String> = large.2.iter().map(ToString::to_string).collect();
        let range = (format!("{}@range", large.0), format!("BF16[{}] {start}", dims.join(",")));
        server.bytes("/update_weights", &file(&[piece], &[range])).good();
    }
    // One as raw bytes that the URL describes.
    let others: Vec<_> = rest.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, t)| t.clone()).collect();
    let (raw, others) = others.split_first().unwrap();
    let dims: Vec<String> = raw.2.iter().map(ToString::to_string).collect();
    let url = format!("/update_weights?name={}&dtype=torch.bfloat16&shape={}", raw.0, dims.join(","));
    server.bytes(&url, &raw.3).good();
    server.bytes("/update_weights", &file(others, &[])).good();
    assert_eq!(server.checksums(), before, "nothing is live before the end");
    let done = server.post("/finish_weight_update").good();
    assert_eq!(done["weight_version"], "7", "{done}");
    assert!(done["quantized"].as_u64().unwrap() > 0);
    assert_eq!(server.checksums(), expected(&tensors, &FP8));
    let info = server.get("/weight_info").good();
    assert_eq!((&info["weight_version"], &info["patch_set"]), (&json!("7"), &done["patch_set"]));
}

/// Each transport brings other weights, so that none can pass because of the one before.
#[test]
fn every_transport_brings_the_same_bits() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("root");
    std::fs::create_dir_all(&root).unwrap();
    let server = Server::start(&["--root", root.to_str().unwrap()]);
    let plain = ["moe_loader"];
    let mut n = 0;
    let mut next = || {
        n += 1;
        step(n)
    };
    let same = |tensors: &[crate::support::Tensor], what: &str| {
        assert_eq!(server.checksums(), expected(tensors, &plain), "{what}");
    };
    let packed = |tensors: &[crate::support::Tensor]| {
        let names: Vec<_> = tensors.iter().map(|t| t.0.clone()).collect();
        let shapes: Vec<_> = tensors.iter().map(|t| t.2.clone()).collect();
        let bytes: Vec<u8> = tensors.iter().flat_map(|t| t.3.clone()).collect();
        (json!({ "names": names, "dtype_names": vec!["bfloat16"; names.len()], "shapes": shapes }), bytes)
    };

    let t = next();
    server.bytes("/update_weights?weight_version=body", &file(&t, &[])).good();
    same(&t, "safetensors body");
    assert_eq!(server.get("/weight_info").good()["weight_version"], "body");

    let t = next();
    let (mut info, bytes) = packed(&t);
    info["data"] = json!(base64(&bytes));
    server.json("/update_weights", &json!({ "update_info": info })).good();
    same(&t, "packed, base64 in JSON");

    let t = next();
    let (header, bytes) = packed(&t);
    let mut frame = (header.to_string().len() as u64).to_le_bytes().to_vec();
    frame.extend(header.to_string().bytes());
    frame.extend(bytes);
    server.send("POST", "/update_weights", &[("Content-Type", "application/x-bucket")], &frame).good();
    same(&t, "framed");

    let t = next();
    // verl's bucket in a file (its shared memory), described by JSON.
    let (_, bytes) = packed(&t);
    std::fs::write(root.join("bucket"), &bytes).unwrap();
    let mut offset = 0;
    let mut meta = serde_json::Map::new();
    for (name, _, shape, data) in &t {
        meta.insert(name.clone(), json!({ "dtype": "torch.bfloat16", "shape": shape, "offset": offset }));
        offset += data.len();
    }
    server.json("/update_weights", &json!({ "update_info": { "bucket_meta": meta, "path": "bucket" } })).good();
    same(&t, "a bucket in a root");

    let t = next();
    let text = base64(&file(&t, &[]));
    let body = json!({ "serialized_named_tensors": [text], "weight_version": "sg", "flush_cache": true });
    let answer = server.json("/update_weights_from_tensor", &body).good();
    assert_eq!((&answer["success"], &answer["weight_version"]), (&json!(true), &json!("sg")));
    same(&t, "SGLang, base64");

    let t = next();
    std::fs::create_dir_all(root.join("ckpt")).unwrap();
    save(&root.join("ckpt/model.safetensors"), &t, &[]);
    let absolute = root.join("ckpt").display().to_string();
    for path in ["ckpt", "ckpt/model.safetensors", &absolute] {
        let answer = server.json("/update_weights_from_disk", &json!({ "model_path": path, "token_step": 12 })).good();
        assert_eq!(answer["weight_version"], "12");
    }
    same(&t, "SGLang, disk");

    let t = next();
    save(&root.join("one.safetensors"), &t, &[]);
    server.json("/update_weights", &json!({ "update_info": { "path": "one.safetensors" } })).good();
    same(&t, "vLLM, path");

    let t = next();
    server.post("/begin_weight_update").good();
    for half in t.chunks(70) {
        let body = json!({ "serialized_named_tensors": base64(&file(half, &[])), "load_format": "direct" });
        server.json("/update_weights_from_tensor", &body).good();
    }
    server.json("/end_weight_update", &json!({ "weight_version": "ended" })).good();
    same(&t, "SGLang, in parts");
    assert_eq!(server.get("/get_model_info").good()["weight_version"], "ended");

    let t = next();
    for (i, (name, _, shape, data)) in t.iter().enumerate() {
        let dims: Vec<String> = shape.iter().map(ToString::to_string).collect();
        match i % 2 {
            0 => {
                let url = format!("/update_named_param/?name={name}&dtype=torch.bfloat16&shape={}", dims.join(","));
                server.bytes(&url, data).good()
            }
            _ => {
                let body = json!({ "name": name, "dtype": "torch.bfloat16", "shape": shape, "data": base64(data) });
                server.json("/update_named_param/", &body).good()
            }
        };
    }
    let answer = server.post("/reset_prefix_cache/").good();
    assert!(answer["published"]["patch_set"].is_string(), "{answer}");
    same(&t, "TRL");
}

#[test]
fn versions_and_deltas_are_followed() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = |name: &str| tmp.path().join(name);
    for (name, n) in [("a", 0), ("b", 1), ("c", 2)] {
        std::fs::create_dir_all(dir(name)).unwrap();
        save(&dir(name).join("model.safetensors"), &step(n), &[]);
    }
    for companion in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let from = crate::support::repo().join("models/tiny-shakespeare-moe").join(companion);
        for name in ["a", "b"] {
            std::fs::copy(&from, dir(name).join(companion)).unwrap();
        }
    }
    let out = tmp.path().join("versions");
    let text = |p: &std::path::Path| p.display().to_string();
    for (model, from, base) in [("a", "b", "0"), ("b", "c", "1")] {
        let (model, from, out) = (text(&dir(model)), text(&dir(from)), text(&out));
        let args = ["refit", &model, "--from", &from, "--base-version", base, "--save-delta", &out];
        crate::support::patchhost(args).good();
    }
    let server = Server::start(&["--root", out.to_str().unwrap()]);
    let update = |body: Value| server.json("/update_weights_from_disk", &body);
    // The second builds on the first, which is not held.
    let whole = text(&out);
    let answer = update(json!({ "model_path": format!("{whole}/weight_v000001") })).good();
    assert_eq!(answer["weight_version"], "000001", "{answer}");
    assert_eq!(server.checksums(), expected(&step(1), &["moe_loader"]));
    let refused = update(json!({ "model_path": format!("{whole}/weight_v000001") })).refused(409);
    assert!(refused.contains("version 000001 is held"), "{refused}");
    let answer = update(json!({ "model_path": whole })).good();
    assert_eq!(answer["weight_version"], "000002", "{answer}");
    assert_eq!(server.checksums(), expected(&step(2), &["moe_loader"]));
}

#[test]
fn values_come_back_by_either_name() {
    let server = Server::start(&["--component", "fp8_block"]);
    let tensors = step(0);
    let by_name =
        |name: &str, n: usize| server.json("/get_weights_by_name", &json!({ "name": name, "truncate_size": n })).good();
    let find = |name: &str| tensors.iter().find(|t| t.0 == name).unwrap();
    // A norm stays bf16: exactly the values that were sent.
    let norm = find("model.norm.weight");
    let values: Vec<f32> = serde_json::from_value(by_name("model.norm.weight", 1000)).unwrap();
    let sent: Vec<f32> = norm.3.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect();
    assert_eq!(values, sent);
    // A projection became FP8: near the values, under the checkpoint's name and as a part of the runtime's.
    let k = find("model.layers.0.self_attn.k_proj.weight");
    let rows: Vec<Vec<f32>> = serde_json::from_value(by_name(&k.0, 3)).unwrap();
    assert_eq!((rows.len(), rows[0].len()), (3, k.2[1]));
    let near = |value: f32, i: usize| {
        let sent = half::bf16::from_le_bytes(k.3.as_chunks::<2>().0[i]).to_f32();
        (value - sent).abs() <= 0.07 * sent.abs() + 1e-3
    };
    assert!(rows.iter().flatten().enumerate().all(|(i, v)| near(*v, i)));
    let q_rows = find("model.layers.0.self_attn.q_proj.weight").2[0];
    let fused: Vec<Vec<f32>> =
        serde_json::from_value(by_name("model.layers.0.self_attn.qkv_proj.weight", q_rows + 3)).unwrap();
    assert_eq!(fused[q_rows..], rows[..]);
    let experts = by_name("model.layers.0.mlp.experts.w13_weight", 2);
    assert_eq!(experts.as_array().unwrap().len(), 2);
    let refused = server.json("/get_weights_by_name", &json!({ "name": "model.norm.weigth" })).refused(404);
    assert!(refused.contains("did you mean `model.norm.weight`"), "{refused}");
}

#[test]
fn the_weight_checker_sees_what_changed() {
    let server = Server::start(&[]);
    let check = |body: Value| server.json("/weight_checker", &body);
    assert!(check(json!({ "action": "compare" })).refused(400).contains("no baseline"));
    let baseline = server.checksums();
    assert_eq!(check(json!({ "action": "reset" })).good()["status"], "reset");
    assert_eq!(check(json!({ "action": "compare" })).good()["match"], true);
    let mut tensors = step(0);
    let norm = tensors.iter_mut().find(|t| t.0 == "model.norm.weight").unwrap();
    norm.3[0] ^= 1;
    server.bytes("/update_weights", &file(&tensors, &[])).good();
    for body in [json!({ "action": "compare" }), json!({ "action": "compare", "baseline": baseline })] {
        let found = check(body).good();
        assert_eq!((&found["match"], &found["mismatches"]), (&json!(false), &json!(["model.norm.weight"])));
    }
    let sglang = |body: Value| server.json("/weights_checker", &body);
    assert!(sglang(json!({ "action": "compare" })).refused(400).contains("model.norm.weight"));
    sglang(json!({ "action": "compare", "skip_tensor_list": ["model.norm.weight"] })).good();
    sglang(json!({ "action": "snapshot" })).good();
    sglang(json!({ "action": "compare" })).good();
    // A new name, the same weights.
    let renamed = server.json("/update_weight_version", &json!({ "new_version": "renamed" })).good();
    assert_eq!((&renamed["success"], &renamed["new_version"]), (&json!(true), &json!("renamed")));
    assert_eq!(server.get("/weight_info").good()["weight_version"], "renamed");
    let body = json!({ "input_ids": [1, 2], "sampling_params": { "max_new_tokens": 2, "ignore_eos": true } });
    let meta = server.json("/generate", &body).good()["meta_info"].clone();
    assert_eq!(
        (&meta["weight_version"], &meta["weight_versions"][0]["version"]),
        (&json!("renamed"), &json!("renamed"))
    );
    sglang(json!({ "action": "compare" })).good();
}
