//! How often each function of a patch was called and what it cost: "applied but never called" must be visible.

use crate::base::Function;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counters of one function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionStats {
    /// Calls, failed ones included.
    pub calls: u64,
    /// Calls that trapped or reached a limit.
    pub traps: u64,
    /// Fuel of all calls.
    pub fuel_total: u64,
    /// Fuel of the most expensive call.
    pub fuel_max: u64,
    /// Wall time of all calls, in nanoseconds.
    pub wall_ns: u64,
}

/// A snapshot of the counters of one patch.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CallStats {
    /// By function; those never called are absent.
    pub functions: BTreeMap<&'static str, FunctionStats>,
    /// How many instances were made so far: one more for each thread that asks at the same time.
    pub instances_made: u64,
    /// Instances dropped after a trap or a limit.
    pub instances_dropped: u64,
}

impl CallStats {
    /// Of one patch, out of all its counters.
    pub(super) fn sum<'a>(all: impl Iterator<Item = &'a Stats>) -> Self {
        let mut sum = Self::default();
        for stats in all {
            stats.add_to(&mut sum);
        }
        sum
    }

    /// Calls of hooks: without `instantiate`, `describe` and `configure`, which happen to every patch, and without the
    /// hand-over of state.
    pub fn hook_calls(&self) -> u64 {
        use Function::{Configure, Describe, ExportState, ImportState, Instantiate};
        let other = [Instantiate, Describe, Configure, ExportState, ImportState].map(Function::name);
        self.functions.iter().filter(|(name, _)| !other.contains(name)).map(|(_, stats)| stats.calls).sum()
    }
}

/// The counters themselves. Relaxed atomics: they order nothing. (A pool has several of them, so that threads do not write to
/// the same memory with every call.)
#[derive(Default)]
pub(crate) struct Stats {
    functions: [Counters; Function::ALL.len()],
    made: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    traps: AtomicU64,
    fuel_total: AtomicU64,
    fuel_max: AtomicU64,
    wall_ns: AtomicU64,
}

/// Where a call is counted.
#[derive(Clone, Copy)]
pub(super) struct Count<'a> {
    stats: &'a Stats,
    alone: bool,
}

impl<'a> Count<'a> {
    /// Among others that count at the same time.
    pub(super) fn shared(stats: &'a Stats) -> Self {
        Self { stats, alone: false }
    }

    /// As the only one that counts there now: a count is then a load and a store. (If it were not the only one, counts would be
    /// lost, nothing else.)
    pub(super) fn alone(stats: &'a Stats) -> Self {
        Self { stats, alone: true }
    }

    pub(super) fn record(self, function: Function, fuel: u64, wall: Duration, failed: bool) {
        let Counters { calls, traps, fuel_total, fuel_max, wall_ns } = &self.stats.functions[function as usize];
        let add = |counter: &AtomicU64, more: u64| match self.alone {
            true => counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed),
            false => _ = counter.fetch_add(more, Relaxed),
        };
        add(calls, 1);
        add(fuel_total, fuel);
        add(wall_ns, u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX));
        if fuel > fuel_max.load(Relaxed) {
            fuel_max.fetch_max(fuel, Relaxed);
        }
        if failed {
            add(traps, 1);
        }
    }
}

impl Stats {
    pub(super) fn made(&self) {
        self.made.fetch_add(1, Relaxed);
    }

    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    fn add_to(&self, sum: &mut CallStats) {
        for function in Function::ALL {
            let counters = &self.functions[*function as usize];
            let calls = counters.calls.load(Relaxed);
            if calls > 0 {
                let own = sum.functions.entry(function.name()).or_default();
                own.calls += calls;
                own.traps += counters.traps.load(Relaxed);
                own.fuel_total += counters.fuel_total.load(Relaxed);
                own.fuel_max = own.fuel_max.max(counters.fuel_max.load(Relaxed));
                own.wall_ns += counters.wall_ns.load(Relaxed);
            }
        }
        sum.instances_made += self.made.load(Relaxed);
        sum.instances_dropped += self.dropped.load(Relaxed);
    }
}
