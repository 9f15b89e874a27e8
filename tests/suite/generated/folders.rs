//! Generated model folders: config, tokenizer, chat template, index and adapter, each damaged or grown into an attack. What
//! the program does with a folder is done here, with the children that it would start; some go through the program itself,
//! whose memory is measured.

use std::path::{Path, PathBuf};
use std::time::Duration;

use patchhost::text;
use patchhost_runtime::assembly::ChunkHeader;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::lora::AdapterBuilder;
use patchhost_runtime::tokenizer::{Message, Tokenizer, fits};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::mutate;
use super::tally::{Outcome, Tally, count};
use crate::hostile::child;
use crate::support::{binary, copy_folder, f32_bytes, repo, tmp};

/// What a folder may take besides its files, in KiB.
const MOST_KIB: u64 = 256 << 10;
/// Positions that a conversation may take.
const POSITIONS: usize = 2048;

/// The bundled model with an index, a chat template and an adapter.
struct Folder {
    /// Removed with this value.
    _place: tempfile::TempDir,
    path: PathBuf,
    /// The files as they are, to begin each time anew: name and content.
    files: Vec<(&'static str, Vec<u8>)>,
}

const FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
];

impl Folder {
    fn new() -> Self {
        let place = tmp();
        let path = copy_folder(&repo().join("models/tiny-shakespeare-moe"), &place.path().join("model"));
        let tensors = Checkpoint::open(&path).unwrap();
        let map: serde_json::Map<String, Value> =
            tensors.tensors().map(|t| (t.name.clone(), "model.safetensors".into())).collect();
        let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
        std::fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
        let text = std::fs::read_to_string(path.join("tokenizer_config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["chat_template"] = "{% for m in messages %}{{ m.role|upper }}: {{ m.content }}\n{% endfor %}".into();
        std::fs::write(path.join("tokenizer_config.json"), config.to_string()).unwrap();
        adapter_for(&tensors, &path.join("adapter"));
        let files = FILES.map(|name| (name, std::fs::read(path.join(name)).unwrap())).to_vec();
        Self { _place: place, path, files }
    }

    /// Writes all files anew, one or two of them changed.
    fn change(&self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut files = self.files.clone();
        for _ in 0..rng.random_range(1..=2) {
            let at = rng.random_range(0..files.len());
            let (name, bytes) = &mut files[at];
            let parsed = serde_json::from_slice::<Value>(bytes).ok();
            match parsed {
                Some(mut value) if value.is_object() && rng.random_bool(0.8) => {
                    match *name {
                        "tokenizer.json" if rng.random_bool(0.7) => steps(&mut rng, &mut value),
                        "tokenizer_config.json" if rng.random_bool(0.9) => {
                            value["chat_template"] = template(&mut rng).into();
                        }
                        _ => (0..rng.random_range(1..=4)).for_each(|_| mutate::json(&mut rng, &mut value)),
                    }
                    *bytes = value.to_string().into_bytes();
                }
                _ => {
                    let other = bytes.clone();
                    (0..rng.random_range(1..=4)).for_each(|_| mutate::bytes(&mut rng, bytes, &other));
                }
            }
        }
        for (name, bytes) in files {
            std::fs::write(self.path.join(name), bytes).unwrap();
        }
    }

    fn kib(&self) -> u64 {
        let size = |name: &&str| self.path.join(name).metadata().map_or(0, |data| data.len());
        FILES.iter().map(size).sum::<u64>() >> 10
    }
}

/// An adapter of rank 2 for one projection.
fn adapter_for(model: &Checkpoint, folder: &Path) {
    let module = "model.layers.0.self_attn.q_proj";
    let shape = &model.get(&format!("{module}.weight")).unwrap().shape;
    std::fs::create_dir(folder).unwrap();
    let half = |name: &str, shape: [usize; 2]| {
        let zeros = vec![0.0; shape[0] * shape[1]];
        (format!("base_model.model.{module}.{name}.weight"), Dtype::F32, shape.to_vec(), f32_bytes(&zeros))
    };
    let halves = [half("lora_A", [2, shape[1]]), half("lora_B", [shape[0], 2])];
    crate::support::write(&folder.join("adapter_model.safetensors"), &halves);
    let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
        "layers_to_transform": [0], "bias": "none", "use_rslora": false, "use_dora": false, "modules_to_save": null,
        "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": false, "task_type": "CAUSAL_LM" });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

/// One of them.
fn pick<'a>(rng: &mut StdRng, all: &[&'a str]) -> &'a str {
    all[rng.random_range(0..all.len())]
}

