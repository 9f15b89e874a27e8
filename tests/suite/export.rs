//! `patchhost export`: what its readers find, and what happens when it is interrupted or misused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{
    Ran, Tensor, bf16_bytes, copy_model, data, edit_tensors, f32_bytes, normal, patchhost, read, read_f32, repo, tmp,
    write,
};
use safetensors::tensor::Dtype;
use serde_json::Value;

const READERS: [&str; 6] = ["transformers", "vllm@0.10", "vllm@0.11", "sglang", "compressed-tensors", "deepseek"];

/// Exports `model` (the bundled one where none) to `out`.
fn export(model: Option<&Path>, out: &Path, reader: &str, extra: &[&str]) -> Ran {
    let mut args: Vec<String> = vec!["export".into()];
    args.extend(model.map(|m| m.display().to_string()));
    args.push(out.display().to_string());
    args.extend(["--component", "fp8_block.wasm", "--for", reader].map(String::from));
    args.extend(extra.iter().map(|s| (*s).to_string()));
    patchhost(args)
}

fn config(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
}

fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    read(folder).into_iter().map(|t| (t.0.clone(), t)).collect()
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(p).unwrap())).collect()
}

/// Names in a folder, hidden ones too.
fn names(folder: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

/// What `explain --for` says about one tensor.
fn outcome(explained: &Value, name: &str) -> Value {
    let all = explained["tensors"].as_array().unwrap();
    all.iter().find(|t| t["name"] == name).unwrap_or_else(|| panic!("no {name}"))["outcome"].clone()
}

fn explain(model: &Path, reader: &str, extra: &[&str]) -> Value {
    let args = ["explain", model.to_str().unwrap(), "--for", reader, "--format", "json", "--component", "fp8_block"];
    patchhost(args.iter().chain(extra)).good().json()
}

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
        patchhost(["quantize", source, plain_path, "--component", "fp8_block", "--set", set]).good();
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
fn partial_blocks_stay_unless_allowed_and_never_for_transformers() {
    let tmp = tmp();
    let model = data("oracle").join("llama");
    let name = "model.layers.0.mlp.down_proj.weight";
    let kept = outcome(&explain(&model, "vllm@0.11", &[]), name);
    assert_eq!(kept["kind"], "kept");
    assert!(kept["reason"].as_str().unwrap().contains("not a multiple of the 128x128 block"), "{kept}");
    let allowed = outcome(&explain(&model, "vllm@0.11", &["--allow-partial-blocks"]), name);
    assert_eq!(allowed["kind"], "quantized");

    let out = tmp.path().join("out");
    let ran = export(Some(&model), &out, "sglang", &["--allow-partial-blocks"]).good();
    assert!(ran.stderr.contains("warning") && ran.stderr.contains("transformers"), "{}", ran.stderr);
    assert_eq!(tensors(&out)[name].1, Dtype::F8_E4M3);
    let no = export(Some(&model), &tmp.path().join("no"), "transformers", &["--allow-partial-blocks"]);
    insta::assert_snapshot!(no.refused(2, tmp.path()));
    // Nothing to quantize is said, and is a model all the same: every linear module is listed.
    let none = export(Some(&model), &tmp.path().join("none"), "transformers", &[]).good();
    assert!(none.stderr.contains("no tensor becomes FP8"), "{}", none.stderr);
    let listed = config(&tmp.path().join("none"))["quantization_config"]["modules_to_not_convert"].clone();
    assert!(listed.as_array().unwrap().contains(&"model.layers.1.self_attn.q_proj".into()), "{listed}");
    assert_eq!(tensors(&tmp.path().join("none")), tensors(&model));
}

#[test]
fn members_of_a_fused_module_follow_the_one_that_is_kept() {
    let model = repo().join("models/tiny-shakespeare-moe");
    let kinds = |reader: &str, keep: &str, names: &[&str]| -> Vec<String> {
        let explained = explain(&model, reader, &["--set", keep]);
        names.iter().map(|n| outcome(&explained, n)["kind"].as_str().unwrap().to_string()).collect()
    };
    let q = "model.layers.1.self_attn.q_proj.weight";
    let v = "model.layers.1.self_attn.v_proj.weight";
    let other = "model.layers.2.self_attn.v_proj.weight";
    let keep = format!("keep={q}");
    for (reader, v_kind) in
        [("vllm@0.11", "kept"), ("sglang", "kept"), ("transformers", "quantized"), ("deepseek", "quantized")]
    {
        assert_eq!(kinds(reader, &keep, &[q, v, other]), ["kept", v_kind, "quantized"], "{reader}");
    }
    let reason = outcome(&explain(&model, "vllm@0.11", &["--set", &keep]), v)["reason"].as_str().unwrap().to_string();
    assert!(reason.contains(q) && reason.contains("qkv_proj") && reason.contains("setting keep"), "{reason}");

    let one = "model.layers.0.mlp.experts.5.up_proj.weight";
    let sibling = "model.layers.0.mlp.experts.2.down_proj.weight";
    let elsewhere = "model.layers.1.mlp.experts.2.down_proj.weight";
    let keep = format!("keep={one}");
    for (reader, kind) in [("vllm@0.10", "kept"), ("transformers", "kept"), ("deepseek", "quantized")] {
        assert_eq!(kinds(reader, &keep, &[one, sibling, elsewhere]), ["kept", kind, "quantized"], "{reader}");
    }
    // Readers that stack experts look for the module that holds them.
    let tmp = tmp();
    let out = tmp.path().join("out");
    export(None, &out, "vllm@0.11", &["--set", &keep]).good();
    let ignored = config(&out)["quantization_config"]["ignored_layers"].clone();
    let ignored: Vec<&str> = ignored.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(
        ignored.contains(&"model.layers.0.mlp.experts") && ignored.contains(&"model.layers.0.mlp.experts.2.down_proj")
    );
    assert!(!ignored.iter().any(|m| m.starts_with("model.layers.1.mlp.experts")), "{ignored:?}");
}

#[test]
fn roles_that_no_reader_takes_in_fp8_stay() {
    let model = repo().join("models/tiny-shakespeare-moe");
    let explained = explain(&model, "vllm@0.11", &["--set", "quantize=*.mlp.gate.weight,model.embed_tokens.weight"]);
    for name in ["model.layers.0.mlp.gate.weight", "model.embed_tokens.weight"] {
        let o = outcome(&explained, name);
        assert_eq!(o["kind"], "kept", "{o}");
        assert!(o["reason"].as_str().unwrap().contains("unquantized only"), "{o}");
    }
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
fn tensor_parallel_sizes_are_checked_before_anything_is_written() {
    let tmp = tmp();
    let out = tmp.path().join("out");
    let no = export(None, &out, "vllm@0.11", &["--check-tp", "1,2,4,8"]);
    assert!(no.stdout.contains("model.layers.*.mlp.experts") && no.stdout.contains(" no"), "{}", no.stdout);
    insta::assert_snapshot!(no.refused(1, tmp.path()));
    assert!(names(tmp.path()).is_empty());
    let json = export(None, &out, "vllm@0.11", &["--check-tp", "1", "--format", "json"]).good().json();
    let rows = json["tensor_parallel"]["modules"].as_array().unwrap();
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert!(rows.iter().all(|r| r["problems"] == serde_json::json!([null]) && r["count"] == 4));
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
    export(Some(&model), &out, "deepseek", &[]).good();
    assert_eq!(tensors(&out)[&extra.0], extra);
    let reason = outcome(&explain(&model, "deepseek", &[]), &extra.0)["reason"].as_str().unwrap().to_string();
    assert!(reason.contains("recomputed from config.json"), "{reason}");
}

#[test]
fn nothing_is_overwritten_that_should_stay() {
    let tmp = tmp();
    let at = |name: &str| tmp.path().join(name);
    let model = copy_model("llama", tmp.path());
    let before = files(&model);
    std::fs::create_dir(at("empty")).unwrap();
    export(Some(&model), &at("empty"), "transformers", &[]).good();
    std::fs::write(at("file"), "x").unwrap();
    std::fs::create_dir(at("photos")).unwrap();
    std::fs::write(at("photos/cat.jpg"), "cat").unwrap();
    std::fs::create_dir_all(at("repo/.git")).unwrap();
    std::fs::write(at("repo/config.json"), "{}").unwrap();
    let link = at("link");
    std::os::unix::fs::symlink(&model, &link).unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    let mut text = String::new();
    for (label, out, extra) in [
        ("is MODEL", model.clone(), "--force"),
        ("is MODEL by a link", link, "--force"),
        ("inside MODEL", model.join("out"), "--force"),
        ("around MODEL", tmp.path().to_path_buf(), "--force"),
        ("a file", at("file"), "--force"),
        ("not empty", at("empty"), "--threads=1"),
        ("not a model", at("photos"), "--force"),
        ("with a folder", at("repo"), "--force"),
        ("parent missing", at("a/b"), "--force"),
        ("a dangling link", at("dangling"), "--force"),
        ("the root", PathBuf::from("/"), "--force"),
    ] {
        let refused = export(Some(&model), &out, "transformers", &[extra]).refused(2, tmp.path());
        text += &format!("# {label}\n{refused}\n\n");
    }
    insta::assert_snapshot!(text);
    assert_eq!(files(&model), before);
    assert_eq!(std::fs::read_to_string(at("photos/cat.jpg")).unwrap(), "cat");
    assert!(names(tmp.path()).iter().all(|n| !n.starts_with('.')), "{:?}", names(tmp.path()));
}

#[test]
fn force_replaces_a_model_by_another_as_a_whole() {
    let tmp = tmp();
    let out = tmp.path().join("out");
    export(None, &out, "vllm@0.11", &["--max-shard-size", "1MB"]).good();
    export(Some(&data("oracle").join("llama")), &out, "sglang", &["--force"]).good();
    assert_eq!(names(&out), ["config.json", "generation_config.json", "model.safetensors"]);
    assert_eq!(names(tmp.path()), ["out"]);
}

#[test]
fn bad_arguments_are_refused_before_anything_is_written() {
    let tmp = tmp();
    let out = tmp.path().join("out");
    let mut text = String::new();
    for (reader, extra) in [
        ("vllm@0.2", &[][..]),
        ("tgi", &[]),
        ("vllm@", &[]),
        ("vllm", &["--check-tp", "1,zero"]),
        ("vllm", &["--check-tp", "2,2"]),
        ("vllm", &["--check-tp", ""]),
        ("vllm", &["--max-shard-size", "1", "--set", "keep=*"]),
    ] {
        let ran = export(None, &out, reader, extra);
        if ran.code == 0 {
            // One byte a file is silly, but 134 files are within the limit.
            assert!(out.join("model-00134-of-00134.safetensors").is_file(), "{:?}", names(&out));
            std::fs::remove_dir_all(&out).unwrap();
            continue;
        }
        text += &format!("# --for {reader} {}\n{}\n\n", extra.join(" "), ran.refused(2, tmp.path()));
    }
    let none = patchhost(["export", out.to_str().unwrap(), "--for", "vllm"]);
    text += &format!("# no patch\n{}\n", none.refused(2, tmp.path()));
    insta::assert_snapshot!(text);
    assert!(names(tmp.path()).is_empty());
}

#[test]
fn a_bad_weight_leaves_nothing_behind() {
    let tmp = tmp();
    let model = random_llama(tmp.path(), 128, 1);
    edit_tensors(&model, |tensors| {
        let t = tensors.iter_mut().find(|t| t.0 == "model.layers.0.mlp.up_proj.weight").unwrap();
        t.3[200..202].copy_from_slice(&[0xc0, 0x7f]);
    });
    let refused = export(Some(&model), &tmp.path().join("out"), "deepseek", &[]).refused(1, tmp.path());
    assert!(refused.contains("model.layers.0.mlp.up_proj.weight") && refused.contains("[0, 100]"), "{refused}");
    let ran = export(Some(&model), &tmp.path().join("out"), "deepseek", &["--set", "edges=seed-torch"]);
    assert!(ran.refused(1, tmp.path()).contains("NaN"));
    assert_eq!(names(tmp.path()), ["random"]);
}

/// A Llama of random weights, every size a multiple of `unit`.
pub fn random_llama(folder: &Path, unit: usize, layers: usize) -> PathBuf {
    let model = folder.join("random");
    std::fs::create_dir_all(&model).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": unit, "intermediate_size": 2 * unit,
        "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": layers, "vocab_size": 256,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "rope_theta": 10000.0,
    });
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    let values = bf16_bytes(&normal(2 * unit * unit, 7));
    let tensor = |name: String, shape: &[usize]| -> Tensor {
        (name, Dtype::BF16, shape.to_vec(), values[..2 * shape.iter().product::<usize>()].to_vec())
    };
    let mut all =
        vec![tensor("model.embed_tokens.weight".into(), &[256, unit]), tensor("model.norm.weight".into(), &[unit])];
    for i in 0..layers {
        let layer = format!("model.layers.{i}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            all.push(tensor(format!("{layer}.{norm}.weight"), &[unit]));
        }
        for p in ["q", "k", "v", "o"] {
            all.push(tensor(format!("{layer}.self_attn.{p}_proj.weight"), &[unit, unit]));
        }
        for (p, shape) in [("gate", [2 * unit, unit]), ("up", [2 * unit, unit]), ("down", [unit, 2 * unit])] {
            all.push(tensor(format!("{layer}.mlp.{p}_proj.weight"), &shape));
        }
    }
    write(&model.join("model.safetensors"), &all);
    model
}

