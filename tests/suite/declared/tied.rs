//! A head of its own in a model that config.json ties: compared with the embedding wherever tensors come from.

use std::path::{Path, PathBuf};

use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::copies::TiedHead;
use patchhost_runtime::engine::{Engine, EngineOptions};
use safetensors::tensor::Dtype;
use serde_json::json;

use super::{cast, moved, push, tensors_of};
use crate::http_client::Server;
use crate::http_rl::file;
use crate::list::{IDS, QUIET, model};
use crate::oracle::{hooks, logits};
use crate::support::{Tensor, copy_folder, edit_config, edit_tensors, patchhost, read, repo, tmp, write};

const EMBED: &str = "model.embed_tokens.weight";

/// A head that is the embedding's values, changed by `change`.
fn head(tensors: &[Tensor], change: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let embed = tensors.iter().find(|t| t.0 == EMBED).unwrap();
    change(&("lm_head.weight".to_string(), embed.1, embed.2.clone(), embed.3.clone()))
}

/// The last value is another one.
fn other(t: &Tensor) -> Tensor {
    let mut t = t.clone();
    *t.3.last_mut().unwrap() ^= 0x40;
    t
}

/// The bundled model, which is tied, with a head of its own.
fn bundled(head_of: impl Fn(&Tensor) -> Tensor) -> (tempfile::TempDir, PathBuf) {
    let tmp = tmp();
    let folder = copy_folder(&repo().join("models/tiny-shakespeare-moe"), &tmp.path().join("m"));
    edit_tensors(&folder, |tensors| tensors.push(head(tensors, head_of)));
    (tmp, folder)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_verb_refuses_a_head_that_differs_and_takes_one_that_does_not() {
    let (tmp, folder) = bundled(other);
    let (_same, equal) = bundled(Tensor::clone);
    let ids = crate::support::ids_file(tmp.path(), &[1, 2, 3]);
    let out = tmp.path().join("out");
    let whole = tmp.path().join("whole");
    copy_folder(&repo().join("models/tiny-shakespeare-moe"), &whole);
    let verbs: Vec<(&str, Vec<&str>)> = vec![
        ("run", vec!["--prompt", "KING", "--max-tokens", "2"]),
        ("logits", vec!["--ids", path(&ids), "--out", path(&out), "--dtype", "f32"]),
        ("explain", vec![]),
        ("verify-refit", vec![]),
        ("train", vec!["--steps", "1", "--samples", "2", "--prompts-per-step", "1", "--max-tokens", "2"]),
        ("serve", vec!["--listen", "127.0.0.1:0"]),
        ("refit", vec!["--from", path(&whole)]),
    ];
    for (verb, rest) in &verbs {
        let of = |folder: &'_ Path| {
            [&[*verb, path(folder)][..], rest].concat().into_iter().map(String::from).collect::<Vec<_>>()
        };
        let text = patchhost(of(&folder)).refused(1, tmp.path());
        for says in
            ["tensor `lm_head.weight`", EMBED, "tie_word_embeddings", "--tied-head file", "--tied-head embedding"]
        {
            assert!(text.contains(says), "{verb}: {text}");
        }
        if *verb != "serve" {
            patchhost(of(&equal)).good();
        }
    }
    for (of, good) in [(&folder, false), (&equal, true)] {
        let made = tmp.path().join("export");
        let compare = patchhost(["compare", "fp8_block", "--against", "bf16", path(of)]);
        let export = patchhost(["export", path(of), path(&made), "--component", "fp8_block", "--for", "vllm"]);
        for ran in [compare, export] {
            match good {
                true => drop(ran.good()),
                false => assert!(ran.refused(1, tmp.path()).contains("tensor `lm_head.weight`")),
            }
        }
    }
    let from = ["refit", path(&whole), "--from", path(&folder)];
    assert!(patchhost(from).refused(1, tmp.path()).contains("tensor `lm_head.weight`"));
    patchhost(["refit", path(&whole), "--from", path(&equal)]).good();
}