/// Another part in a tokenizer: known kinds with odd numbers and texts.
fn steps(rng: &mut StdRng, tokenizer: &mut Value) {
    let text = |rng: &mut StdRng| -> String {
        let texts = ["", "a", " ", "▁", "Ġ", "[UNK]", "(a|b)*c", ".", "\\s+", "(?=x)", "ﷺ", "\u{0}", "<|endoftext|>"];
        let text = texts[rng.random_range(0..texts.len())];
        text.repeat([1, 1, 1, 2, 40, 3_000][rng.random_range(0..6)])
    };
    let number = |rng: &mut StdRng| json!([0u64, 1, 2, 7, 255, 1 << 31, 1 << 40, u64::MAX][rng.random_range(0..8)]);
    let pattern = |rng: &mut StdRng| match rng.random_bool(0.5) {
        true => json!({ "String": text(rng) }),
        false => json!({ "Regex": text(rng) }),
    };
    let behavior = |rng: &mut StdRng| {
        ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"][rng.random_range(0..5)]
    };
    let one = |rng: &mut StdRng, name: &str| match (name, rng.random_range(0..10)) {
        ("normalizer", 0..=3) | ("decoder", 0..=2) => {
            json!({ "type": "Replace", "pattern": pattern(rng), "content": text(rng) })
        }
        ("normalizer", 4) => json!({ "type": "Prepend", "prepend": text(rng) }),
        ("normalizer", 5) => {
            let map = ["", "AAAA", "BAAAAP////8A", "/////w==", "CAAAAAAAAAAAAAAAYQBi", "BAAAAAEBAABhAA=="];
            json!({ "type": "Precompiled", "precompiled_charsmap": map[rng.random_range(0..map.len())] })
        }
        ("normalizer", _) => {
            json!({ "type": pick(rng, &["NFKD", "NFC", "Lowercase", "StripAccents", "Nmt", "ByteLevel"]) })
        }
        ("pre_tokenizer", 0..=2) => json!({ "type": "FixedLength", "length": number(rng) }),
        ("pre_tokenizer", 3..=5) => {
            json!({ "type": "Split", "pattern": pattern(rng), "behavior": behavior(rng), "invert": rng.random_bool(0.5) })
        }
        ("pre_tokenizer", 6..=7) => {
            let scheme = ["always", "never", "first"][rng.random_range(0..3)];
            json!({ "type": "Metaspace", "replacement": text(rng), "prepend_scheme": scheme, "split": true })
        }
        ("pre_tokenizer", _) => json!({ "type": pick(rng, &["Whitespace", "Digits", "UnicodeScripts"]) }),
        ("decoder", 3..=4) => json!({ "type": "Strip", "content": " ", "start": number(rng), "stop": number(rng) }),
        ("decoder", 5) => {
            json!({ "type": "CTC", "pad_token": text(rng), "word_delimiter_token": text(rng), "cleanup": true })
        }
        ("decoder", 6) => json!({ "type": "WordPiece", "prefix": text(rng), "cleanup": true }),
        ("decoder", _) => json!({ "type": pick(rng, &["Fuse", "ByteFallback", "ByteLevel"]) }),
        (_, 0..=4) => {
            let place = json!({ "SpecialToken": { "id": text(rng), "type_id": number(rng) } });
            let sequence = json!({ "Sequence": { "id": pick(rng, &["A", "B"]), "type_id": 0 } });
            let special = json!({ "a": { "id": text(rng), "ids": [0, 9_999_999], "tokens": [text(rng)] } });
            json!({ "type": "TemplateProcessing", "single": [place, sequence], "pair": [sequence], "special_tokens": special })
        }
        ("post_processor", 5..=7) => {
            json!({ "type": "RobertaProcessing", "sep": ["x", number(rng)], "cls": ["y", number(rng)],
            "trim_offsets": true, "add_prefix_space": true })
        }
        _ => json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
    };
    let parts = [
        ("normalizer", "normalizers"),
        ("pre_tokenizer", "pretokenizers"),
        ("decoder", "decoders"),
        ("post_processor", "processors"),
    ];
    let (name, list) = parts[rng.random_range(0..parts.len())];
    tokenizer[name] = match rng.random_range(0..3) {
        0 => one(rng, name),
        n => {
            let steps: Vec<Value> = (0..rng.random_range(1..=[3, 40][n - 1])).map(|_| one(rng, name)).collect();
            json!({ "type": "Sequence", list: steps })
        }
    };
    if rng.random_bool(0.2) {
        tokenizer["padding"] = json!({ "strategy": { "Fixed": number(rng) }, "direction": "Left",
            "pad_to_multiple_of": number(rng), "pad_id": 0, "pad_type_id": 0, "pad_token": text(rng) });
    }
    if rng.random_bool(0.2) {
        tokenizer["truncation"] = json!({ "direction": "Right", "max_length": number(rng), "strategy": "LongestFirst",
            "stride": number(rng) });
    }
    if rng.random_bool(0.2) {
        let (unknown, bytes) = (text(rng), rng.random_bool(0.5));
        if let Some(model) = tokenizer.get_mut("model").and_then(Value::as_object_mut) {
            model.insert("unk_token".into(), unknown.into());
            model.insert("byte_fallback".into(), bytes.into());
        }
    }
}

