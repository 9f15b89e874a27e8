//! Files tokenizer.json that are attacks: they make the library that reads them panic, or need more memory or time than
//! there is. Each is refused with its model, by name, or does no harm.

use serde_json::{Value, json};

use super::child::{Ended, run};
use crate::support::{copy_folder, repo, tmp};

/// What a model may take besides its files, in KiB.
const MOST_KIB: u64 = 256 << 10;

fn bundled() -> Value {
    let path = repo().join("models/tiny-shakespeare-moe/tokenizer.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// `run` on the bundled model with another tokenizer.json.
fn with(what: &str, text: &str) -> Ended {
    let tmp = tmp();
    let model = copy_folder(&repo().join("models/tiny-shakespeare-moe"), &tmp.path().join("m"));
    std::fs::write(model.join("tokenizer.json"), text).unwrap();
    let ended = run(what, ["run", model.to_str().unwrap(), "--max-tokens", "2", "--no-kl", "--prompt", "KING a b"]);
    let most = MOST_KIB + (text.len() as u64 >> 10);
    assert!(ended.peak_kib < most, "{what}: {} KiB, at most {most} are allowed", ended.peak_kib);
    if ended.ran.code != 0 {
        let said = ended.ran.refused(2, tmp.path());
        assert!(said.contains("tokenizer.json"), "{what}: {said}");
    }
    ended
}

#[track_caller]
fn refused(what: &str, text: &str, words: &str) {
    let ended = with(what, text);
    assert_eq!(ended.ran.code, 2, "{what}: {}", ended.ran.stdout);
    assert!(ended.ran.stderr.contains(words), "{what}: no `{words}` in {}", ended.ran.stderr);
}

/// One part in the place of that of the bundled tokenizer.
fn part(name: &str, part: Value) -> String {
    let mut all = bundled();
    all[name] = part;
    all.to_string()
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content })
}

fn sequence(steps: Vec<Value>) -> Value {
    json!({ "type": "Sequence", "normalizers": steps })
}

#[test]
fn texts_that_grow() {
    let grows = "times longer, more than the limit";
    for (what, steps) in [
        ("doubling", vec![replace("a", "aa"); 30]),
        ("one step", vec![replace("a", &"b".repeat(2_000))]),
        (
            "a regular expression",
            vec![json!({ "type": "Replace", "pattern": { "Regex": "" }, "content": "x".repeat(600) })],
        ),
        ("prepended", vec![json!({ "type": "Prepend", "prepend": "x".repeat(1 << 20) })]),
        ("unicode", vec![json!({ "type": "NFKD" }); 4]),
    ] {
        refused(what, &part("normalizer", sequence(steps)), grows);
    }
    let nested =
        sequence(vec![sequence(vec![replace("a", "aaaaaaaa"); 2]), sequence(vec![replace("b", "bbbbbbbb"); 2])]);
    refused("nested", &part("normalizer", nested), grows);
    // Without the name of its kind, as old files are.
    let untyped = json!({ "pattern": { "String": "a" }, "content": "b".repeat(2_000) });
    refused("untyped", &part("normalizer", untyped), "tokenizer.json");
    let decoders = json!({ "type": "Sequence", "decoders": vec![replace("a", &"a".repeat(100)); 3] });
    refused("a decoder", &part("decoder", decoders), grows);
    refused("empty", &part("normalizer", replace("", "x")), "it replaces the empty text");
    // What SentencePiece models have.
    let honest = sequence(vec![json!({ "type": "Prepend", "prepend": "▁" }), replace(" ", "▁")]);
    assert_eq!(with("honest", &part("normalizer", honest)).ran.code, 0);
}

#[test]
fn parts_that_make_the_library_panic() {
    let token = |id: &str| json!({ "SpecialToken": { "id": id, "type_id": 0 } });
    let template = |single: Value, special: Value| json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special });
    let missing = template(json!([{ "Sequence": { "id": "A", "type_id": 0 } }, token("gone")]), json!({}));
    for (what, name, value, words) in [
        ("length 0", "pre_tokenizer", json!({ "type": "FixedLength", "length": 0 }), "length 0"),
        ("a missing token", "post_processor", missing, "tokenizer.json"),
        ("no charsmap", "normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": "" }), "tokenizer.json"),
        (
            "a short charsmap",
            "normalizer",
            json!({ "type": "Precompiled", "precompiled_charsmap": "BAAAAP////8A" }),
            "tokenizer.json",
        ),
        ("no charsmap at all", "normalizer", json!({ "type": "Precompiled" }), "tokenizer.json"),
        ("no decoder", "decoder", json!(7), "tokenizer.json"),
    ] {
        refused(what, &part(name, value), words);
    }
    let many = template(json!(vec![token("x"); 2_000]), json!({ "x": { "id": "x", "ids": [0], "tokens": ["x"] } }));
    refused("many tokens", &part("post_processor", many), "can add 2000 tokens");
    let long = template(json!([token("x")]), json!({ "x": { "id": "x", "ids": vec![0; 3_000], "tokens": ["x"] } }));
    refused("a long token", &part("post_processor", long), "can add 3000 tokens");
}

#[test]
fn padding_and_truncation_are_left_to_whoever_makes_batches() {
    let text = |ended: Ended| ended.ran.good().stdout.lines().find(|line| line.starts_with("KING")).map(str::to_owned);
    let plain = text(with("plain", &bundled().to_string()));
    assert!(plain.is_some());
    for size in [1_000_000_000u64, 1 << 40] {
        let padding = json!({ "strategy": { "Fixed": size }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "x" });
        assert_eq!(text(with("padding", &part("padding", padding))), plain);
    }
    let truncation = json!({ "direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0 });
    assert_eq!(text(with("truncation", &part("truncation", truncation))), plain);
}

#[test]
fn files_that_are_only_large() {
    let mut all = bundled();
    all["model"]["merges"] = json!([]);
    let text = all.to_string();
    let merges = format!("\"merges\":[\"a b\"{}]", ",\"a b\"".repeat(10_000_000));
    refused("60 MB of merges", &text.replace("\"merges\":[]", &merges), "10000001 entries, more than the limit");
    let words: String = (0..1_100_000).map(|i| format!("\"w{i}\":{i},")).collect();
    let vocab = text.replace("\"vocab\":{", &format!("\"vocab\":{{{words}"));
    refused("a vocabulary", &vocab, "entries, more than the limit");
    let word = format!("\"vocab\":{{\"{}\":1,", "w".repeat(1 << 20));
    refused("a word", &text.replace("\"vocab\":{", &word), "has 1048576 bytes, more than the limit");
    let nulls = format!("[null{}]", ",null".repeat(10_000_000));
    refused(
        "a part",
        &text.replace("\"normalizer\":null", &format!("\"normalizer\":{nulls}")),
        "values, more than the limit",
    );
    refused(
        "depth",
        &text.replace("\"normalizer\":null", &format!("\"normalizer\":{}1{}", "[".repeat(50_000), "]".repeat(50_000))),
        "tokenizer.json",
    );
    refused("65 MiB", &format!("{text}{}", " ".repeat(65 << 20)), "at most 67108864 are read");
    let unknown = json!("x".repeat(100_000));
    all["model"]["unk_token"] = unknown;
    refused("what stands for the unknown", &all.to_string(), "unk_token has a text of 100000 bytes");
}
