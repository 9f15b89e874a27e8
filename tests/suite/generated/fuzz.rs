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