/// A template of a few statements, some of which take all that they can get.
fn template(rng: &mut StdRng) -> String {
    let many = |rng: &mut StdRng| [3, 50, 5_000, 60_000][rng.random_range(0..4)];
    let atoms =
        ["messages", "ns", "ns.a", "x", "1", "'ab'", "[1, 'b']", "{'k': 1}", "bos_token", "range(100)", "1e300", "-1"];
    let filters = [
        "tojson",
        "list",
        "join('x')",
        "upper",
        "length",
        "indent(1000000)",
        "replace('a', 'b' * 1000)",
        "reverse",
        "tojson(indent=100000000)",
        "string",
        "sort",
        "unique",
        "batch(1000000000)",
        "slice(1000000000)",
        "dictsort",
        "center(9999999)",
    ];
    let atom = |rng: &mut StdRng| atoms[rng.random_range(0..atoms.len())].to_owned();
    let expression = |rng: &mut StdRng| match rng.random_range(0..9) {
        0 => format!("{}{}", ["-", "not ", "(", "["][rng.random_range(0..4)].repeat(many(rng)), atom(rng)),
        1 => format!(
            "{}{}",
            atom(rng),
            [" + 1", " ~ 'x'", "[0]", ".a", "|abs", " if x else 1"][rng.random_range(0..6)].repeat(many(rng))
        ),
        2 => format!("{} * {}", atom(rng), 10u64.pow(rng.random_range(0..12))),
        3 => format!("\"{{:>{}}}\".format({})", 10u64.pow(rng.random_range(0..12)), atom(rng)),
        4 => format!("\"%{}d\"|format({})", 10u64.pow(rng.random_range(0..12)), atom(rng)),
        5 => format!("{}.split({})", atom(rng), atom(rng)),
        _ => format!("{}|{}", atom(rng), filters[rng.random_range(0..filters.len())]),
    };
    let mut text = String::from("{% set ns = namespace(a=1, l=[1], s='ab') %}{% set x = 'y' %}");
    for _ in 0..rng.random_range(1..=5) {
        let e = expression(rng);
        text += &match rng.random_range(0..8) {
            0 => "{% set ns.a = ns %}".to_owned(),
            1 => format!("{{% for i in range({}) %}}{{% set ns.s = ns.s ~ ns.s %}}{{% endfor %}}", many(rng)),
            2 => format!("{{% for i in range({}) %}}{{% set ns.l = [ns.l, ns.l, {e}] %}}{{% endfor %}}", many(rng)),
            3 => format!("{{% macro f(n) %}}{{{{ {e} }}}}{{{{ f(n) }}}}{{% endmacro %}}{{{{ f(1) }}}}"),
            4 => format!("{{% for m in {e} recursive %}}{{{{ m }}}}{{{{ loop(m) }}}}{{% endfor %}}"),
            5 => format!("{{% set ns.a = {e} %}}{{{{ ns.l }}}}{{{{ ns.s }}}}"),
            _ => format!("{{{{ {e} }}}}"),
        };
    }
    text
}

