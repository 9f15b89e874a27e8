//! Counts what generated inputs came to, and lets no panic pass.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How many inputs a campaign makes: `small` in the normal suite, where `PATCHHOST_CAMPAIGN` (a factor, 1 for the whole
/// campaign) is not set; `full` times the factor where it is.
pub fn count(small: u64, full: u64) -> u64 {
    let factor = std::env::var("PATCHHOST_CAMPAIGN").ok().and_then(|text| text.parse::<f64>().ok());
    factor.map_or(small, |factor| (full as f64 * factor) as u64)
}

/// What one input came to.
pub enum Outcome {
    /// It was taken, and whatever it did stayed within its limits.
    Accepted,
    /// The same for a patch whose hooks were asked: calls that answered, and calls that failed.
    Asked(u64, u64),
    /// It was refused, with a reason.
    Refused(String),
    /// The generator made nothing of the seed.
    Nothing,
}

/// The sum of a campaign.
pub struct Tally {
    name: &'static str,
    accepted: u64,
    calls: (u64, u64),
    refused: u64,
    reasons: BTreeMap<String, u64>,
    wrong: Vec<String>,
    slowest: (Duration, u64),
    started: Instant,
}

/// No input may take longer: a guard against hangs. One call may take eight seconds of wall time before its limit ends it, and
/// a guest is asked several things.
const HANG: Duration = Duration::from_secs(40);

impl Tally {
    /// Tries `count` seeds.
    pub fn run(name: &'static str, count: u64, mut one: impl FnMut(u64) -> Outcome) {
        let mut tally = Self {
            name,
            accepted: 0,
            calls: (0, 0),
            refused: 0,
            reasons: BTreeMap::new(),
            wrong: Vec::new(),
            slowest: (Duration::ZERO, 0),
            started: Instant::now(),
        };
        // One seed alone, to look at what a campaign found.
        let only = std::env::var("PATCHHOST_SEED").ok().and_then(|text| text.parse::<u64>().ok());
        for seed in only.map_or(0..count, |seed| seed..seed + 1) {
            let start = Instant::now();
            match catch_unwind(AssertUnwindSafe(|| one(seed))) {
                Ok(outcome) => tally.add(seed, outcome),
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
                    tally.wrong.push(format!("seed {seed}: panic: {}", text.unwrap_or_default()));
                }
            }
            tally.slowest = tally.slowest.max((start.elapsed(), seed));
        }
        tally.finish();
    }

    fn add(&mut self, seed: u64, outcome: Outcome) {
        match outcome {
            Outcome::Accepted => self.accepted += 1,
            Outcome::Asked(answered, failed) => {
                self.accepted += 1;
                self.calls = (self.calls.0 + answered, self.calls.1 + failed);
            }
            Outcome::Nothing => {}
            Outcome::Refused(reason) => {
                self.refused += 1;
                let odd = |c: char| c.is_control() && c != '\n';
                if reason.trim().is_empty() {
                    self.wrong.push(format!("seed {seed}: refused without a reason"));
                } else if reason.contains("panicked") || reason.contains("please report") {
                    self.wrong.push(format!("seed {seed}: {reason}"));
                } else if reason.len() > 16 << 10 || reason.chars().any(odd) {
                    self.wrong.push(format!("seed {seed}: {} bytes, or control characters: {reason:?}", reason.len()));
                }
                *self.reasons.entry(kind(&reason)).or_default() += 1;
            }
        }
    }

    fn finish(self) {
        let (slowest, seed) = self.slowest;
        eprintln!(
            "{}: {} accepted (calls: {} answered, {} failed), {} refused, {} wrong, {:.1?}; the slowest, seed {seed}, took {slowest:.1?}; peak {} MiB",
            self.name,
            self.accepted,
            self.calls.0,
            self.calls.1,
            self.refused,
            self.wrong.len(),
            self.started.elapsed(),
            peak_mib()
        );
        let mut top: Vec<_> = self.reasons.into_iter().collect();
        top.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (reason, count) in top.iter().take(12) {
            eprintln!("  {count:6} {reason}");
        }
        assert!(self.wrong.is_empty(), "{}: {}", self.name, self.wrong[..self.wrong.len().min(8)].join("\n"));
        assert!(slowest < HANG, "{}: seed {seed} took {slowest:?}", self.name);
    }
}

/// The reason without numbers, cut: for counting.
fn kind(reason: &str) -> String {
    let why = reason.lines().find_map(|line| line.trim().strip_prefix("why: ")).unwrap_or(reason);
    let mut out = String::new();
    for c in why.chars().take(100) {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            '\n' => break,
            c => out.push(c),
        }
    }
    out
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 10
}
