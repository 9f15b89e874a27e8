//! The verbs on the bundled model, and the ledger.

use crate::support::{copy_model, edit_tensors, ids_file, patchhost, read, read_f32, repo, tmp};

#[test]
fn run_does_the_main_job_on_the_bundled_model() {
    let args = ["run", "--component", "fp8_block.wasm", "--max-tokens", "48", "--temperature", "0"];
    let ran = patchhost(args).good();
    let out = &ran.stdout;
    assert!(out.contains("moe_loader") && out.contains("fp8_block"), "{out}");
    assert!(out.contains("applied") && out.contains("KL("), "{out}");
    // A trained model: common English words, not noise.
    let words = ["the ", "and ", "of ", "to ", "my ", "you", "is "];
    assert!(words.iter().filter(|w| out.contains(*w)).count() >= 3, "{out}");

    let json = patchhost(args.iter().copied().chain(["--format", "json"])).good().json();
    assert_eq!(json["refit"]["saturated"], 0);
    assert!(json["refit"]["quantized"].as_u64().unwrap() > 50);
    assert!(json["mismatch"]["kl"].as_f64().unwrap() < 0.1);
    let rmse = json["refit"]["relative_rmse"].as_f64().unwrap();
    assert!((0.02..0.03).contains(&rmse), "{rmse}");
    let tokens = json["completions"][0]["token_ids"].as_array().unwrap().len();
    assert!((8..=48).contains(&tokens), "{tokens}");
    for patch in json["patches"].as_array().unwrap() {
        assert!(patch["calls"].as_u64().unwrap() > 0 && patch["fuel"].as_u64().unwrap() > 0, "{patch}");
    }
    assert!(ran.stdout.contains(json["completions"][0]["text"].as_str().unwrap().trim()));
}

#[test]
fn run_says_where_the_time_to_the_first_token_went() {
    let args = ["run", "--component", "fp8_block.wasm", "--max-tokens", "2", "--no-kl"];
    let json = patchhost(args.iter().chain(&["--format", "json"])).good().json();
    let startup = &json["startup"];
    let total = startup["first_token_ms"].as_f64().unwrap();
    assert!(total > 0.0 && startup["before_main_ms"].as_f64().unwrap() >= 0.0, "{startup}");
    let parts = startup["parts"].as_array().unwrap();
    let number = |part: &serde_json::Value, key: &str| part[key].as_f64().unwrap();
    // Each ends before the first token, and those of the main thread follow one another. Rounded to microseconds.
    for part in parts {
        assert!(number(part, "start_ms") + number(part, "ms") <= total + 0.01, "{part} in {total}");
    }
    let steps: Vec<_> = parts.iter().filter(|part| part["within"] == false).collect();
    let sum: f64 = steps.iter().map(|part| number(part, "ms")).sum();
    assert!(sum <= total + 0.01 * steps.len() as f64, "{sum} of {total}: {startup}");
    let names: Vec<_> = steps.iter().map(|part| part["part"].as_str().unwrap()).collect();
    assert_eq!(names, ["model", "patches and tokenizer", "refit", "prefill"]);
    for patch in ["fp8_block", "moe_loader", "vocab_mask"] {
        for what in ["verify", "audit", "machine code", "start"] {
            let found = parts.iter().filter(|part| part["patch"] == patch && part["part"] == what).count();
            assert_eq!(found, 1, "{what} of {patch}: {startup}");
        }
        // The order that keeps the sandbox: nothing is compiled or read before its audit is through.
        let of = |what: &str| parts.iter().find(|p| p["patch"] == patch && p["part"] == what).unwrap();
        let audited = number(of("audit"), "start_ms") + number(of("audit"), "ms");
        assert!(audited <= number(of("machine code"), "start_ms") + 0.01, "{startup}");
    }
    let text = patchhost(args.iter().chain(&["--timings"])).good().stdout;
    assert!(text.contains("first token ") && text.contains("audit fp8_block"), "{text}");
    assert!(!patchhost(args).good().stdout.contains("first token "));
}

#[test]
fn activation_by_call_and_by_rule_give_the_same_tokens() {
    let tokens = |set: &str| {
        let args = [
            "run",
            "--component",
            "fp8_block",
            "--set",
            set,
            "--max-tokens",
            "12",
            "--temperature",
            "0",
            "--format",
            "json",
        ];
        patchhost(args).good().json()["completions"][0]["token_ids"].clone()
    };
    assert_eq!(tokens("activation=rule"), tokens("activation=call"));
}

