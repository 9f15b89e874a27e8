//! What an export holds: names, config.json, values, the same bytes on every run.

use super::*;

#[test]
fn each_reader_finds_its_names_and_config() {
    let tmp = tmp();
    for reader in READERS {
        let out = tmp.path().join(reader);
        let json = export(None, &out, reader, &["--format", "json"]).good().json();
        let all = tensors(&out);
        let mut text = String::new();
        for (name, (_, dtype, shape, _)) in &all {
            if name.starts_with("model.layers.0.self_attn")
                || name.contains("layers.0.mlp.experts.0.")
                || !name.contains("layers")
            {
                text += &format!("{name} {dtype:?} {shape:?}\n");
            }
        }
        text += &serde_json::to_string_pretty(&config(&out)["quantization_config"]).unwrap();
        insta::with_settings!({snapshot_suffix => reader.replace('@', "-")}, { insta::assert_snapshot!(text) });

        // Everything of the checkpoint is there, and nothing but scales besides.
        let source = tensors(&repo().join("models/tiny-shakespeare-moe"));
        let scale = if reader == "compressed-tensors" { "_scale" } else { "_scale_inv" };
        for (name, (_, dtype, shape, bytes)) in &all {
            match source.get(name) {
                Some(plain) => {
                    assert_eq!(*shape, plain.2, "{name}");
                    assert!(*dtype == Dtype::F8_E4M3 || (*dtype == plain.1 && *bytes == plain.3), "{name}");
                    assert_eq!(*dtype == Dtype::F8_E4M3, all.contains_key(&format!("{name}{scale}")), "{name}");
                }
                None => assert!(name.ends_with(scale) && *dtype == Dtype::F32, "{name}"),
            }
        }
        assert!(source.keys().all(|name| all.contains_key(name)));
        assert_eq!(json["quantized"], 112);
        assert_eq!(json["quantized"].as_u64().unwrap() + json["kept"].as_u64().unwrap(), source.len() as u64);
        assert!(out.join("tokenizer.json").is_file() && out.join("generation_config.json").is_file());
    }
}

#[test]
fn the_rest_of_config_json_keeps_its_text() {
    let tmp = tmp();
    let out = tmp.path().join("out");
    export(None, &out, "vllm@0.11", &[]).good();
    let before = std::fs::read_to_string(repo().join("models/tiny-shakespeare-moe/config.json")).unwrap();
    let after = std::fs::read_to_string(out.join("config.json")).unwrap();
    assert!(after.starts_with(before.trim_end().strip_suffix('}').unwrap().trim_end()), "{after}");
    let (mut a, b) = (config(&out), serde_json::from_str::<Value>(&before).unwrap());
    assert!(a.as_object_mut().unwrap().remove("quantization_config").is_some());
    assert_eq!(a, b);
}

#[test]
fn fp8_values_equal_those_of_quantize() {
    let tmp = tmp();
    let (out, plain) = (tmp.path().join("out"), tmp.path().join("plain.safetensors"));
    for set in ["profile=deepseek", "profile=hf"] {
        export(None, &out, "deepseek", &["--set", set, "--force"]).good();
        let source = repo().join("models/tiny-shakespeare-moe/model.safetensors");
        let (source, plain_path) = (source.to_str().unwrap(), plain.to_str().unwrap());
        patchhost(["quantize", source, plain_path, "--force", "--component", "fp8_block", "--set", set]).good();
        let (exported, quantized) = (tensors(&out), tensors(&plain));
        let fp8: Vec<&Tensor> =
            exported.values().filter(|t| t.1 == Dtype::F8_E4M3 || t.0.ends_with("_scale_inv")).collect();
        assert_eq!(fp8.len(), 2 * 112);
        assert!(fp8.iter().all(|t| quantized[&t.0] == **t));
    }
}

