//! Names as wrappers of trainers leave them: refused with the rename that helps, and renamed where that is asked for.

use std::path::Path;

use serde_json::{Value, json};

use super::{replaced, some};
use crate::http_client::Server;
use crate::http_rl::{expected, file, save, step};
use crate::support::{Tensor, copy_folder, edit_tensors, patchhost, read, repo, tmp, write};

fn named(tensors: &[Tensor], name: impl Fn(&str) -> String) -> Vec<Tensor> {
    tensors.iter().map(|(n, dtype, shape, data)| (name(n), *dtype, shape.clone(), data.clone())).collect()
}

type Wrap = fn(&str) -> String;

/// What a wrapper makes of a name, and the renames that take it back.
const WRAPPERS: [(&str, Wrap, &[&str]); 7] = [
    ("torch.compile", |n| format!("_orig_mod.{n}"), &["_orig_mod.="]),
    ("DDP", |n| format!("module.{n}"), &["module.="]),
    (
        "FSDP",
        |n| format!("_fsdp_wrapped_module.{}", n.replace(".self_attn.", "._fsdp_wrapped_module.self_attn.")),
        &["_fsdp_wrapped_module.="],
    ),
    (
        "checkpointing",
        |n| n.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
        &["_checkpoint_wrapped_module.="],
    ),
    (
        "PEFT",
        |n| format!("base_model.model.{}", n.replace("q_proj.weight", "q_proj.base_layer.weight")),
        &["base_model.model.=", "base_layer.="],
    ),
    ("a name of its own", |n| format!("policy.{n}"), &["^policy.="]),
    ("vision and language", |n| n.replacen("model.", "model.language_model.", 1), &["language_model.="]),
];

#[test]
fn a_refusal_says_the_rename_and_the_rename_does_it() {
    let server = Server::start(&[]);
    for (n, (wrapper, wrap, renames)) in WRAPPERS.into_iter().enumerate() {
        let before = server.checksums();
        let tensors = step(n as u32 + 1);
        let wrapped = file(&named(&tensors, wrap), &[]);
        let refused = server.bytes("/update_weights", &wrapped).refused(422);
        assert!(refused.contains("without the prefix of a wrapper"), "{wrapper}: {refused}");
        for rename in renames {
            assert!(refused.contains(&format!("--rename {rename}")), "{wrapper}: {refused}");
        }
        assert_eq!(server.checksums(), before, "{wrapper}");
        // As the refusal says it: in the URL, as a header, or in JSON from the beginning.
        let fields: serde_json::Map<String, Value> =
            renames.iter().map(|r| r.split_once('=').unwrap()).map(|(f, t)| (f.to_string(), json!(t))).collect();
        match n % 3 {
            0 => {
                let query: Vec<String> = renames.iter().map(|r| format!("rename={}", r.replace('^', "%5E"))).collect();
                server.bytes(&format!("/update_weights?{}", query.join("&")), &wrapped).good()
            }
            1 => {
                let text = Value::Object(fields).to_string();
                let headers = [("Content-Type", "application/octet-stream"), ("X-Rename", text.as_str())];
                server.send("POST", "/update_weights", &headers, &wrapped).good()
            }
            _ => {
                server.json("/start_weight_update", &json!({ "rename": fields })).good();
                let (first, rest) = tensors.split_at(30);
                server.bytes("/update_weights", &file(&named(first, wrap), &[])).good();
                // A client that says it with each request renames once.
                let again = format!("/update_weights?rename={}", renames[0].replace('^', "%5E"));
                let url = if renames.len() == 1 { again.as_str() } else { "/update_weights" };
                server.bytes(url, &file(&named(rest, wrap), &[])).good();
                server.post("/finish_weight_update").good()
            }
        };
        assert_eq!(server.checksums(), expected(&tensors, &["moe_loader"]), "{wrapper}");
    }
}

#[test]
fn names_that_become_one_are_refused_and_a_manifest_is_renamed() {
    let server = Server::start(&[]);
    let norm = some(&step(1), |name| name == "model.norm.weight");
    let both = [norm.clone(), named(&norm, |n| format!("_orig_mod.{n}"))].concat();
    let refused = server.bytes("/update_weights?complete=false&rename=_orig_mod.=", &file(&both, &[])).refused(422);
    assert!(refused.contains("the renames make `model.norm.weight` of it"), "{refused}");
    for wrong in ["abc", "=x", "a%20b=c"] {
        let refused = server.bytes(&format!("/update_weights?rename={wrong}"), &file(&norm, &[])).refused(400);
        assert!(refused.contains("rename"), "{wrong}: {refused}");
    }
    let begin = json!({
        "complete": false, "rename": { "_orig_mod.": "" },
        "manifest": { "tensors": { "_orig_mod.model.norm.weight": {} } },
    });
    server.json("/start_weight_update", &begin).good();
    server.bytes("/update_weights", &file(&both[1..], &[])).good();
    let done = server.post("/finish_weight_update").good();
    assert_eq!(server.checksums(), expected(&replaced(&step(0), &norm), &["moe_loader"]), "{done}");
    // A rename that matches nothing is said.
    let done = server.bytes("/update_weights?complete=false&rename=nothing.=", &file(&norm, &[])).good();
    assert!(done["notes"][0].as_str().unwrap().contains("rename `nothing.=` matched no tensor"), "{done}");
}

