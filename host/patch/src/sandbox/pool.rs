//! The instances of one patch: as many as are called at the same time, or exactly one for a patch with state. After a
//! trap the instance is thrown away, and the next call gets a new one.

use super::places::{Place, Places};
use super::stats::Count;
use super::store::{new_store, run_counted};
use super::{Budget, CallStats, Fault, Granted, Lent, Limits, Sandbox, State, Stats, run};
use crate::base::Function;
use crate::base::text;
use patchhost_runtime::hooks::HookCause;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use wasmtime::Store;
use wasmtime::component::{Instance, InstancePre};

/// Looks up the exports of a new instance, asks it who it is and configures it.
pub(crate) type Setup<T> = dyn Fn(&mut Store<State>, &Instance, &Stats) -> Result<T, Fault> + Send + Sync;

/// How many instances a patch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instances {
    /// As many as are asked at once, give or take those of threads that came and went. What one remembers, another does not know.
    Many,
    /// One at a time, and its calls come one after the other: what one call remembers, the next one sees.
    One,
}

/// One store with one instance in it, and its exports.
pub(crate) struct Live<T> {
    store: Store<State>,
    exports: T,
    /// Which of the pool's instances it is, counted from 1.
    number: u64,
}

/// A sequence of calls that reaches one instance.
pub(crate) enum Lease<T> {
    /// An instance that one caller has. None: it failed.
    Own(Option<Box<Live<T>>>),
    /// The only instance of the pool. Others may call it between the calls of the sequence: a refit keeps its observers
    /// while it asks the other hooks, so a patch that has both would else wait for itself for ever.
    Shared {
        /// The instance that the sequence began with.
        number: u64,
    },
}

/// The pool. A trap poisons a whole store in wasmtime 48, so one store holds one instance and goes with it.
pub(crate) struct Pool<T> {
    sandbox: Sandbox,
    pre: InstancePre<State>,
    limits: Limits,
    granted: Granted,
    setup: Box<Setup<T>>,
    places: Places<Live<T>>,
    /// Instances made so far.
    made: AtomicU64,
    /// Of what belongs to no slot.
    stats: Stats,
}

impl<T> Pool<T> {
    /// Makes a pool and its first instance, so that a patch that cannot be started is refused here and not at its first
    /// call.
    pub(crate) fn new(
        sandbox: Sandbox,
        pre: InstancePre<State>,
        limits: Limits,
        granted: Granted,
        instances: Instances,
        setup: Box<Setup<T>>,
    ) -> Result<Self, Fault> {
        let places = match instances {
            Instances::Many => Places::many(sandbox.threads()),
            Instances::One => Places::one(),
        };
        let (made, stats) = (AtomicU64::new(0), Stats::default());
        let pool = Self { sandbox, pre, limits, granted, setup, places, made, stats };
        pool.renew()?;
        Ok(pool)
    }

    /// Replaces an idle instance by a new one, which knows nothing of what the old one remembered.
    pub(crate) fn renew(&self) -> Result<(), Fault> {
        let (mut place, old) = self.places.take();
        drop(old);
        place.back = Some(self.make()?);
        Ok(())
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn stats(&self) -> CallStats {
        CallStats::sum(std::iter::once(&self.stats).chain(self.places.stats()))
    }

    /// Calls into an instance. After a fault the instance is dropped with its store; the next call gets another.
    pub(crate) fn call<R>(
        &self,
        function: Function,
        budget: &Budget,
        lent: Option<Lent>,
        f: impl FnOnce(&mut Store<State>, &T) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        let (mut place, mut live) = self.take()?;
        live.store.data_mut().lent = lent;
        let answer = self.run(&place, &mut live, function, budget, f)?;
        live.store.data_mut().lent = None;
        place.back = Some(live);
        Ok(answer)
    }

    /// An instance for several calls in a row. Where there may be many, it is thrown away afterwards, with what it
    /// remembers; the only instance of a pool stays.
    pub(crate) fn lease(&self) -> Result<Lease<T>, Fault> {
        let (mut place, live) = self.take()?;
        Ok(match self.places.is_one() {
            false => Lease::Own(Some(live)),
            true => {
                let number = live.number;
                place.back = Some(live);
                Lease::Shared { number }
            }
        })
    }

    /// Calls into a leased instance. After a fault it is gone, and every later call on the lease is a fault too.
    pub(crate) fn call_leased<R>(
        &self,
        lease: &mut Lease<T>,
        function: Function,
        budget: &Budget,
        f: impl FnOnce(&mut Store<State>, &T) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        let gone = || {
            let why = "its instance failed in an earlier call of the same sequence".to_owned();
            Fault { function, cause: HookCause::Trap, why }
        };
        match lease {
            Lease::Own(own) => {
                let mut live = own.take().ok_or_else(gone)?;
                let Live { store, exports, .. } = &mut *live;
                let answer = self.judged(run(store, &self.stats, function, budget, |store| f(store, exports)))?;
                *own = Some(live);
                Ok(answer)
            }
            Lease::Shared { number } => {
                let (mut place, mut live) = self.take()?;
                if live.number != *number {
                    place.back = Some(live);
                    return Err(gone());
                }
                let answer = self.run(&place, &mut live, function, budget, f)?;
                place.back = Some(live);
                Ok(answer)
            }
        }
    }

    fn run<R>(
        &self,
        place: &Place<'_, Live<T>>,
        live: &mut Live<T>,
        function: Function,
        budget: &Budget,
        f: impl FnOnce(&mut Store<State>, &T) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        let Live { store, exports, .. } = live;
        let answer = match place.own_stats() {
            Some(own) => run_counted(store, Count::alone(own), function, budget, |store| f(store, exports)),
            None => run(store, &self.stats, function, budget, |store| f(store, exports)),
        };
        self.judged(answer)
    }

    fn judged<R>(&self, answer: Result<R, Fault>) -> Result<R, Fault> {
        answer.inspect_err(|fault| {
            tracing::warn!(%fault, "an instance failed and is dropped with its store");
            self.stats.dropped();
        })
    }

    /// A place and an instance.
    fn take(&self) -> Result<(Place<'_, Live<T>>, Box<Live<T>>), Fault> {
        let (place, live) = self.places.take();
        let live = match live {
            Some(live) => live,
            None => self.make()?,
        };
        Ok((place, live))
    }

    fn make(&self) -> Result<Box<Live<T>>, Fault> {
        let mut store = new_store(&self.sandbox, &self.limits, &self.granted).map_err(|error| Fault {
            function: Function::Instantiate,
            cause: HookCause::Unsupported,
            why: text::clean(&format!("its grants cannot be given: {error:#}"), 512),
        })?;
        let budget = self.limits.setup_budget();
        let instance =
            run(&mut store, &self.stats, Function::Instantiate, &budget, |store| self.pre.instantiate(store))?;
        let exports = (self.setup)(&mut store, &instance, &self.stats)?;
        self.stats.made();
        let number = self.made.fetch_add(1, Relaxed) + 1;
        Ok(Box::new(Live { store, exports, number }))
    }
}