#[test]
fn the_same_bytes_on_every_run_and_for_any_number_of_threads() {
    let tmp = tmp();
    let (a, b, whole) = (tmp.path().join("a"), tmp.path().join("b"), tmp.path().join("whole"));
    let json =
        export(None, &a, "sglang", &["--max-shard-size", "1MB", "--threads", "1", "--format", "json"]).good().json();
    export(None, &b, "sglang", &["--max-shard-size", "1MB", "--threads", "3"]).good();
    let (fa, fb) = (files(&a), files(&b));
    assert!(fa == fb, "{:?} {:?}", fa.keys(), fb.keys());
    for file in json["files"].as_array().unwrap() {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(&fa[file["name"].as_str().unwrap()]);
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(file["sha256"], hex);
    }
    assert_eq!(json["files"].as_array().unwrap().len(), fa.len());

    // One file or many: the same tensors.
    export(None, &whole, "sglang", &[]).good();
    assert!(!whole.join("model.safetensors.index.json").exists());
    assert!(tensors(&whole) == tensors(&a));

    // The index names every tensor, weights stand with their scales, and data is aligned to its elements.
    let index: Value = serde_json::from_slice(&fa["model.safetensors.index.json"]).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), tensors(&a).len());
    for (name, file) in map {
        if let Some(weight) = name.strip_suffix("_scale_inv") {
            assert_eq!(map[weight], *file);
        }
    }
    let mut total = 0;
    let shards: Vec<&String> = fa.keys().filter(|n| n.ends_with(".safetensors")).collect();
    assert!(shards.len() > 3, "{shards:?}");
    for (i, name) in shards.iter().enumerate() {
        assert_eq!(**name, format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len()));
        let bytes = &fa[*name];
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        assert_eq!(length % 8, 0);
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        assert_eq!(header["__metadata__"]["format"], "pt");
        for (tensor, info) in header.as_object().unwrap().iter().filter(|(n, _)| *n != "__metadata__") {
            let width = match info["dtype"].as_str().unwrap() {
                "F32" => 4,
                "BF16" => 2,
                _ => 1,
            };
            assert_eq!(info["data_offsets"][0].as_u64().unwrap() % width, 0, "{tensor}");
        }
        total += bytes.len() - 8 - length;
    }
    assert_eq!(index["metadata"]["total_size"], total);
}

#[test]
fn fused_experts_are_written_one_by_one() {
    let tmp = tmp();
    let export = |name: &str| {
        let out = tmp.path().join(name);
        let model = data("oracle").join(name);
        export(Some(&model), &out, "vllm@0.11", &["--allow-partial-blocks"]).good();
        tensors(&out)
    };
    let (fused, single) = (export("qwen3_moe_fused"), export("qwen3_moe"));
    assert!(fused.contains_key("model.layers.0.mlp.experts.3.down_proj.weight_scale_inv"));
    assert!(fused == single);
}

#[test]
fn scales_of_ue8m0_are_powers_of_two_and_config_says_so() {
    let tmp = tmp();
    for (i, arguments) in [
        vec!["--scale-format", "ue8m0"],
        vec!["--set", "scale_format=ue8m0"],
        vec!["--scale-format", "ue8m0", "--component", "moe_loader"],
    ]
    .iter()
    .enumerate()
    {
        let out = tmp.path().join(i.to_string());
        export(None, &out, "vllm@0.11", arguments).good();
        assert_eq!(config(&out)["quantization_config"]["scale_fmt"], "ue8m0");
        let mut scales = 0;
        for (name, t) in tensors(&out).iter().filter(|(n, _)| n.ends_with("_scale_inv")) {
            assert_eq!(t.1, Dtype::F32, "{name}");
            for s in read_f32(&t.3) {
                assert_eq!(s.to_bits() & 0x7f_ffff, 0, "{name}: {s}");
                scales += 1;
            }
        }
        assert!(scales > 100);
    }
    let out = tmp.path().join("plain");
    export(None, &out, "vllm@0.11", &[]).good();
    assert!(config(&out)["quantization_config"].get("scale_fmt").is_none());
    let both =
        export(None, &tmp.path().join("both"), "vllm", &["--scale-format", "f32", "--set", "scale_format=ue8m0"]);
    assert!(both.refused(2, tmp.path()).contains("--set scale_format is given too"));
}

#[test]
fn tensors_that_are_not_served_are_copied() {
    let tmp = tmp();
    let model = copy_model("llama", tmp.path());
    let extra: Tensor = (
        "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
        Dtype::F32,
        vec![4],
        f32_bytes(&[1.0, 0.5, 0.25, 0.125]),
    );
    edit_tensors(&model, |t| t.push(extra.clone()));
    let out = tmp.path().join("out");
    export(Some(&model), &out, "deepseek", &["--allow-unquantized"]).good();
    assert_eq!(tensors(&out)[&extra.0], extra);
    let reason = outcome(&explain(&model, "deepseek", &[]), &extra.0)["reason"].as_str().unwrap().to_string();
    assert!(reason.contains("recomputed from config.json"), "{reason}");
}