/// The embedding in any type, and a head in any type: the same once both are in the less precise one.
#[test]
fn they_are_compared_in_the_less_precise_of_their_types() {
    let (_tmp, folder) = model("qwen2");
    let own = tensors_of(&folder);
    let masters: Vec<Tensor> = own.iter().map(moved).collect();
    let plain = hooks(&["fp8_block"]);
    for (tensors, change, same) in [
        (&own, Dtype::BF16, true),
        (&own, Dtype::F32, true),
        (&masters, Dtype::F32, true),
        (&masters, Dtype::BF16, true),
        (&masters, Dtype::F16, true),
    ] {
        for differs in [false, true] {
            let mut all = tensors.clone();
            all.push(head(&all, |t| if differs { other(&cast(t, change)) } else { cast(t, change) }));
            let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
            let first = push(&engine, &plain, &all, false).map(|_| ());
            assert_eq!(first.is_ok(), same && !differs, "{change:?} {differs}: {first:?}");
            // As an update, where the embedding is rounded.
            let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
            push(&engine, &plain, &own, false).unwrap();
            let update = push(&engine, &plain, &all, false).map(|_| ());
            assert_eq!(update.is_ok(), same && !differs, "{change:?} {differs}: {update:?}");
        }
    }
    // Another shape, and a type that is no float.
    for odd in [
        ("lm_head.weight".to_string(), Dtype::BF16, vec![1, 2], vec![0; 4]),
        ("lm_head.weight".to_string(), Dtype::U8, vec![4], vec![0; 4]),
    ] {
        let mut all = own.clone();
        all.push(odd);
        let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
        let error = push(&engine, &plain, &all, false).unwrap_err().to_string();
        assert!(error.contains("tensor `lm_head.weight`") && error.contains("its shape is"), "{error}");
    }
    // Zeros of either sign are one number.
    let zero = |t: &Tensor, byte: u8| (t.0.clone(), t.1, t.2.clone(), [0, byte].repeat(t.3.len() / 2));
    let mut all: Vec<Tensor> = own.iter().map(|t| if t.0 == EMBED { zero(t, 0) } else { t.clone() }).collect();
    all.push(head(&all, |t| zero(t, 0x80)));
    push(&Engine::open(&folder, EngineOptions::default()).unwrap(), &plain, &all, false).unwrap();
}

#[test]
fn both_ways_out_give_the_model_that_they_name() {
    let (_tmp, folder) = model("qwen2");
    edit_tensors(&folder, |t| t.push(head(t, moved)));
    let plain = hooks(&[]);
    let with = |tied_head, edit: fn(&mut serde_json::Value), tensors: &dyn Fn(&Tensor) -> bool| {
        let (_tmp, copy) = {
            let t = tmp();
            let c = copy_folder(&folder, &t.path().join("c"));
            (t, c)
        };
        edit_config(&copy, edit);
        edit_tensors(&copy, |t| t.retain(tensors));
        let engine = Engine::open(&copy, EngineOptions { tied_head, ..EngineOptions::default() }).unwrap();
        engine.refit(&Checkpoint::open(&copy).unwrap(), &plain, QUIET).map(|report| (report, logits(&engine, &[IDS])))
    };
    let all = |_: &Tensor| true;
    let (_, untied) = with(TiedHead::Refuse, |c| c["tie_word_embeddings"] = json!(false), &all).unwrap();
    let (_, tied) = with(TiedHead::Refuse, |_| (), &|t| t.0 != "lm_head.weight").unwrap();
    assert_ne!(untied, tied);
    assert!(with(TiedHead::Refuse, |_| (), &all).is_err());
    assert_eq!(with(TiedHead::File, |_| (), &all).unwrap().1, untied);
    let (report, text) = with(TiedHead::Embedding, |_| (), &all).unwrap();
    assert!(text == tied && report.notes[0].contains("--tied-head"), "{:?}", report.notes);
    let missing = with(TiedHead::File, |_| (), &|t| t.0 != "lm_head.weight").unwrap_err().to_string();
    assert!(missing.contains("nothing writes `lm_head.weight`"), "{missing}");
}

