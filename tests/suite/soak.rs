//! Patches swapped under a constant load of streaming requests: every answer is wholly of one set, nothing is lost,
//! memory stays flat. `cargo test --release --workspace --test suite -- --ignored --nocapture soak` runs the long ones
//! and prints what they measure; no time is asserted.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::serving::Serving;
use crate::support::tmp;

const PROMPTS: [&str; 6] = ["ROMEO.\n", "KING.\nMy lord, ", "To be, or ", "What is ", "The queen", "O "];
const SEEDS: u64 = 4;

/// A set, and its text for each prompt and seed.
type Answers = (String, BTreeMap<(usize, u64), String>);

/// What clients saw.
#[derive(Default)]
struct Seen {
    answers: u64,
    /// Gaps between two tokens of one answer, in microseconds.
    gaps: Vec<u64>,
}

fn body(prompt: &str, seed: u64, stream: bool) -> Value {
    json!({
        "prompt": prompt, "max_tokens": 24, "temperature": 0.8, "seed": seed, "stream": stream, "ignore_eos": true,
        "return_token_ids": true,
    })
}

/// One streamed answer: its text, the sets that made it, and the gaps between its tokens.
fn stream(url: &str, prompt: &str, seed: u64, gaps: &mut Vec<u64>) -> (String, Vec<String>) {
    let mut answer = ureq::post(format!("{url}/v1/completions")).send_json(body(prompt, seed, true)).unwrap();
    let mut reader = BufReader::new(answer.body_mut().as_reader());
    let (mut text, mut sets, mut line, mut last) = (String::new(), Vec::new(), String::new(), None::<Instant>);
    loop {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the stream ended without [DONE]: {text:?}");
        let Some(data) = line.trim_end().strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            return (text, sets);
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        let choice = &chunk["choices"][0];
        if let Some(piece) = choice["text"].as_str() {
            text.push_str(piece);
        }
        if let Some(versions) = choice["weight_versions"].as_array() {
            sets.extend(versions.iter().map(|v| v["patch_set"].as_str().unwrap().to_string()));
        }
        let now = Instant::now();
        if let Some(before) = last.replace(now) {
            gaps.push(now.duration_since(before).as_micros() as u64);
        }
    }
}

/// Every answer under the set that is active now.
fn expected(server: &Serving) -> Answers {
    let mut set = String::new();
    let mut all = BTreeMap::new();
    for (i, prompt) in PROMPTS.iter().enumerate() {
        for seed in 0..SEEDS {
            let (text, sets) = stream(&server.url, prompt, seed, &mut Vec::new());
            assert_eq!(sets.len(), 1);
            set = sets[0].clone();
            all.insert((i, seed), text);
        }
    }
    (set, all)
}

fn percentile(sorted: &[u64], p: f64) -> u64 {
    sorted.get(((sorted.len() as f64 - 1.0) * p) as usize).copied().unwrap_or_default()
}

fn distribution(what: &str, mut gaps: Vec<u64>) {
    gaps.sort_unstable();
    let at = |p| percentile(&gaps, p) as f64 / 1000.0;
    eprintln!(
        "{what}: {} gaps between tokens, ms: p50 {:.2}, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, max {:.2}",
        gaps.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}

fn load(clients: usize, during: impl FnOnce(&AtomicU64), server: &Serving, sets: &[Answers]) -> Seen {
    let stop = AtomicBool::new(false);
    let answers = AtomicU64::new(0);
    let mut seen = Seen::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|client| {
                let (stop, answers) = (&stop, &answers);
                scope.spawn(move || {
                    let (mut gaps, mut turn) = (Vec::new(), client as u64);
                    while !stop.load(Ordering::Relaxed) {
                        let (i, seed) = (turn as usize % PROMPTS.len(), turn / 7 % SEEDS);
                        turn += 1;
                        let (text, made_by) = stream(&server.url, PROMPTS[i], seed, &mut gaps);
                        assert_eq!(made_by.len(), 1, "one answer, one set");
                        let of = sets.iter().find(|(set, _)| *set == made_by[0]);
                        let (_, texts) = of.unwrap_or_else(|| panic!("made by {}, which is neither", made_by[0]));
                        assert_eq!(text, texts[&(i, seed)], "the answer is not that of the set it names");
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                    gaps
                })
            })
            .collect();
        during(&answers);
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            seen.gaps.extend(thread.join().unwrap());
        }
    });
    seen.answers = answers.into_inner();
    seen
}