/// Everything that is done with a folder. An answer is a success or the reasons of what was refused.
fn through(folder: &Path, weights: bool) -> Outcome {
    const QUIET: &(dyn Fn(usize, usize, &str) + Sync) = &|_, _, _| {};
    let mut refused = Vec::new();
    let mut tried = |error: Result<(), String>| refused.extend(error.err());
    let engine = Engine::open(folder, EngineOptions::default()).map_err(|e| e.to_string());
    tried(engine.as_ref().map(|_| ()).map_err(String::clone));
    let checkpoint = Checkpoint::open(folder).map_err(|e| e.to_string());
    tried(checkpoint.as_ref().map(|_| ()).map_err(String::clone));
    if let (Ok(engine), Ok(checkpoint)) = (&engine, &checkpoint) {
        if weights {
            let hooks = crate::oracle::hooks(&["moe_loader"]);
            tried(engine.refit(checkpoint, &hooks, QUIET).map(|_| ()).map_err(|e| e.to_string()));
        }
        tried(adapter(engine, &folder.join("adapter")));
    }
    tried(texts(folder));
    match refused.is_empty() {
        true => Outcome::Accepted,
        false => Outcome::Refused(refused.join("\n")),
    }
}

fn adapter(engine: &Engine, folder: &Path) -> Result<(), String> {
    let text = patchhost_runtime::files::read_text(&folder.join("adapter_config.json"), 1 << 20)
        .map_err(|e| format!("{e}\n"))?;
    let tensors = Checkpoint::open(&folder.join("adapter_model.safetensors")).map_err(|e| e.to_string())?;
    let mut builder = AdapterBuilder::new("a", text);
    for t in tensors.tensors() {
        let header = ChunkHeader { name: &t.name, dtype: t.stored, shape: &t.shape, offset: 0 };
        builder.chunk(&header, &t.data.load().map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    }
    let patch = crate::lora::lora_patch("lora_tensors", &[]);
    engine.load_adapter(builder, patch.as_ref()).map(|_| ()).map_err(|e| e.to_string())
}

fn texts(folder: &Path) -> Result<(), String> {
    let tokenizer = text::open(folder, &binary()).map_err(|e| e.to_string())?;
    let said = "KING HENRY.\nWhat's here? \u{0} ünï ﷺ 🎉 aaaa    bbbb <|endoftext|>";
    let mut wrong = None;
    if tokenizer.has_template() {
        let message = Message::new("user", said);
        wrong = chat(&tokenizer, message).err();
    }
    let ids = tokenizer.encode(&said.repeat(20)).map_err(|e| e.to_string())?;
    tokenizer.decode_all(&ids).map_err(|e| e.to_string())?;
    for id in ids.iter().take(20).chain(&[0, 1, u32::MAX]) {
        tokenizer.decode(&[*id]).map_err(|e| e.to_string())?;
    }
    wrong.map_or(Ok(()), Err)
}

/// A conversation by the chat template, as `run` and `serve` take it to tokens.
fn chat(tokenizer: &Tokenizer, message: Message) -> Result<(), String> {
    let rendered = tokenizer.render(&[message]).map_err(|e| e.to_string())?;
    if !fits(rendered.len(), POSITIONS) {
        return Err(format!("why: {} bytes do not fit into {POSITIONS} positions", rendered.len()));
    }
    tokenizer.encode_with(&rendered, false).map(|_| ()).map_err(|e| e.to_string())
}

#[test]
fn model_folders() {
    let folder = Folder::new();
    assert!(matches!(through(&folder.path, true), Outcome::Accepted), "the folder as it is");
    Tally::run("model folders", count(60, 5_000), |seed| {
        folder.change(seed);
        // Most of the time would be spent on weights that nobody changed.
        through(&folder.path, seed % 10 == 0)
    });
}

/// The same through the program: exit codes, three parts, memory, and time, which [`child::run`] watches over.
#[test]
fn model_folders_of_the_program() {
    let folder = Folder::new();
    let path = folder.path.to_str().unwrap();
    let adapter = folder.path.join("adapter");
    let args =
        ["run", path, "--max-tokens", "2", "--no-kl", "--prompt", "KING a  b", "--lora", adapter.to_str().unwrap()];
    child::run("the folder as it is", args).ran.good();
    Tally::run("model folders of the program", count(15, 500), |seed| {
        folder.change(1_000_000 + seed);
        let start = std::time::Instant::now();
        let ended = child::run(&format!("seed {seed}"), args);
        let most = MOST_KIB + folder.kib();
        assert!(ended.peak_kib < most, "{} KiB, at most {most} are allowed", ended.peak_kib);
        // A guard against hangs: five seconds on a machine that does nothing else.
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        match ended.ran.code {
            0 => Outcome::Accepted,
            1 | 2 => Outcome::Refused(ended.ran.refused(ended.ran.code, &folder.path)),
            code => panic!("exit {code}: {}", ended.ran.stderr),
        }
    });
}
