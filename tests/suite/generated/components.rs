//! Generated components: random ones, random ones that conform to our worlds, and damaged real ones.

use arbitrary::Unstructured;
use patchhost::patch::Limits;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use wasm_smith::Config;

use super::tally::{Outcome, Tally, count};
use crate::hostile::{inside, wat};
use crate::support::repo;

/// Every stage, and every hook of what passes them. Small limits of time: a random loop has no end.
fn through(bytes: Vec<u8>) -> Outcome {
    match inside::load("generated", bytes, Limits { fuel_base: 2_000_000, ..Limits::default() }) {
        Err(error) => Outcome::Refused(error.to_string()),
        Ok(patch) => {
            let (mut answered, mut failed) = (0, 0);
            for (call, answer) in inside::ask(&patch) {
                let Err(error) = answer else {
                    answered += 1;
                    continue;
                };
                failed += 1;
                assert!(!error.why.is_empty() && !error.next.is_empty(), "{call}: an error without a reason");
            }
            let (stats, limits) = (patch.stats(), patch.limits());
            for (name, function) in &stats.functions {
                assert!(function.fuel_max <= limits.fuel_max, "{name} used {} fuel", function.fuel_max);
            }
            Outcome::Asked(answered, failed)
        }
    }
}

fn random(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill_bytes(&mut data);
    data
}

/// Nearly what the audit allows, or everything that wasm-smith knows.
fn config(everything: bool) -> Config {
    if everything {
        return Config {
            custom_page_sizes_enabled: true,
            shared_everything_threads_enabled: true,
            wide_arithmetic_enabled: true,
            generate_custom_sections: true,
            allow_invalid_funcs: true,
            max_memories: 3,
            max_tables: 3,
            ..Config::default()
        };
    }
    Config {
        exceptions_enabled: false,
        gc_enabled: false,
        tail_call_enabled: false,
        threads_enabled: false,
        memory64_enabled: false,
        relaxed_simd_enabled: false,
        // An `externref` is a type of garbage collection to the validator.
        reference_types_enabled: false,
        max_memory32_bytes: 64 << 20,
        max_table_elements: 5_000,
        max_tables: 2,
        ..Config::default()
    }
}

/// A core module inside a component, instantiated if it imports nothing.
fn wrapped(module: &[u8]) -> Vec<u8> {
    let mut component = wasm_encoder::Component::new();
    component.section(&wasm_encoder::RawSection { id: 1, data: module });
    let mut instances = wasm_encoder::InstanceSection::new();
    instances.instantiate::<[(&str, wasm_encoder::ModuleArg); 0], &str>(0, []);
    component.section(&instances);
    component.finish()
}

#[test]
fn core_modules() {
    Tally::run("wasm-smith core modules", count(200, 10_000), |seed| {
        let data = random(seed, 4096);
        let Ok(module) = wasm_smith::Module::new(config(seed % 4 == 3), &mut Unstructured::new(&data)) else {
            return Outcome::Nothing;
        };
        let bytes = module.to_bytes();
        let inside = through(wrapped(&bytes));
        match (through(bytes), inside) {
            (Outcome::Refused(_), inside) => inside,
            _ => panic!("a core module was taken for a component"),
        }
    });
}

#[test]
fn components() {
    Tally::run("wasm-smith components", count(200, 10_000), |seed| {
        let data = random(seed, 4096);
        match wasm_smith::Component::new(config(seed % 2 == 1), &mut Unstructured::new(&data)) {
            Ok(component) => through(component.to_bytes()),
            Err(_) => Outcome::Nothing,
        }
    });
}

#[test]
fn guests_that_conform() {
    let shapes = wat::WORLDS.map(|world| (wat::world_of(world), super::shape::dummy(world)));
    Tally::run("conforming guests", count(150, 10_000), |seed| {
        let (world, dummy) = &shapes[seed as usize % shapes.len()];
        let data = random(seed, 4096);
        let config = Config {
            module_shape: Some(dummy.clone()),
            disallow_traps: seed % 3 == 0,
            allow_start_export: seed % 5 == 0,
            ..config(false)
        };
        let Ok(module) = wasm_smith::Module::new(config, &mut Unstructured::new(&data)) else {
            return Outcome::Nothing;
        };
        match wat::encode(world, super::shape::made_honest(&module.to_bytes())) {
            Ok(component) => through(component),
            Err(why) => Outcome::Refused(format!("it is no component: {}", why.replace('\n', " "))),
        }
    });
}

/// The bundled guests, those that misbehave, and the text guests.
fn corpus() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = wat::names().iter().map(|name| wat::guest(name)).collect();
    for folder in ["guests", "guests/evil"] {
        let files = std::fs::read_dir(repo().join(folder)).unwrap().map(|e| e.unwrap().path());
        let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|x| x == "wasm")).collect();
        files.sort();
        all.extend(files.iter().map(|path| std::fs::read(path).unwrap()));
    }
    all
}

#[test]
fn damaged_components() {
    let corpus = corpus();
    Tally::run("byte-mutated components", count(1_000, 20_000), |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = corpus[rng.random_range(0..corpus.len())].clone();
        let other = &corpus[rng.random_range(0..corpus.len())];
        for _ in 0..rng.random_range(1..=4) {
            super::mutate::bytes(&mut rng, &mut bytes, other);
        }
        through(bytes)
    });
}