#[test]
fn killed_in_the_middle_it_leaves_no_model_and_the_next_run_cleans_up() {
    let tmp = tmp();
    let model = random_llama(tmp.path(), 512, 12);
    let out = tmp.path().join("out");
    let run = |extra: &[&str]| export(Some(&model), &out, "vllm@0.11", extra);
    let hidden = || names(tmp.path()).into_iter().find(|n| n.starts_with(".out.patchhost-"));
    // Small files, each waited for: the kill finds some written and some not.
    let shard = ["--max-shard-size", "300KB"];
    let mut killed = false;
    for _ in 0..10 {
        let args = [
            "export",
            model.to_str().unwrap(),
            out.to_str().unwrap(),
            "--component",
            "fp8_block",
            "--for",
            "vllm@0.11",
        ];
        let mut child = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"))
            .args(args.iter().chain(&shard))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let half = || hidden().is_some_and(|h| std::fs::read_dir(tmp.path().join(h)).is_ok_and(|d| d.count() > 5));
        while !half() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if hidden().is_some() && !out.exists() {
            killed = true;
            break;
        }
        let _ = std::fs::remove_dir_all(&out);
    }
    assert!(killed, "the export was always faster than the kill");
    assert!(!out.exists());
    let leftover = tmp.path().join(hidden().unwrap());
    assert!(!leftover.join("config.json").exists(), "a half-written model must not look like one");

    let ran = run(&shard).good();
    assert!(ran.stderr.contains("removed what 1 interrupted export left behind"), "{}", ran.stderr);
    assert_eq!(names(tmp.path()), ["out", "random"]);
    let again = tmp.path().join("again");
    export(Some(&model), &again, "vllm@0.11", &shard).good();
    assert!(files(&out) == files(&again));
}

#[test]
fn an_export_is_not_exported_again() {
    let tmp = tmp();
    let (once, twice) = (tmp.path().join("once"), tmp.path().join("twice"));
    export(None, &once, "deepseek", &[]).good();
    let again = export(Some(&once), &twice, "deepseek", &[]);
    assert!(matches!(again.code, 1 | 2) && again.stderr.contains("quantized"), "{}", again.stderr);
    assert_eq!(names(tmp.path()), ["once"]);
}
