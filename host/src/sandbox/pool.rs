//! Instances of one patch: one per worker at a time, made again from `InstancePre` after a trap.

use super::store::new_store;
use super::{Budget, Fault, Function, Lent, Limits, Sandbox, State, Stats, run};
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
