//! What stays unquantized, and why.

use super::*;

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
    // Nothing to quantize is refused, and nothing is written; where it is asked for, it is a model all the same: every linear
    // module is listed.
    let to = tmp.path().join("none");
    let refused = export(Some(&model), &to, "transformers", &[]).refused(1, tmp.path());
    assert!(refused.contains("no tensor becomes FP8") && refused.contains("--allow-unquantized"), "{refused}");
    assert!(!to.exists() && std::fs::read_dir(tmp.path()).unwrap().count() == 1, "only `out` is there");
    let none = export(Some(&model), &to, "transformers", &["--allow-unquantized"]).good();
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
