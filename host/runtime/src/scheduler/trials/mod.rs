//! Random schedules over tiny models, turn by turn on one thread: what happens follows from a seed alone. Every answer must be that
//! of the same request alone, an aborted one its beginning, whatever else runs; and in the end nothing is left.
//!
//! * `model`: the models, their weights and adapters, and patches that fail;
//! * `asks`: random requests;
//! * `reference`: a request alone;
//! * `schedule`: a schedule, turn by turn;
//! * `verdict`: its jobs, and whether what they heard is right;
//! * `faults`: passes that fail, by themselves.
//!
//! Some hundreds run with the other tests; `PATCHHOST_CAMPAIGN=1` runs 200,000, and `PATCHHOST_SCHEDULE=SEED` a single one, to look
//! at what it found.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod asks;
mod faults;
mod model;
mod reference;
mod schedule;
mod verdict;

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Schedules in the normal suite, and in a campaign.
const FEW: u64 = 400;
const MANY: u64 = 200_000;

#[test]
fn random_schedules_give_the_answers_of_each_request_alone() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<f64>().ok();
    let seeds = match (number("PATCHHOST_SCHEDULE"), number("PATCHHOST_CAMPAIGN")) {
        (Some(seed), _) => seed as u64..seed as u64 + 1,
        (None, Some(factor)) => 0..(MANY as f64 * factor) as u64,
        (None, None) => 0..FEW,
    };
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().unwrap().len() > 2 {
                        return;
                    }
                    if catch_unwind(|| schedule::run(seed)).is_err() {
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "PATCHHOST_SCHEDULE={failed:?}");
}
