//! What `compare` refuses: three parts each. The texts are golden.

use std::path::Path;

use safetensors::tensor::Dtype;

use crate::support::{bf16_bytes, copy_model, f32_bytes, ids_file, normal, patchhost, tmp, write};

fn refused(name: &str, code: i32, folder: &Path, args: &[&str]) {
    let html = folder.join("report.html");
    let html = ["--html", html.to_str().unwrap()];
    let text = patchhost(["compare"].iter().chain(args).chain(&html)).refused(code, folder);
    insta::with_settings!({ snapshot_suffix => name }, { insta::assert_snapshot!("compare_refused", text) });
    assert!(!folder.join("report.html").exists());
}

#[test]
fn arguments() {
    let tmp = tmp();
    let folder = tmp.path();
    refused("no-component", 2, folder, &["somewhere/model"]);
    refused("nothing-to-compare-with", 2, folder, &["fp8_block.wasm"]);
    refused("two-and-against", 2, folder, &["fp8_block", "fp8_block_mse", "--against", "bf16"]);
    refused("after-the-model", 2, folder, &["fp8_block", "a/model", "b/model", "--against", "native"]);
    refused("no-such-wasm", 2, folder, &["fp8_block", "no/such.wasm"]);
    refused("not-a-quantizer", 2, folder, &["fp8_block", "moe_loader"]);
    refused("too-many-digests", 2, folder, &["fp8_block", "--against", "bf16", "--sha256", "00", "--sha256", "11"]);
    refused("setting", 2, folder, &["fp8_block", "fp8_block", "--set-b", "profile=mine"]);
    // Rules are read before any file is.
    let file = "no/such.safetensors";
    let rule = ["--trainer-logprobs", file, "--rollout-rs", "token_k4", "--rollout-rs-threshold", "2"];
    refused("rejection-rule", 2, folder, &[&["fp8_block", "--against", "bf16"], &rule[..]].concat());
}

#[test]
fn native_is_refused_for_a_patch_that_reads_rows() {
    let tmp = tmp();
    refused("native-rows", 1, tmp.path(), &["fp8_block_mse", "--against", "native", "--tensors-only"]);
    let moments = ["fp8_block", "--against", "native", "--set", "stats=moments", "--tensors-only"];
    refused("native-moments", 1, tmp.path(), &moments);
}

#[test]
fn models_and_files() {
    let tmp = tmp();
    let folder = tmp.path();
    let model = copy_model("llama", folder);
    std::fs::remove_file(model.join("golden.safetensors")).unwrap();
    let model = model.to_str().unwrap();
    refused("no-tokenizer", 2, folder, &["fp8_block", "--against", "bf16", model]);
    let ids = ids_file(folder, &[1, 2, 999_999]);
    refused("id-beyond", 2, folder, &["fp8_block", "--against", "bf16", model, "--ids", ids.to_str().unwrap()]);
    let ids = ids_file(folder, &[1; 5000]);
    refused("too-long", 2, folder, &["fp8_block", "--against", "bf16", model, "--ids", ids.to_str().unwrap()]);
    refused("no-such-model", 2, folder, &["fp8_block", "--against", "bf16", "no/such/folder"]);
    refused("prompts-missing", 2, folder, &["fp8_block", "--against", "bf16", "--prompts", "no/such.txt"]);

    let file = folder.join("w.safetensors");
    write(&file, &[("w".into(), Dtype::BF16, vec![8, 8], bf16_bytes(&normal(64, 1)))]);
    refused(
        "per-layer-of-a-file",
        2,
        folder,
        &["fp8_block", "--against", "bf16", file.to_str().unwrap(), "--per-layer"],
    );
    let mut bad = normal(200 * 200, 2);
    bad[30_000] = f32::NAN;
    write(&file, &[("w".into(), Dtype::F32, vec![200, 200], f32_bytes(&bad))]);
    refused("nan", 1, folder, &["fp8_block", "fp8_block", file.to_str().unwrap()]);
    let text = folder.join("text.safetensors");
    std::fs::write(&text, "no tensors").unwrap();
    refused("not-safetensors", 2, folder, &["fp8_block", "fp8_block", text.to_str().unwrap()]);
}

#[test]
fn evil_patches_are_seen_on_either_side() {
    let tmp = tmp();
    let file = tmp.path().join("w.safetensors");
    write(&file, &[("w".into(), Dtype::BF16, vec![300, 300], bf16_bytes(&normal(90_000, 1)))]);
    let evil = crate::support::evil("subtle");
    for sides in [["fp8_block", &evil], [&evil, "fp8_block"]] {
        let text = patchhost(["compare", sides[0], sides[1], file.to_str().unwrap()]).refused(3, tmp.path());
        assert!(text.contains("scale contract broken") && text.contains("block ["), "{text}");
    }
}

#[test]
fn a_report_that_cannot_be_written_is_an_error() {
    let tmp = tmp();
    let file = tmp.path().join("w.safetensors");
    write(&file, &[("w".into(), Dtype::BF16, vec![8, 8], bf16_bytes(&normal(64, 1)))]);
    let html = tmp.path().join("no/such/report.html");
    let args = ["compare", "fp8_block", "fp8_block", file.to_str().unwrap(), "--html", html.to_str().unwrap()];
    let text = patchhost(args).refused(2, tmp.path());
    assert!(text.contains("was not written"), "{text}");
}