/// A model folder whose names have a wrapper's prefix, by every verb that reads weights.
#[test]
fn every_verb_renames_what_it_reads() {
    let tmp = tmp();
    let plain = repo().join("models/tiny-shakespeare-moe");
    let wrapped = copy_folder(&plain, &tmp.path().join("m"));
    edit_tensors(&wrapped, |tensors| *tensors = named(tensors, |n| format!("module._orig_mod.{n}")));
    let text = |path: &Path| path.display().to_string();
    let (model, good) = (text(&wrapped), text(&plain));
    let rename = ["--rename", "module.=", "--rename", "_orig_mod.="];
    let ids = text(&crate::support::ids_file(tmp.path(), &[1, 2, 3]));
    let run = |verb: &str, model: &str, more: &[&str]| patchhost([&[verb, model][..], more].concat());
    let refused = run("run", &model, &["--max-tokens", "1"]).refused(1, tmp.path());
    assert!(refused.contains("--rename _orig_mod.= --rename module.="), "{refused}");
    let logits = |model: &str, out: &str, more: &[&str]| {
        let out = text(&tmp.path().join(out));
        run("logits", model, &[&["--ids", &ids, "--out", &out], more].concat()).good();
        read(Path::new(&out))
    };
    assert_eq!(logits(&model, "a", &rename), logits(&good, "b", &[]));
    run("run", &model, &[&["--prompt", "KING", "--max-tokens", "2"][..], &rename].concat()).good();
    let explained = |model: &str, more: &[&str]| {
        run("explain", model, &[&["--format", "json"], more].concat()).good().json()["tensors"].clone()
    };
    assert_eq!(explained(&model, &rename), explained(&good, &[]));
    run("verify-refit", &model, &rename).good();
    let file_of = |folder: &Path| text(&folder.join("model.safetensors"));
    let refit = |model: &str, from: &str, more: &[&str]| {
        run("refit", model, &[&["--from", from, "--format", "json"], more].concat()).good().json()["sha256"].clone()
    };
    let sha256 = refit(&good, &file_of(&plain), &[]);
    assert_eq!(refit(&model, &file_of(&wrapped), &rename), sha256);
    assert_eq!(refit(&good, &file_of(&wrapped), &rename), sha256, "names that have no prefix stay");
    let quantized = |from: &Path, out: &str, more: &[&str]| {
        let out = text(&tmp.path().join(out));
        run("quantize", &file_of(from), &[&[&out[..], "--component", "fp8_block"], more].concat()).good();
        read(Path::new(&out))
    };
    assert_eq!(quantized(&wrapped, "qa.safetensors", &rename), quantized(&plain, "qb.safetensors", &[]));
    let exported = |model: &str, out: &str, more: &[&str]| {
        let out = text(&tmp.path().join(out));
        run("export", model, &[&[&out[..], "--component", "fp8_block", "--for", "transformers"], more].concat()).good();
        read(Path::new(&out))
    };
    assert_eq!(exported(&model, "ea", &rename), exported(&good, "eb", &[]));
    // Two tensors that become one.
    edit_tensors(&wrapped, |tensors| {
        let norm = tensors.iter().find(|t| t.0.ends_with("model.norm.weight")).unwrap().clone();
        tensors.push(("model.norm.weight".to_string(), norm.1, norm.2, norm.3));
    });
    let twice = run("explain", &model, &rename).refused(2, tmp.path());
    assert!(twice.contains("the renames make `model.norm.weight` of it"), "{twice}");
    let odd = run("explain", &good, &["--rename", "abc"]);
    assert!(odd.code == 2 && odd.stderr.contains("it has no `=`"), "{}", odd.stderr);
}

/// What the server reads and what senders send goes through its renames; deltas of such files, too.
#[test]
fn a_server_renames_what_it_reads_and_what_comes() {
    let tmp = tmp();
    let wrap = |n: &str| format!("_orig_mod.{n}");
    let plain = repo().join("models/tiny-shakespeare-moe");
    let mut folders = Vec::new();
    for n in 0..3u32 {
        let folder = copy_folder(&plain, &tmp.path().join(format!("m{n}")));
        save(&folder.join("model.safetensors"), &named(&step(n), wrap), &[]);
        folders.push(folder.display().to_string());
    }
    let versions = tmp.path().join("versions");
    let delta = |base: usize, out: &Path| {
        let args = ["refit", &folders[base], "--from", &folders[base + 1], "--base-version", &base.to_string()];
        let more = ["--rename", "_orig_mod.=", "--save-delta", out.to_str().unwrap()];
        patchhost(args.iter().chain(&more)).good();
    };
    // Deltas are written under the model's names: the server's rename leaves those alone.
    delta(0, &versions);
    let root = tmp.path().display().to_string();
    let server = Server::start(&[&folders[0], "--rename", "_orig_mod.=", "--root", &root]);
    assert_eq!(server.checksums(), expected(&step(0), &["moe_loader"]));
    server.json("/update_weights_from_disk", &json!({ "model_path": "versions" })).good();
    assert_eq!(server.checksums(), expected(&step(1), &["moe_loader"]));
    server.json("/update_weights_from_disk", &json!({ "model_path": "m2" })).good();
    assert_eq!(server.checksums(), expected(&step(2), &["moe_loader"]));
    for tensors in [named(&step(3), wrap), step(4)] {
        server.bytes("/update_weights", &file(&tensors, &[])).good();
    }
    assert_eq!(server.checksums(), expected(&step(4), &["moe_loader"]));
    let part = some(&named(&step(5), wrap), |name| name.contains("v_proj"));
    server.bytes("/update_weights?complete=false", &file(&part, &[])).good();
    let plain_part = some(&step(5), |name| name.contains("v_proj"));
    assert_eq!(server.checksums(), expected(&replaced(&step(4), &plain_part), &["moe_loader"]));
    write(&tmp.path().join("part.safetensors"), &part);
    let body = json!({ "model_path": "part.safetensors", "complete": false, "rename": { "^_orig_mod.": "" } });
    server.json("/update_weights_from_disk", &body).good();
}
