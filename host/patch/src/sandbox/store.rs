//! The one place that makes stores, and the one place that runs a guest.

use super::Stats;
use super::fault::{Fault, classify};
use super::limiter::Meter;
use super::limits::Limits;
use super::wasi::{Context, Granted};
use super::{Budget, Sandbox, TICK};
use crate::base::Function;
use patchhost_runtime::hooks::RowPanel;
use std::time::Instant;
use wasmtime::Store;

/// What a store knows: its limits, and the panel that is lent to the running call.
pub(crate) struct State {
    meter: Meter,
    pub(crate) lent: Option<Lent>,
    /// Only where WASI was granted.
    pub(super) wasi: Option<Box<Context>>,
}

/// The rows that a guest may read during one `panel-scales` call.
pub(crate) struct Lent {
    pub(crate) panel: RowPanel,
    /// Values that may still be read.
    pub(crate) allowance: u64,
}

/// Makes a store. A store without a deadline traps at once and one without a limiter has no limits, so nothing else
/// in this crate calls `Store::new`.
pub(super) fn new_store(sandbox: &Sandbox, limits: &Limits, granted: &Granted) -> wasmtime::Result<Store<State>> {
    let state = State { meter: Meter::new(limits), lent: None, wasi: granted.context()? };
    let mut store = Store::new(sandbox.engine(), state);
    store.limiter(|state| &mut state.meter);
    store.epoch_deadline_trap();
    Ok(store)
}

/// Runs `f` in `store` under `budget`, and counts it. After an `Err` the store is poisoned and must be dropped.
pub(crate) fn run<R>(
    store: &mut Store<State>,
    stats: &Stats,
    function: Function,
    budget: &Budget,
    f: impl FnOnce(&mut Store<State>) -> wasmtime::Result<R>,
) -> Result<R, Fault> {
    let started = Instant::now();
    let result = arm(store, budget).and_then(|()| f(store));
    let used = budget.fuel.saturating_sub(store.get_fuel().unwrap_or(0));
    stats.record(function, used, started.elapsed(), result.is_err());
    result.map_err(|error| classify(&error, function, budget, store.data().meter.beyond_own_maximum()))
}

fn arm(store: &mut Store<State>, budget: &Budget) -> wasmtime::Result<()> {
    store.set_fuel(budget.fuel)?;
    // One tick more: the current one has partly passed.
    let ticks = budget.wall.as_millis().div_ceil(TICK.as_millis()) + 1;
    store.set_epoch_deadline(u64::try_from(ticks).unwrap_or(u64::MAX >> 1));
    store.set_hostcall_fuel(budget.output);
    if let Some(wasi) = &mut store.data_mut().wasi {
        wasi.until = Instant::now() + budget.wall;
    }
    Ok(())
}
