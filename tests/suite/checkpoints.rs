//! Checkpoints as others publish them: scales that are not used, layers that are not used, files that git-lfs did not fetch.

use std::path::Path;

use safetensors::tensor::Dtype;

use crate::http_client::Server;
use crate::support::{
    Tensor, copy_folder, copy_model, data, edit_config, edit_tensors, f32_bytes, ids_file, patchhost, read, repo, tmp,
};

/// Logits of a model folder, or the refusal.
fn logits(folder: &Path, more: &[&str]) -> Result<Vec<Tensor>, String> {
    let tmp = tmp();
    let (ids, out) = (ids_file(tmp.path(), &[1, 2, 3, 4]), tmp.path().join("out"));
    let text = |path: &Path| path.display().to_string();
    let args = ["logits", &text(folder), "--ids", &text(&ids), "--out", &text(&out)];
    let ran = patchhost(args.iter().chain(more));
    if ran.code == 0 { Ok(read(&out)) } else { Err(ran.refused(ran.code, tmp.path())) }
}

fn scale(name: &str) -> Tensor {
    (name.to_string(), Dtype::F32, vec![1], f32_bytes(&[0.5]))
}

/// As llm-compressor, ModelOpt, AutoFP8 and Quark write them.
const CACHE: [&str; 8] = [
    "model.layers.0.self_attn.k_scale",
    "model.layers.0.self_attn.v_scale",
    "model.layers.1.self_attn.attn.k_scale",
    "model.layers.1.self_attn.attn.q_scale",
    "model.layers.0.self_attn.k_proj.k_scale",
    "model.layers.0.self_attn.v_proj.v_scale",
    "model.layers.1.self_attn.kv_scale",
    "model.layers.1.self_attn.k_proj.output_scale",
];
const ACTIVATIONS: [&str; 4] = [
    "model.layers.0.self_attn.q_proj.input_scale",
    "model.layers.0.mlp.experts.1.up_proj.input_scale",
    "model.layers.1.self_attn.o_proj.activation_scale",
    "lm_head.input_scale",
];

