//! The fuzz targets of `fuzz/`, over their seeds and over damaged seeds: they compile, and they hold, without a fuzzer.

#[path = "../../../fuzz/src/targets.rs"]
mod targets;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::mutate;
use super::tally::{Outcome, Tally, count};
use crate::hostile::wat;
use crate::support::repo;

/// The seeds of a target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = repo().join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn the_mirror_is_assembled_from_its_text() {
    let path = repo().join("fuzz/mirror.wasm");
    let now = wat::guest("mirror");
    if std::env::var_os("PATCHHOST_BLESS").is_some() {
        std::fs::write(&path, &now).unwrap();
        bless_ledger();
    }
    assert!(std::fs::read(&path).unwrap() == now, "PATCHHOST_BLESS=1 writes fuzz/mirror.wasm anew");
}

/// A ledger of three events, as a seed.
fn bless_ledger() {
    use patchhost::patch::{Actor, Ledger, LedgerOptions};
    let tmp = crate::support::tmp();
    let path = tmp.path().join("ledger.jsonl");
    let (ledger, _) = Ledger::open(&path, LedgerOptions::default()).unwrap();
    for n in 0..2 {
        ledger
            .append("test.event", &Actor::new("test"), serde_json::json!({ "n": n }).as_object().unwrap().clone())
            .unwrap();
    }
    std::fs::copy(&path, repo().join("fuzz/corpus/ledger/three")).unwrap();
}

#[test]
fn every_target_holds_on_its_seeds() {
    for (name, target) in targets::ALL {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        seeds.iter().for_each(|seed| target(seed));
    }
}

#[test]
fn every_target_holds_on_damaged_seeds() {
    for (name, target) in targets::ALL {
        let seeds = seeds(name);
        Tally::run(name, count(200, 20_000), |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
            let other = &seeds[rng.random_range(0..seeds.len())];
            for _ in 0..rng.random_range(1..=5) {
                mutate::bytes(&mut rng, &mut bytes, other);
            }
            target(&bytes);
            Outcome::Accepted
        });
    }
}

/// The seeds of `answers` are what they say: some answers are good ones, and what the adapters make of them is right.
#[test]
fn the_mirror_answers_what_it_was_given() {
    use patchhost_runtime::hooks::{Blocks, Consumer, Decision};
    let patch = crate::hostile::inside::load("mirror", targets::MIRROR.to_vec(), Default::default()).unwrap();
    let quant = patch.block_quant().unwrap();
    let give = |seed: &str| {
        let bytes = std::fs::read(repo().join("fuzz/corpus/answers").join(seed)).unwrap();
        let words: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let blocks = Blocks { tensor: "w", rows: 1, cols: 1, block_rows: 1, block_cols: 1, first_block: 0 };
        quant.scales(&blocks, &words).unwrap();
    };
    give("list");
    assert_eq!(quant.activation_scales(&[3.0, 4.0]).unwrap(), [1.0, 2.0]);
    give("decision");
    let model = crate::hostile::inside::model();
    let reader = Consumer { engine: "patchhost".into(), version: "0.1.0".into() };
    let tensor = patchhost_runtime::hooks::TensorInfo {
        name: "w".into(),
        dtype: patchhost_runtime::hooks::Dtype::Bf16,
        shape: vec![2, 2],
        role: patchhost_runtime::hooks::Role::Mlp,
    };
    let decision = quant.decide(&model, &reader, &[tensor]).unwrap().remove(0);
    assert!(matches!(&decision, Decision::Quantize(s) if s.scale_suffix == "_scale_inv"), "{decision:?}");
    give("ranges");
    assert_eq!(patch.logits_mask().unwrap().masked(&model, 1_000, 900).unwrap(), [3..5, 7..9]);
    give("snapshot");
    assert_eq!(patch.export_state().unwrap().unwrap().schema(), "sche");
}
