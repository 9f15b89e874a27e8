//! Generated files of the host's own: safetensors headers, config.json, indexes, policies, ledgers.

use std::sync::Arc;

use patchhost::trust::Policy;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::refit::RefitHooks;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::mutate;
use super::tally::{Outcome, Tally, count};
use crate::support::{data, tmp};

const QUIET: &(dyn Fn(usize, usize, &str) + Sync) = &|_, _, _| {};

fn checkpoint(bytes: Vec<u8>) -> Result<Checkpoint, String> {
    Checkpoint::from_shared("generated", Arc::new(bytes)).map_err(|e| e.to_string())
}

fn of<T, E: ToString>(result: Result<T, E>) -> Outcome {
    result.map_or_else(|e| Outcome::Refused(e.to_string()), |_| Outcome::Accepted)
}

/// Header and data of a safetensors file.
fn parts(bytes: &[u8]) -> (Value, &[u8]) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), &bytes[8 + length..])
}

fn file(header: &[u8], data: &[u8], length: u64) -> Vec<u8> {
    [&length.to_le_bytes(), header, data].concat()
}

#[test]
fn safetensors_headers() {
    let folder = data("oracle").join("llama");
    let good = std::fs::read(folder.join("model.safetensors")).unwrap();
    let (header, tensors) = parts(&good);
    let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
    Tally::run("safetensors headers", count(300, 5_000), |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut header = header.clone();
        let mut text = Vec::new();
        if seed % 3 != 0 {
            for _ in 0..rng.random_range(1..=3) {
                mutate::json(&mut rng, &mut header);
            }
        }
        text.extend(header.to_string().into_bytes());
        match seed % 6 {
            0 | 3 => {
                for _ in 0..rng.random_range(1..=4) {
                    let other = text.clone();
                    mutate::bytes(&mut rng, &mut text, &other);
                }
            }
            // A key twice, which a JSON value cannot say.
            1 => {
                let first = text.iter().position(|b| *b == b',').unwrap_or(1);
                let copy = text[1..first].to_vec();
                text.splice(1..1, [copy, b",".to_vec()].concat());
            }
            _ => {}
        }
        let mut length = text.len() as u64;
        if seed % 7 == 0 {
            length = [0, 1, length - 1, length + 1, 1 << 20, 1 << 40, u64::MAX, u64::MAX - 7][rng.random_range(0..8)];
        }
        match checkpoint(file(&text, tensors, length)) {
            Err(why) => Outcome::Refused(why),
            Ok(checkpoint) => of(engine.refit(&checkpoint, &RefitHooks::default(), QUIET)),
        }
    });
}

#[test]
fn configs() {
    let models = ["llama", "qwen3_moe", "deepseek_v3", "qwen3_next", "llama3_rope", "qwen3_yarn", "kimi_vl", "mixtral"];
    let models = models.map(|name| {
        let text = std::fs::read_to_string(data("oracle").join(name).join("config.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()
    });
    Tally::run("config.json", count(1_000, 20_000), |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut config = models[seed as usize % models.len()].clone();
        for _ in 0..rng.random_range(1..=3) {
            mutate::json(&mut rng, &mut config);
        }
        let mut text = config.to_string().into_bytes();
        if seed % 10 == 0 {
            let other = text.clone();
            mutate::bytes(&mut rng, &mut text, &other);
        }
        of(Engine::new(&String::from_utf8_lossy(&text), EngineOptions::default()))
    });
}

#[test]
fn indexes() {
    let from = data("oracle").join("qwen3_moe_sharded");
    let tmp = tmp();
    let folder = crate::support::copy_folder(&from, tmp.path());
    let path = folder.join("model.safetensors.index.json");
    let good: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    Tally::run("model.safetensors.index.json", count(200, 2_000), |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut index = good.clone();
        for _ in 0..rng.random_range(1..=3) {
            mutate::json(&mut rng, &mut index);
        }
        let mut text = index.to_string().into_bytes();
        if seed % 4 == 0 {
            let other = text.clone();
            mutate::bytes(&mut rng, &mut text, &other);
        }
        std::fs::write(&path, text).unwrap();
        of(Checkpoint::open(&folder))
    });
}

#[test]
fn policies() {
    let default = toml_of_everything();
    Tally::run("policies", count(2_000, 50_000), |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut text = default.clone().into_bytes();
        for _ in 0..rng.random_range(1..=4) {
            let other = text.clone();
            mutate::bytes(&mut rng, &mut text, &other);
        }
        of(Policy::parse(&String::from_utf8_lossy(&text)))
    });
}

/// Every key that a policy has by default, and a few that it has not.
fn toml_of_everything() -> String {
    "[hooks.block-quant]\non_failure = \"native\"\n[failure]\nbackoff_ms = 500\nbackoff_max_ms = 60000\njitter = 0.25\n\
     restart_budget = 3\nwindow_s = 600\n[shadow]\nmax_bytes_changed = 1.0\nmax_scales_changed = 1.0\nmax_scale_ulp = 4\n\
     max_snr_loss_db = 1.0\nmax_saturated = 0.01\nsample = 1.0\n[swap]\ndrain_deadline_s = 60\nretain = 2\nmax_staged = 16\n\
     [audit.caps]\nbytes = 1048576\nfunctions = 4000\n[audit.rules]\nPH503 = \"allow\"\n"
        .to_owned()
}

#[test]
fn ledgers() {
    use patchhost::patch::{Actor, Ledger, LedgerOptions};
    let tmp = tmp();
    let path = tmp.path().join("ledger.jsonl");
    {
        let (ledger, _) = Ledger::open(&path, LedgerOptions::default()).unwrap();
        for n in 0..40 {
            let fields = serde_json::json!({ "n": n, "why": "\u{1b}[2J" });
            ledger.append("test.event", &Actor::new("test"), fields.as_object().unwrap().clone()).unwrap();
        }
    }
    let good = std::fs::read(&path).unwrap();
    Tally::run("ledgers", count(500, 10_000), |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = good.clone();
        for _ in 0..rng.random_range(1..=3) {
            mutate::bytes(&mut rng, &mut bytes, &good);
        }
        std::fs::write(&path, &bytes).unwrap();
        match patchhost::patch::ledger::verify(&path, None) {
            // Its end cut off between two records is a chain (`--head` is there for that); a torn end is noted.
            Ok(verified) if !good.starts_with(&bytes) && verified.notes.is_empty() => panic!("a changed ledger passes"),
            result => of(result),
        }
    });
}
