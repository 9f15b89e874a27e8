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
    /// Calls of hooks: without `instantiate`, `describe` and `configure`, which happen to every patch, and without the
    /// hand-over of state.
    pub fn hook_calls(&self) -> u64 {
        use Function::{Configure, Describe, ExportState, ImportState, Instantiate};
        let other = [Instantiate, Describe, Configure, ExportState, ImportState].map(Function::name);
        self.functions.iter().filter(|(name, _)| !other.contains(name)).map(|(_, stats)| stats.calls).sum()
    }
}

/// The counters themselves. Relaxed atomics: they order nothing.
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

impl Stats {
    pub(super) fn record(&self, function: Function, fuel: u64, wall: Duration, failed: bool) {
        let counters = &self.functions[function as usize];
        counters.calls.fetch_add(1, Relaxed);
        counters.fuel_total.fetch_add(fuel, Relaxed);
        counters.fuel_max.fetch_max(fuel, Relaxed);
        counters.wall_ns.fetch_add(u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        if failed {
            counters.traps.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn made(&self) {
        self.made.fetch_add(1, Relaxed);
    }

    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> CallStats {
        let functions = Function::ALL.iter().filter_map(|function| {
            let counters = &self.functions[*function as usize];
            let stats = FunctionStats {
                calls: counters.calls.load(Relaxed),
                traps: counters.traps.load(Relaxed),
                fuel_total: counters.fuel_total.load(Relaxed),
                fuel_max: counters.fuel_max.load(Relaxed),
                wall_ns: counters.wall_ns.load(Relaxed),
            };
            (stats.calls > 0).then(|| (function.name(), stats))
        });
        CallStats {
            functions: functions.collect(),
            instances_made: self.made.load(Relaxed),
            instances_dropped: self.dropped.load(Relaxed),
        }
    }
}
