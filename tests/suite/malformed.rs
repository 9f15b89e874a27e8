//! Malformed input of every kind: exit 1 or 2, three parts, no panic, no output. The texts are golden.

use std::path::Path;

use safetensors::tensor::Dtype;

use crate::support::{
    copy_model, data, edit_config, edit_tensors, f32_bytes, ids_file, matrix_file, patchhost, repo, tmp, write,
};

fn golden(name: &str, text: String) {
    insta::with_settings!({ snapshot_suffix => name }, { insta::assert_snapshot!("error", text) });
}

/// `quantize` of these bytes.
fn file(name: &str, bytes: &[u8]) {
    let tmp = tmp();
    let (path, out) = (tmp.path().join("in.safetensors"), tmp.path().join("out.safetensors"));
    std::fs::write(&path, bytes).unwrap();
    let args = ["quantize", path.to_str().unwrap(), out.to_str().unwrap(), "--component", "fp8_block"];
    golden(name, patchhost(args).refused(2, tmp.path()));
    assert!(!out.exists());
}

fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn safetensors_files() {
    file("empty", b"");
    file("short", b"abc");
    file("not-safetensors", b"PK\x03\x04 this is a zip file, not tensors");
    file("huge-header", &[0xff; 64]);
    file("not-json", &with_header("{nope", 0));
    let good = with_header(r#"{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, 16);
    file("truncated", &good[..good.len() - 5]);
    file("trailing", &[good.as_slice(), b"xx"].concat());
    file("offsets-outside", &with_header(r#"{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, 0));
    file("shape-lies", &with_header(r#"{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,16]}}"#, 16));
    let overlap = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}"#;
    file("overlap", &with_header(overlap, 24));
    let overflow = r#"{"w":{"dtype":"F32","shape":[9223372036854775807,9223372036854775807],"data_offsets":[0,16]}}"#;
    file("overflow", &with_header(overflow, 16));
    let twice = r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    file("twice", &with_header(twice, 16));
    file("unknown-dtype", &with_header(r#"{"w":{"dtype":"F13","shape":[4],"data_offsets":[0,16]}}"#, 16));
}

/// Every prefix and every single corrupted byte of a small file: an error or a result, never a panic.
#[test]
fn damaged_files_never_panic() {
    use patchhost_runtime::checkpoint::Checkpoint;
    let header = r#"{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"v":{"dtype":"I64","shape":[1],"data_offsets":[16,24]}}"#;
    let good = with_header(header, 24);
    for n in 0..good.len() {
        let bytes: &'static [u8] = Box::leak(good[..n].to_vec().into_boxed_slice());
        assert!(Checkpoint::from_bytes("f", bytes).is_err(), "{n}");
        for flip in [0x01u8, 0x20, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[n] ^= flip;
            let _ = Checkpoint::from_bytes("f", Box::leak(bad.into_boxed_slice()));
        }
    }
}

/// `logits` of a model that `break_it` has changed.
fn model(name: &str, base: &str, codes: &[i32], break_it: impl FnOnce(&Path)) {
    let tmp = tmp();
    let folder = copy_model(base, tmp.path());
    std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
    break_it(&folder);
    let (ids, out) = (ids_file(tmp.path(), &[1, 2, 3]), tmp.path().join("out.safetensors"));
    let args = ["logits", folder.to_str().unwrap(), "--ids", ids.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let ran = patchhost(args);
    assert!(codes.contains(&ran.code), "{name}: exit {}: {}", ran.code, ran.stderr);
    golden(name, ran.refused(ran.code, tmp.path()));
    assert!(!out.exists());
}

#[test]
fn models() {
    let config = |edit: fn(&mut serde_json::Value)| move |m: &Path| edit_config(m, edit);
    model("config-missing", "llama", &[2], |m| std::fs::remove_file(m.join("config.json")).unwrap());
    model("config-not-json", "llama", &[2], |m| std::fs::write(m.join("config.json"), "{").unwrap());
    model("config-no-hidden", "llama", &[1], config(|c| drop(c.as_object_mut().unwrap().remove("hidden_size"))));
    model(
        "config-no-family",
        "llama",
        &[2],
        config(|c| {
            c.as_object_mut().unwrap().remove("architectures");
            c.as_object_mut().unwrap().remove("model_type");
        }),
    );
    model("config-family", "llama", &[2], config(|c| c["architectures"] = serde_json::json!(["GPT9ForCausalLM"])));
    model("config-zero-heads", "llama", &[2], config(|c| c["num_attention_heads"] = 0.into()));
    model("config-huge", "llama", &[2], config(|c| c["vocab_size"] = 99_999_999_999u64.into()));
    model("config-string", "llama", &[2], config(|c| c["hidden_size"] = "many".into()));
    model("config-layers", "llama", &[1], config(|c| c["num_hidden_layers"] = 3.into()));
    model(
        "config-experts",
        "qwen3_moe",
        &[1],
        config(|c| {
            for key in ["num_experts", "num_local_experts"] {
                if c.get(key).is_some() {
                    c[key] = 5.into();
                }
            }
        }),
    );
    model(
        "config-quantized",
        "llama",
        &[2],
        config(|c| c["quantization_config"] = serde_json::json!({"quant_method": "fp8"})),
    );
    model("no-weights", "llama", &[2], |m| std::fs::remove_file(m.join("model.safetensors")).unwrap());
    model("model-truncated", "llama", &[2], |m| {
        let path = m.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    });
    model("expert-missing", "qwen3_moe", &[1], |m| {
        edit_tensors(m, |t| t.retain(|t| t.0 != "model.layers.0.mlp.experts.1.down_proj.weight"));
    });
    model("wrong-shape", "qwen3_moe", &[1, 2], |m| {
        edit_tensors(m, |t| {
            let w = t.iter_mut().find(|t| t.0 == "model.layers.0.mlp.experts.1.down_proj.weight").unwrap();
            w.2.swap(0, 1);
        });
    });
    let shards = |m: &Path| {
        let mut all: Vec<_> = std::fs::read_dir(m).unwrap().map(|e| e.unwrap().path()).collect();
        all.retain(|p| p.extension().is_some_and(|x| x == "safetensors"));
        all.sort();
        all
    };
    model("shard-missing", "qwen3_moe_sharded", &[2], |m| std::fs::remove_file(&shards(m)[1]).unwrap());
    // With an index, it decides which of them counts.
    model("shard-duplicate", "qwen3_moe_sharded", &[2], |m| {
        std::fs::remove_file(m.join("model.safetensors.index.json")).unwrap();
        let all = shards(m);
        let mut second = crate::support::read(&all[1]);
        second.push(crate::support::read(&all[0])[0].clone());
        write(&all[1], &second);
    });
    model("index-names-some", "qwen3_moe_sharded", &[2], |m| {
        let path = m.join("model.safetensors.index.json");
        let mut index: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        index["weight_map"].as_object_mut().unwrap().retain(|name, _| name.contains("embed") || name.contains("norm"));
        std::fs::write(&path, index.to_string()).unwrap();
    });
    model("index-not-json", "qwen3_moe_sharded", &[2], |m| {
        std::fs::write(m.join("model.safetensors.index.json"), "[]").unwrap()
    });
    model("index-escapes", "qwen3_moe_sharded", &[2], |m| {
        let path = m.join("model.safetensors.index.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let name = shards(m)[0].file_name().unwrap().to_str().unwrap().to_string();
        std::fs::write(&path, text.replace(&name, "../../etc/passwd")).unwrap();
    });
}

#[test]
fn tokenizers_and_prompts() {
    let tmp = tmp();
    let folder = copy_model("llama", tmp.path());
    std::fs::remove_file(folder.join("golden.safetensors")).unwrap();
    let run = |extra: &[&str]| patchhost(["run", folder.to_str().unwrap()].iter().chain(extra));
    golden("tokenizer-missing", run(&[]).refused(2, tmp.path()));
    std::fs::write(folder.join("tokenizer.json"), "{\"version\":\"1.0\"}").unwrap();
    golden("tokenizer-bad", run(&[]).refused(2, tmp.path()));
    golden("no-such-model", patchhost(["run", "/no/such/model"]).refused(2, tmp.path()));
    golden("empty-prompt", patchhost(["run", "--prompt", ""]).refused(2, tmp.path()));
    let long = "word ".repeat(5000);
    golden("long-prompt", patchhost(["run", "--prompt", &long]).refused(2, tmp.path()));
    golden("temperature", patchhost(["run", "--temperature", "nan"]).refused(2, tmp.path()));
    golden("prompts-missing", patchhost(["run", "--prompts", "/no/such/file"]).refused(2, tmp.path()));
}

#[test]
fn components() {
    let tmp = tmp();
    let (input, out) = (matrix_file(tmp.path(), 4, 4), tmp.path().join("out.safetensors"));
    let run = |component: &str, extra: &[&str]| {
        let args = ["quantize", input.to_str().unwrap(), out.to_str().unwrap(), "--component", component];
        patchhost(args.iter().chain(extra))
    };
    let made = |name: &str, bytes: &[u8]| {
        let path = tmp.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let wat = |name: &str, text: &str| made(name, &wat::parse_str(text).unwrap());
    golden("no-such-component", run("fp9_block", &[]).refused(2, tmp.path()));
    golden("not-wasm", run(&made("text.wasm", b"I am not wasm"), &[]).refused(1, tmp.path()));
    golden("empty-wasm", run(&made("empty.wasm", b""), &[]).refused(1, tmp.path()));
    golden("core-module", run(&wat("core.wasm", "(module (func (export \"scales\")))"), &[]).refused(1, tmp.path()));
    golden("other-world", run(&wat("world.wasm", "(component)"), &[]).refused(1, tmp.path()));
    let wasi = r#"(component (import "wasi:filesystem/types@0.2.6" (instance (export "x" (func)))))"#;
    golden("wasi-import", run(&wat("wasi.wasm", wasi), &[]).refused(1, tmp.path()));
    let whole = wat::parse_str("(component (core module (memory 1) (func)))").unwrap();
    golden("truncated-wasm", run(&made("cut.wasm", &whole[..whole.len() - 4]), &[]).refused(1, tmp.path()));
    let real = std::fs::read(repo().join("guests/fp8_block.wasm")).unwrap();
    for n in [1, 7, 8, 9, 100, real.len() / 2, real.len() - 1] {
        run(&made("cut.wasm", &real[..n]), &[]).refused(1, tmp.path());
    }
    let zeros = "0".repeat(64);
    golden("wrong-digest", run("fp8_block", &["--sha256", &zeros]).refused(1, tmp.path()));
    golden("bad-digest", run("fp8_block", &["--sha256", "xyz"]).refused(2, tmp.path()));
    golden("no-quant-hook", run("moe_loader", &[]).refused(2, tmp.path()));
    golden("unknown-setting", run("fp8_block", &["--set", "profil=hf"]).refused(2, tmp.path()));
    golden("bad-setting-value", run("fp8_block", &["--set", "profile=h100"]).refused(2, tmp.path()));
    golden("setting-without-value", run("fp8_block", &["--set", "profile"]).refused(2, tmp.path()));
    golden("setting-of-nobody", run("fp8_block", &["--set", "other.profile=hf"]).refused(2, tmp.path()));
    golden("conflict", run("fp8_block", &["--component", "fp8_block_mse"]).refused(1, tmp.path()));
    assert!(!out.exists());
    let same = ["quantize", input.to_str().unwrap(), input.to_str().unwrap(), "--component", "fp8_block"];
    golden("same-file", patchhost(same).refused(2, tmp.path()));
    let nowhere = ["quantize", input.to_str().unwrap(), "/no/such/folder/out.safetensors", "--component", "fp8_block"];
    golden("no-such-folder", patchhost(nowhere).refused(2, tmp.path()));
}

/// A component of 587 bytes that expands to ten million instances must be refused before anything compiles it.
#[test]
fn the_compile_bomb_is_refused_in_no_time() {
    let mut text = "(component $c (core module $m) (core instance (instantiate $m)))".to_string();
    for _ in 0..7 {
        let instances = "(instance (instantiate $c))".repeat(10);
        text = format!("(component $c {text} {instances})");
    }
    let tmp = tmp();
    let bytes = wat::parse_str(&text).unwrap();
    assert!(bytes.len() < 2000);
    let path = tmp.path().join("bomb.wasm");
    std::fs::write(&path, bytes).unwrap();
    let candidate = patchhost::patch::Candidate::from_file(&path).unwrap();
    let error = candidate
        .admit(&patchhost::patch::Reviewing::default(), &patchhost::patch::Terms::default())
        .unwrap()
        .audit()
        .err()
        .unwrap();
    assert!(error.to_string().contains("PH80"), "{error}");
    let out = patchhost(["explain", "--component", path.to_str().unwrap()]);
    let text = out.refused(1, tmp.path());
    assert!(text.contains("PH80"), "{text}");
}

#[test]
fn token_ids() {
    let tmp = tmp();
    let out = tmp.path().join("out.safetensors");
    let run = |ids: &Path| patchhost(["logits", "--ids", ids.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    golden("ids-negative", run(&ids_file(tmp.path(), &[1, -2])).refused(2, tmp.path()));
    golden("ids-beyond", run(&ids_file(tmp.path(), &[1, 2048])).refused(2, tmp.path()));
    golden("ids-empty", run(&ids_file(tmp.path(), &[])).refused(2, tmp.path()));
    let path = tmp.path().join("f.safetensors");
    write(&path, &[("input_ids".into(), Dtype::F32, vec![2], f32_bytes(&[1.0, 2.0]))]);
    golden("ids-float", run(&path).refused(2, tmp.path()));
    golden("ids-absent", run(&data("quant/fp8_block_golden.safetensors")).refused(2, tmp.path()));
    assert!(!out.exists());
}