#[test]
fn prompts_from_a_file_are_one_batch_and_equal_single_runs() {
    let tmp = tmp();
    let file = tmp.path().join("prompts.txt");
    std::fs::write(&file, "My lord, \n\nWhat is the\n").unwrap();
    let common =
        ["--component", "fp8_block", "--max-tokens", "10", "--temperature", "0", "--format", "json", "--no-kl"];
    let batch = patchhost(["run", "--prompts", file.to_str().unwrap()].iter().chain(&common)).good().json();
    for (i, prompt) in ["My lord, ", "What is the"].iter().enumerate() {
        let single = patchhost(["run", "--prompt", prompt].iter().chain(&common)).good().json();
        assert_eq!(single["completions"][0]["token_ids"], batch["completions"][i]["token_ids"]);
    }
}

#[test]
fn the_seed_repeats_a_text_and_stop_ends_it() {
    let text = |extra: &[&str]| {
        let args = ["run", "--max-tokens", "24", "--temperature", "1", "--format", "json"];
        patchhost(args.iter().chain(extra)).good().json()["completions"][0].clone()
    };
    assert_eq!(text(&["--seed", "5"]), text(&["--seed", "5"]));
    assert_ne!(text(&["--seed", "5"])["text"], text(&["--seed", "6"])["text"]);
    let whole = text(&["--seed", "5"])["text"].as_str().unwrap().to_string();
    let cut: String = whole.chars().skip(whole.chars().count() / 2).take(3).collect();
    let stopped = text(&["--seed", "5", "--stop", &cut]);
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["text"].as_str().unwrap(), &whole[..whole.find(&cut).unwrap()]);
}

#[test]
fn loader_loss_without_and_with_the_patch() {
    let tmp = tmp();
    let with = patchhost(["run", "--simulate", "loader-loss", "--component", "fp8_block", "--max-tokens", "4"]).good();
    assert_eq!(with.stdout.matches("equal to a fresh load, bit for bit").count(), 3, "{}", with.stdout);
    let without = patchhost(["run", "--simulate", "loader-loss", "--no-default-patches", "--max-tokens", "4"]);
    let text = without.refused(1, tmp.path());
    assert!(text.contains("experts.0.") && text.contains("weight_loader"), "{text}");
    let never = patchhost(["run", "--no-default-patches", "--max-tokens", "4"]).refused(1, tmp.path());
    insta::assert_snapshot!(never);
}

#[test]
fn a_patch_for_other_architectures_is_shown_as_not_applicable() {
    let tmp = tmp();
    let model = copy_model("llama", tmp.path());
    std::fs::remove_file(model.join("golden.safetensors")).unwrap();
    let ran = patchhost(["explain", model.to_str().unwrap()]).good();
    let line = ran.stdout.lines().find(|l| l.contains("moe_loader")).unwrap();
    assert!(line.contains("not applicable") && line.contains("LlamaForCausalLM"), "{line}");
}