/// What is exported is what is served, and whoever reads it finds no second head.
#[test]
fn an_export_has_the_head_that_was_chosen() {
    let (tmp, folder) = bundled(other);
    let out = |name: &str| tmp.path().join(name);
    let export = |name: &str, which: &str| {
        let component = ["--component", "fp8_block", "--for", "vllm", "--tied-head", which];
        patchhost(["export", path(&folder), path(&out(name))].iter().chain(&component)).good();
        let config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(out(name).join("config.json")).unwrap()).unwrap();
        let head = read(&out(name)).into_iter().find(|t| t.0 == "lm_head.weight");
        (config["tie_word_embeddings"].clone(), head)
    };
    let own = tensors_of(&folder).into_iter().find(|t| t.0 == "lm_head.weight");
    assert_eq!(export("file", "file"), (json!(false), own));
    assert_eq!(export("embedding", "embedding"), (json!(true), None));
}

#[test]
fn an_update_with_another_head_is_refused_in_every_dialect() {
    let (_tmp, folder) = bundled(Tensor::clone);
    let own = tensors_of(&folder);
    let server = Server::start(&[path(&folder)]);
    let before = server.checksums();
    let (good, bad) = (
        own.clone(),
        own.iter().map(|t| if t.0 == "lm_head.weight" { other(t) } else { t.clone() }).collect::<Vec<_>>(),
    );
    for (path, status) in [("/update_weights", 422), ("/update_weights_from_tensor", 400)] {
        let text = server.bytes(path, &file(&bad, &[])).refused(status);
        assert!(text.contains("lm_head.weight") && text.contains("tie_word_embeddings"), "{path}: {text}");
        server.bytes(path, &file(&good, &[])).good();
    }
    // The head and the embedding in different requests, in either order.
    for (begin, send, end, status) in [
        ("/start_weight_update", "/update_weights", "/finish_weight_update", 422),
        ("/begin_weight_update", "/update_weights_from_tensor", "/end_weight_update", 400),
    ] {
        for (tensors, refused) in [(&bad, true), (&good, false)] {
            server.json(begin, &json!({})).good();
            let (heads, rest): (Vec<_>, Vec<_>) = tensors.iter().cloned().partition(|t| t.0 == "lm_head.weight");
            for part in if refused { [&heads, &rest] } else { [&rest, &heads] } {
                server.bytes(send, &file(part, &[])).good();
            }
            let answer = server.json(end, &json!({}));
            match refused {
                true => assert!(answer.refused(status).contains("lm_head.weight")),
                false => drop(answer.good()),
            }
        }
    }
    for (name, _, shape, data) in &bad {
        let dims: Vec<String> = shape.iter().map(ToString::to_string).collect();
        let url = format!("/update_named_param/?name={name}&dtype=bfloat16&shape={}", dims.join(","));
        server.bytes(&url, data).good();
    }
    assert!(server.post("/reset_prefix_cache/").refused(422).contains("lm_head.weight"));
    assert_eq!(server.checksums(), before);
}

/// Nothing takes the place of the embedding by itself.
#[test]
fn a_folder_with_only_a_head_lacks_its_embedding() {
    let (_tmp, folder) = model("qwen2");
    let mut tensors = tensors_of(&folder);
    let only = head(&tensors, Tensor::clone);
    tensors.retain(|t| t.0 != EMBED);
    tensors.push(only);
    write(&folder.join("model.safetensors"), &tensors);
    let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
    let error = engine.refit(&Checkpoint::open(&folder).unwrap(), &hooks(&[]), QUIET).unwrap_err().to_string();
    assert!(error.contains(&format!("nothing writes `{EMBED}`")), "{error}");
}
