//! Model files whose texts are attacks: names of tensors, fields of config.json, metadata. Whatever is printed about them
//! moves no cursor and fakes no line.

use safetensors::tensor::Dtype;

use super::child::{Place, plain, run};
use crate::support::{Ran, edit_config, edit_tensors, f32_bytes, normal, write};

const NAME: &str = "w\u{1b}[2J\u{1b}]0;root\u{7}\r\nerror: all is well\u{202e}\u{9b}";

/// JSON is for programs: there, only what JSON itself must escape may not stand.
#[track_caller]
fn printed(what: &str, format: &str, ran: &Ran) {
    plain(what, &ran.stderr);
    if format == "text" {
        return plain(what, &ran.stdout);
    }
    assert!(ran.stdout.chars().all(|c| c >= ' ' || c == '\n'), "{what}: {:?}", ran.stdout);
    assert!(ran.stdout.is_empty() || serde_json::from_str::<serde_json::Value>(&ran.stdout).is_ok(), "{}", ran.stdout);
}

#[test]
fn names_of_tensors() {
    let place = Place::new();
    let folder = place.folder.path();
    let (input, out) = (folder.join("evil.safetensors"), folder.join("out.safetensors"));
    write(&input, &[(NAME.into(), Dtype::F32, vec![256, 256], f32_bytes(&normal(256 * 256, 1)))]);
    for format in ["text", "json"] {
        let _ = std::fs::remove_file(&out);
        let args = ["quantize", input.to_str().unwrap(), out.to_str().unwrap(), "--component", "fp8_block"];
        let ended = run("quantize", args.iter().copied().chain(["--format", format]));
        printed("quantize", format, &ended.ran);
        assert!(!ended.ran.stdout.contains("\nerror: all is well"), "{}", ended.ran.stdout);
    }
}

/// Every verb that reads a model, on one with hostile texts everywhere.
#[test]
fn models() {
    let place = Place::new();
    let folder = place.folder.path();
    let model = folder.join("llama");
    let ids = crate::support::ids_file(folder, &[1, 2]);
    let out = folder.join("out.safetensors");
    type Breaks = fn(&std::path::Path);
    let broken: [(&str, Breaks); 4] = [
        ("a tensor more", |m| {
            edit_tensors(m, |t| t.push((NAME.into(), Dtype::F32, vec![2], f32_bytes(&[1.0, 2.0]))));
        }),
        ("a tensor renamed", |m| edit_tensors(m, |t| t[0].0 = NAME.into())),
        ("model_type", |m| edit_config(m, |c| c["model_type"] = NAME.into())),
        ("architectures", |m| edit_config(m, |c| c["architectures"] = serde_json::json!([NAME]))),
    ];
    for (what, break_it) in broken {
        let _ = std::fs::remove_dir_all(&model);
        crate::support::copy_model("llama", folder);
        std::fs::remove_file(model.join("golden.safetensors")).unwrap();
        break_it(&model);
        let (model, out) = (model.to_str().unwrap(), out.to_str().unwrap());
        for args in [
            vec!["logits", model, "--ids", ids.to_str().unwrap(), "--out", out],
            vec!["explain", model, "--component", "fp8_block"],
            vec!["refit", model, "--component", "fp8_block"],
            vec!["run", model, "--component", "fp8_block"],
        ] {
            for format in ["text", "json"] {
                let ended = run(what, args.iter().copied().chain(["--format", format]));
                printed(what, format, &ended.ran);
                let all = format!("{}{}", ended.ran.stdout, ended.ran.stderr);
                assert!(!all.contains("\nerror: all is well"), "{what}: {args:?}: {all}");
                assert!((0..=3).contains(&ended.ran.code), "{what}: {args:?}: exit {}: {all}", ended.ran.code);
            }
        }
    }
}

/// Shapes and sizes that promise what the file does not hold.
#[test]
fn shapes() {
    let place = Place::new();
    let folder = place.folder.path();
    let (input, out) = (folder.join("evil.safetensors"), folder.join("out.safetensors"));
    let headers = [
        r#"{"w":{"dtype":"F32","shape":[0,9007199254740991],"data_offsets":[0,0]}}"#,
        r#"{"w":{"dtype":"F32","shape":[1099511627776,0],"data_offsets":[0,0]}}"#,
        r#"{"w":{"dtype":"BF16","shape":[4294967295,4294967295,0],"data_offsets":[0,0]}}"#,
        r#"{"w":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#,
        r#"{"w":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}"#,
        r#"{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#,
        r#"{"w":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#,
        r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551612,0]}}"#,
    ];
    for header in headers {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        if header.contains("[0,4]}") {
            bytes.extend([0; 4]);
        }
        std::fs::write(&input, bytes).unwrap();
        let _ = std::fs::remove_file(&out);
        let args = ["quantize", input.to_str().unwrap(), out.to_str().unwrap(), "--component", "fp8_block"];
        let ended = run(header, args);
        assert!((0..=3).contains(&ended.ran.code), "{header}: exit {}: {}", ended.ran.code, ended.ran.stderr);
        if ended.ran.code != 0 {
            ended.ran.refused(ended.ran.code, folder);
        }
        assert!(ended.peak_kib < 256 << 10, "{header}: {} KiB", ended.peak_kib);
    }
}
