//! Instances of one patch: one per worker at a time, made again from `InstancePre` after a trap.

use super::store::new_store;
use super::{Budget, Fault, Function, Lent, Limits, Sandbox, State, Stats, run};
use patchhost_runtime::hooks::HookCause;
use std::sync::{Mutex, PoisonError};
use wasmtime::Store;
use wasmtime::component::{Instance, InstancePre};

/// Looks up the exports of a new instance, asks it who it is and configures it.
pub(crate) type Setup<T> = dyn Fn(&mut Store<State>, &Instance, &Stats) -> Result<T, Fault> + Send + Sync;

/// One store with one instance in it, and its exports.
struct Live<T> {
    store: Store<State>,
    exports: T,
}

/// An instance that one caller has for a sequence of calls.
pub(crate) struct Lease<T>(Option<Box<Live<T>>>);

/// The pool. A trap poisons a whole store in wasmtime 48, so one store holds one instance and goes with it.
pub(crate) struct Pool<T> {
    sandbox: Sandbox,
    pre: InstancePre<State>,
    limits: Limits,
    setup: Box<Setup<T>>,
    /// Boxed: the exports are a kilobyte, and this vector is on the path of every call.
    idle: Mutex<Vec<Box<Live<T>>>>,
    stats: Stats,
}

impl<T> Pool<T> {
    /// A pool with one instance in it, so that what can go wrong goes wrong here.
    pub(crate) fn new(
        sandbox: Sandbox,
        pre: InstancePre<State>,
        limits: Limits,
        setup: Box<Setup<T>>,
    ) -> Result<Self, Fault> {
        let pool = Self { sandbox, pre, limits, setup, idle: Mutex::default(), stats: Stats::default() };
        let first = pool.make()?;
        pool.give_back(first);
        Ok(pool)
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Calls into an instance. After a fault the instance is dropped with its store; the next call gets another.
    pub(crate) fn call<R>(
        &self,
        function: Function,
        budget: &Budget,
        lent: Option<Lent>,
        f: impl FnOnce(&mut Store<State>, &T) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        let mut live = match self.take() {
            Some(live) => live,
            None => self.make()?,
        };
        live.store.data_mut().lent = lent;
        let Live { store, exports } = &mut *live;
        let result = run(store, &self.stats, function, budget, |store| f(store, exports));
        match result {
            Ok(answer) => {
                live.store.data_mut().lent = None;
                self.give_back(live);
                Ok(answer)
            }
            Err(fault) => {
                tracing::warn!(%fault, "an instance failed and is dropped with its store");
                drop(live);
                self.stats.dropped();
                Err(fault)
            }
        }
    }

    /// An instance for several calls in a row. It is not given back: what it remembers goes with it.
    pub(crate) fn lease(&self) -> Result<Lease<T>, Fault> {
        let live = match self.take() {
            Some(live) => live,
            None => self.make()?,
        };
        Ok(Lease(Some(live)))
    }

    /// Calls into a leased instance. After a fault it is gone, and every later call on the lease is a fault too.
    pub(crate) fn call_leased<R>(
        &self,
        lease: &mut Lease<T>,
        function: Function,
        budget: &Budget,
        f: impl FnOnce(&mut Store<State>, &T) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        let Some(mut live) = lease.0.take() else {
            let why = "its instance failed in an earlier call of the same sequence".to_owned();
            return Err(Fault { function, cause: HookCause::Trap, why });
        };
        let Live { store, exports } = &mut *live;
        let result = run(store, &self.stats, function, budget, |store| f(store, exports));
        match &result {
            Ok(_) => lease.0 = Some(live),
            Err(fault) => {
                tracing::warn!(%fault, "an instance failed and is dropped with its store");
                self.stats.dropped();
            }
        }
        result
    }

    fn take(&self) -> Option<Box<Live<T>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give_back(&self, live: Box<Live<T>>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(live);
    }

    fn make(&self) -> Result<Box<Live<T>>, Fault> {
        let mut store = new_store(&self.sandbox, &self.limits);
        let budget = self.limits.setup_budget();
        let instance =
            run(&mut store, &self.stats, Function::Instantiate, &budget, |store| self.pre.instantiate(store))?;
        let exports = (self.setup)(&mut store, &instance, &self.stats)?;
        self.stats.made();
        Ok(Box::new(Live { store, exports }))
    }
}