fn swaps_under_load(swaps: usize, clients: usize, flat: bool) {
    let tmp = tmp();
    let ledger = tmp.path().join("run.jsonl");
    let server = Serving::start(tmp.path(), &["--component", "fp8_block.wasm", "--ledger", ledger.to_str().unwrap()]);
    let first = expected(&server);
    let staged = server.admin(
        "POST",
        "/admin/v1/stage?name=fp8_block&set=scale_format=ue8m0&set=block=64x64",
        crate::serving::guest("fp8_block"),
    );
    let swap = |when: &str| server.admin_json("/admin/v1/swap", json!({ "to": staged["generation"], "when": when }));
    let landed = swap("now");
    assert!(landed["landed"].is_object(), "{landed}");
    let second = expected(&server);
    assert_ne!(first.0, second.0);
    let differing = first.1.iter().filter(|(k, v)| second.1[k] != **v).count();
    assert!(
        differing > PROMPTS.len(),
        "the two sets must answer differently for the test to see anything: {differing}"
    );

    let sets = [first, second];
    let quiet = load(clients, |_| std::thread::sleep(Duration::from_secs(3)), &server, &sets);
    let mut memory = Vec::new();
    let mut took = Vec::new();
    let busy = load(
        clients,
        |_| {
            for round in 0..swaps {
                let began = Instant::now();
                let back = server.admin_json("/admin/v1/rollback", json!({ "when": "now", "reason": "soak" }));
                assert!(back["landed"].is_object(), "{back}");
                took.push(began.elapsed().as_micros() as u64);
                // Requests come and go between two swaps; without a pause most would see none of either set end.
                std::thread::sleep(Duration::from_millis(25));
                // The ledger in memory and the allocator fill up first.
                if round * 10 >= swaps * 4 {
                    memory.push(server.resident());
                }
            }
        },
        &server,
        &sets,
    );
    took.sort_unstable();
    let (low, high) = (*memory.iter().min().unwrap(), *memory.iter().max().unwrap());
    eprintln!("{swaps} swaps under {clients} clients: {} answers, none torn, none lost", busy.answers);
    eprintln!(
        "a swap `now`, weights loaded again under load, ms: p50 {:.1}, p99 {:.1}, max {:.1}",
        percentile(&took, 0.5) as f64 / 1e3,
        percentile(&took, 0.99) as f64 / 1e3,
        percentile(&took, 1.0) as f64 / 1e3
    );
    distribution("without swaps", quiet.gaps);
    distribution("with swaps", busy.gaps);
    eprintln!("resident after warm-up: {:.1} to {:.1} MB", low as f64 / 1e6, high as f64 / 1e6);
    if flat {
        let tail = &memory[memory.len() / 2..];
        let mean = |m: &[u64]| m.iter().sum::<u64>() as f64 / m.len() as f64;
        let drift = mean(tail) / mean(&memory[..memory.len() / 2]) - 1.0;
        assert!(drift.abs() < 0.05, "memory drifts by {:.1} %", drift * 100.0);
    }
    let status = server.get("/status");
    let board = &status["live"]["board"];
    assert_eq!(board["swaps"].as_u64().unwrap() + board["rollbacks"].as_u64().unwrap(), swaps as u64 + 1, "{status}");
    server.stop();
    let verified = crate::support::patchhost(["log", "verify", ledger.to_str().unwrap()]).good();
    assert!(verified.stdout.contains("good"), "{}", verified.stdout);
}

#[test]
fn swaps_under_load_tear_nothing() {
    swaps_under_load(30, 4, false);
}

#[test]
#[ignore = "minutes: a thousand swaps"]
fn soak_a_thousand_swaps() {
    swaps_under_load(1000, 8, true);
}

#[test]
#[ignore = "ten minutes of load, with a swap every five seconds"]
fn soak_ten_minutes() {
    let tmp = tmp();
    let server = Serving::start(tmp.path(), &["--component", "fp8_block.wasm"]);
    let first = expected(&server);
    let staged =
        server.admin("POST", "/admin/v1/stage?name=fp8_block&set=block=64x64", crate::serving::guest("fp8_block"));
    server.admin_json("/admin/v1/swap", json!({ "to": staged["generation"], "when": "now" }));
    let sets = [first, expected(&server)];
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(600);
    let mut memory = Vec::new();
    let (seen, threads) = (
        load(
            16,
            |_| {
                let began = Instant::now();
                while began.elapsed() < Duration::from_secs(seconds) {
                    std::thread::sleep(Duration::from_secs(5));
                    server.admin_json("/admin/v1/rollback", json!({ "when": "now", "reason": "soak" }));
                    memory.push(server.resident());
                }
            },
            &server,
            &sets,
        ),
        server.threads(),
    );
    let half = memory.len() / 2;
    let mean = |m: &[u64]| m.iter().sum::<u64>() as f64 / m.len().max(1) as f64;
    let warm = &memory[memory.len() / 10..half.max(memory.len() / 10 + 1)];
    let drift = mean(&memory[half..]) / mean(warm) - 1.0;
    eprintln!(
        "{} answers in {seconds} s, {threads} threads, memory {:.1} MB, drift {:.2} %",
        seen.answers,
        mean(&memory[half..]) / 1e6,
        drift * 100.0
    );
    distribution("soak", seen.gaps);
    assert!(drift.abs() < 0.05, "memory drifts by {:.1} %", drift * 100.0);
    server.stop();
}