#[test]
fn scales_of_the_cache_and_of_activations_are_declared_ignored() {
    let tmp = tmp();
    for (from, more) in [(data("fp8").join("deepseek_style"), &["--dequantize"][..]), (data("oracle/qwen3_moe"), &[])] {
        let folder = copy_folder(&from, &tmp.path().join("m"));
        let want = logits(&folder, more).unwrap();
        edit_tensors(&folder, |tensors| tensors.extend(CACHE.iter().chain(&ACTIVATIONS).map(|name| scale(name))));
        assert_eq!(logits(&folder, more).unwrap(), want);
        let path = folder.display().to_string();
        let explained = patchhost(["explain", &path, "--all"]).good().stdout;
        for name in CACHE {
            let line = explained.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            assert!(line.contains("ignored: scale of a quantized KV cache"), "{line}");
        }
        for name in ACTIVATIONS {
            let line = explained.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            assert!(line.contains("ignored: scale of activations"), "{line}");
        }
        let said = patchhost(["verify-refit", &path]).good();
        let report = patchhost(["refit", &path, "--from", &path]).good().stdout;
        assert!(report.contains("note: 8 tensors, the first of them `"), "{report}{}", said.stdout);
        assert!(report.contains("scale of activations"), "{report}");
        // Not below a layer that the model does not have, nor another scale.
        for stray in ["model.layers.9.self_attn.k_scale", "k_scale", "model.layers.0.self_attn.pre_quant_scale"] {
            let other = copy_folder(&folder, &tmp.path().join("stray"));
            edit_tensors(&other, |tensors| tensors.push(scale(stray)));
            assert!(logits(&other, more).unwrap_err().contains(stray), "{stray}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn an_unused_layer_needs_no_scales() {
    let tmp = tmp();
    let folder = copy_model("deepseek_v3", tmp.path());
    let want = logits(&folder, &["--dequantize"]).unwrap();
    let layers =
        serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(folder.join("config.json")).unwrap())
            .unwrap()["num_hidden_layers"]
            .as_u64()
            .unwrap();
    edit_config(&folder, |c| {
        c["num_nextn_predict_layers"] = 1.into();
        c["quantization_config"] = serde_json::json!({
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [32, 32],
        });
    });
    let mtp = |leaf: &str| format!("model.layers.{layers}.{leaf}");
    let codes = |name: String| (name, Dtype::F8_E4M3, vec![32, 64], vec![0x38; 32 * 64]);
    edit_tensors(&folder, |tensors| {
        tensors.push(codes(mtp("eh_proj.weight")));
        tensors.push(codes(mtp("self_attn.o_proj.weight")));
        // One that has scales, and scales that have none.
        tensors.push((mtp("self_attn.o_proj.weight_scale_inv"), Dtype::F32, vec![1, 2], f32_bytes(&[1.0, 1.0])));
        tensors.push(scale(&mtp("mlp.gate_proj.weight_scale_inv")));
    });
    for more in [&["--dequantize"][..], &[]] {
        assert_eq!(logits(&folder, more).unwrap(), want, "{more:?}");
    }
    // A weight that is used needs them still.
    edit_tensors(&folder, |tensors| {
        let o = tensors.iter_mut().find(|t| t.0 == "model.layers.0.self_attn.o_proj.weight").unwrap();
        (o.1, o.3) = (Dtype::F8_E4M3, vec![0x38; o.2.iter().product()]);
    });
    assert!(logits(&folder, &["--dequantize"]).unwrap_err().contains("its scale is missing"));
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 4965799096\n";

#[test]
fn a_pointer_of_git_lfs_is_named_wherever_a_file_is_read() {
    let tmp = tmp();
    let model = repo().join("models/tiny-shakespeare-moe");
    let text = |path: &Path| path.display().to_string();
    let pulled = |said: &str| {
        assert!(said.contains("pointer of git-lfs") && said.contains("run `git lfs pull`"), "{said}");
        assert!(said.contains("4965799096 bytes"), "{said}");
    };
    for name in
        ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    {
        let folder = copy_folder(&model, &tmp.path().join(name));
        std::fs::write(folder.join(name), POINTER).unwrap();
        let said = patchhost(["run", &text(&folder), "--max-tokens", "1"]);
        let said = said.refused(said.code, tmp.path());
        assert!(said.contains(name), "{said}");
        pulled(&said);
        let serve = Server::try_start(&[&text(&folder)]).map(|_| ()).unwrap_err();
        assert!(serve.contains("pointer of git-lfs"), "{name}: {serve}");
    }
    let shards = copy_folder(&model, &tmp.path().join("shards"));
    std::fs::rename(shards.join("model.safetensors"), shards.join("model-00001-of-00001.safetensors")).unwrap();
    std::fs::write(shards.join("model.safetensors.index.json"), POINTER).unwrap();
    pulled(&patchhost(["explain", &text(&shards)]).refused(2, tmp.path()));
    let pointer = tmp.path().join("x.wasm");
    std::fs::write(&pointer, POINTER).unwrap();
    pulled(&patchhost(["explain", "--component", &text(&pointer)]).refused(2, tmp.path()));
    let adapter = tmp.path().join("adapter");
    std::fs::create_dir_all(&adapter).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::write(adapter.join("adapter_config.json"), "{}").unwrap();
        std::fs::write(adapter.join("adapter_model.safetensors"), POINTER).unwrap();
        std::fs::write(adapter.join(name), POINTER).unwrap();
        let lora = format!("a={}", text(&adapter));
        pulled(&patchhost(["run", "--max-tokens", "1", "--lora", &lora]).refused(2, tmp.path()));
    }
    let weights = tmp.path().join("weights");
    std::fs::create_dir_all(&weights).unwrap();
    std::fs::write(weights.join("model.safetensors"), POINTER).unwrap();
    let server = Server::start(&["--root", &text(&weights)]);
    let disk = serde_json::json!({ "model_path": "." });
    pulled(&server.json("/update_weights_from_disk", &disk).refused(400));
    pulled(&server.bytes("/update_weights", POINTER.as_bytes()).refused(400));
}

/// Two shards hold a tensor, and the index says which of them counts.
#[test]
fn the_index_decides_between_shards() {
    let tmp = tmp();
    let folder = copy_model("qwen3_moe", tmp.path());
    let tensors = read(&folder.join("model.safetensors"));
    let want = logits(&folder, &[]).unwrap();
    let key = "model.layers.1.self_attn.o_proj.weight";
    let stale: Vec<Tensor> = tensors
        .iter()
        .cloned()
        .map(|mut t| {
            if t.0 == key {
                t.3.iter_mut().skip(1).step_by(2).for_each(|b| *b ^= 0x80);
            }
            t
        })
        .collect();
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    crate::support::write(&folder.join("base.safetensors"), &stale);
    let overlay: Vec<Tensor> = tensors.iter().filter(|t| t.0 == key).cloned().collect();
    crate::support::write(&folder.join("overlay.safetensors"), &overlay);
    let index = |file: &str| {
        let mut map: serde_json::Map<String, serde_json::Value> =
            tensors.iter().map(|t| (t.0.clone(), "base.safetensors".into())).collect();
        map.insert(key.to_string(), file.into());
        let text = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
        std::fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
    };
    index("overlay.safetensors");
    assert_eq!(logits(&folder, &[]).unwrap(), want);
    index("base.safetensors");
    assert_ne!(logits(&folder, &[]).unwrap(), want);
}