#[test]
fn explain_names_a_rule_for_every_tensor() {
    let json = patchhost(["explain", "--format", "json"]).good().json();
    let tensors = json["tensors"].as_array().unwrap();
    let outcome = |name: &str| {
        let t = tensors.iter().find(|t| t["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        t["outcome"].clone()
    };
    let quantized = outcome("model.layers.0.mlp.experts.0.up_proj.weight");
    assert_eq!(quantized["kind"], "quantized");
    assert_eq!(quantized["scale_shape"], serde_json::json!([1, 2]));
    assert_eq!(quantized["scale_name"], "model.layers.0.mlp.experts.0.up_proj.weight_scale_inv");
    for kept in [
        "model.layers.0.mlp.gate.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.self_attn.q_norm.weight",
    ] {
        assert_eq!(outcome(kept)["kind"], "kept", "{kept}");
    }
    for t in tensors {
        let o = &t["outcome"];
        let why = o["rule"].as_str().or(o["reason"].as_str()).unwrap_or_default();
        assert!(!why.is_empty(), "{t}");
    }
    let keep = patchhost(["explain", "--component", "fp8_block", "--set", "keep=*.q_proj.weight", "--format", "json"]);
    let keep = keep.good().json();
    let q = keep["tensors"].as_array().unwrap().iter().find(|t| t["name"] == "model.layers.1.self_attn.q_proj.weight");
    assert_eq!(q.unwrap()["outcome"]["kind"], "kept");
}

#[test]
fn explain_folds_tensors_that_are_alike_unless_asked_for_all() {
    let json = patchhost(["explain", "--format", "json"]).good().json();
    let names: Vec<&str> = json["tensors"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    let all = patchhost(["explain", "--all"]).good().stdout;
    for name in &names {
        assert_eq!(all.lines().filter(|l| l.split_whitespace().next() == Some(name)).count(), 1, "{name} in\n{all}");
    }
    let folded = patchhost(["explain"]).good().stdout;
    let counts = folded.lines().filter_map(|l| l.split_whitespace().nth(1)?.strip_suffix('x')?.parse::<usize>().ok());
    assert_eq!(counts.sum::<usize>(), names.len(), "{folded}");
    assert!(folded.contains(".mlp.experts.{0..") && folded.lines().count() < all.lines().count(), "{folded}");
}

#[test]
fn logits_of_a_batch_equal_those_of_each() {
    let tmp = tmp();
    let out = tmp.path().join("out.safetensors");
    let run = |ids: &std::path::Path, extra: &[&str]| {
        let args = ["logits", "--ids", ids.to_str().unwrap(), "--out", out.to_str().unwrap()];
        patchhost(args.iter().chain(extra)).good();
        let t = read(&out).remove(0);
        (t.2, read_f32(&t.3))
    };
    let (shape, one) = run(&ids_file(tmp.path(), &[5, 6, 7, 8]), &["--component", "fp8_block", "--threads", "1"]);
    assert_eq!(shape, [4, 2048]);
    let ids: Vec<u8> = [9i64, 8, 7, 6, 5, 6, 7, 8].iter().flat_map(|i| i.to_le_bytes()).collect();
    let batch = tmp.path().join("batch.safetensors");
    crate::support::write(&batch, &[("input_ids".into(), safetensors::tensor::Dtype::I64, vec![2, 4], ids)]);
    let (shape, both) = run(&batch, &["--component", "fp8_block", "--dtype", "fp8"]);
    assert_eq!(shape, [2, 4, 2048]);
    assert!(one.iter().zip(&both[4 * 2048..]).all(|(a, b)| a.to_bits() == b.to_bits()));
    let (_, plain) = run(&batch, &["--component", "fp8_block", "--dtype", "f32"]);
    assert_ne!(plain, both);
}

/// B1: what is available is listed, and is what the lock says.
#[test]
fn patches_lists_the_bundled_ones_with_what_they_are_for() {
    let listed = patchhost(["patches", "--format", "json"]).good().json();
    let rows = listed["patches"].as_array().unwrap();
    let lock = std::fs::read_to_string(repo().join("guests/guests.lock")).unwrap();
    for row in rows {
        let (name, sha256) = (row["name"].as_str().unwrap(), row["sha256"].as_str().unwrap());
        assert!(lock.contains(&format!("name = \"{name}\"")) && lock.contains(sha256), "{name}");
        assert!(!row["reason"].as_str().unwrap().is_empty() && !row["hooks"].as_array().unwrap().is_empty(), "{name}");
    }
    assert_eq!(rows.len(), lock.matches("[[guest]]").count());
    let two = patchhost(["patches", "--component", "fp8_block", "--component", "fp8_block_mse"]).good();
    assert!(two.stdout.contains("fp8_block 0.1.0") && two.stdout.contains("2 patches"), "{}", two.stdout);
    assert_eq!(patchhost(["patches", "--component", "nowhere.wasm"]).code, 2);
}

/// B20: unknown names are refused, unless the user allows them by name.
#[test]
fn unknown_tensors_are_skipped_only_where_that_is_allowed() {
    let tmp = tmp();
    let model = copy_model("qwen3_moe", tmp.path());
    std::fs::remove_file(model.join("golden.safetensors")).unwrap();
    edit_tensors(&model, |tensors| {
        let mut stray = tensors.iter().find(|t| t.0 == "model.norm.weight").unwrap().clone();
        stray.0 = "value_head.weight".into();
        tensors.push(stray);
    });
    let explain = |more: &[&str]| {
        let args = ["explain", model.to_str().unwrap(), "--format", "json"];
        patchhost(args.iter().chain(more))
    };
    assert!(explain(&[]).stdout.contains("value_head.weight"));
    assert_eq!(explain(&["--allow-unknown", "value_hea.weight"]).code, 1);
    for glob in ["value_head.*", "*.weight", "value_hea?.weight"] {
        let ran = explain(&["--allow-unknown", glob]).good().json();
        let all = ran["tensors"].as_array().unwrap();
        let stray = all.iter().find(|t| t["name"] == "value_head.weight").unwrap();
        assert_eq!(stray["outcome"]["kind"], "ignored");
        assert!(stray["outcome"]["reason"].as_str().unwrap().contains(&format!("`{glob}`")), "{stray}");
        // What the model knows is loaded all the same.
        assert_eq!(all.iter().filter(|t| t["outcome"]["kind"] == "ignored").count(), 1, "{glob}");
    }
}
