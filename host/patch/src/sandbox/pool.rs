//! The instances of one patch: as many as are called at the same time, or exactly one for a patch with state. After a
//! trap the instance is thrown away, and the next call gets a new one.

use super::store::new_store;
use super::{Budget, Fault, Granted, Lent, Limits, Sandbox, State, Stats, run};
use crate::base::Function;
use crate::base::text;
use patchhost_runtime::hooks::HookCause;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use wasmtime::Store;
use wasmtime::component::{Instance, InstancePre};

/// Looks up the exports of a new instance, asks it who it is and configures it.
pub(crate) type Setup<T> = dyn Fn(&mut Store<State>, &Instance, &Stats) -> Result<T, Fault> + Send + Sync;

/// How many instances a patch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instances {
    /// As many as are asked at once. What one remembers, another does not know.
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
    instances: Instances,
    setup: Box<Setup<T>>,
    idle: Mutex<Idle<T>>,
    /// Wakes a caller that waits for the only instance. Where there may be many, nobody waits.
    free: Condvar,
    stats: Stats,
}

/// Instances that nobody calls.
struct Idle<T> {
    /// Boxed: the exports are a kilobyte, and this vector is on the path of every call.
    live: Vec<Box<Live<T>>>,
    /// Whether the one instance is being called or made.
    taken: bool,
    /// Instances made so far.
    made: u64,
}

/// A caller's place in the pool. Dropped without an instance in it (after a fault or a panic), it leaves the place free.
struct Place<'a, T> {
    pool: &'a Pool<T>,
    live: Option<Box<Live<T>>>,
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        let mut idle = self.pool.idle();
        idle.live.extend(self.live.take());
        idle.taken = false;
        drop(idle);
        if self.pool.instances == Instances::One {
            self.pool.free.notify_one();
        }
    }
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
        let idle = Mutex::new(Idle { live: Vec::new(), taken: false, made: 0 });
        let (free, stats) = (Condvar::new(), Stats::default());
        let pool = Self { sandbox, pre, limits, granted, instances, setup, idle, free, stats };
        pool.renew()?;
        Ok(pool)
    }

    /// Replaces an idle instance by a new one, which knows nothing of what the old one remembered.
    pub(crate) fn renew(&self) -> Result<(), Fault> {
        let (mut place, old) = self.place();
        drop(old);
        place.live = Some(self.make()?);
        Ok(())
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
        let (mut place, mut live) = self.take()?;
        live.store.data_mut().lent = lent;
        let answer = self.run(&mut live, function, budget, f)?;
        live.store.data_mut().lent = None;
        place.live = Some(live);
        Ok(answer)
    }

    /// An instance for several calls in a row. Where there may be many, it is thrown away afterwards, with what it
    /// remembers; the only instance of a pool stays.
    pub(crate) fn lease(&self) -> Result<Lease<T>, Fault> {
        let (mut place, live) = self.take()?;
        Ok(match self.instances {
            Instances::Many => Lease::Own(Some(live)),
            Instances::One => {
                let number = live.number;
                place.live = Some(live);
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
                let answer = self.run(&mut live, function, budget, f)?;
                *own = Some(live);
                Ok(answer)
            }
            Lease::Shared { number } => {
                let (mut place, mut live) = self.take()?;
                if live.number != *number {
                    place.live = Some(live);
                    return Err(gone());
                }
                let answer = self.run(&mut live, function, budget, f)?;
                place.live = Some(live);
                Ok(answer)
            }
        }
    }

    fn run<R>(
        &self,
        live: &mut Live<T>,
        function: Function,
        budget: &Budget,
        f: impl FnOnce(&mut Store<State>, &T) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        let Live { store, exports, .. } = live;
        run(store, &self.stats, function, budget, |store| f(store, exports)).inspect_err(|fault| {
            tracing::warn!(%fault, "an instance failed and is dropped with its store");
            self.stats.dropped();
        })
    }

    /// A place and an instance. Where there may be one only, this waits for it: no longer than the call that has it may
    /// take.
    fn take(&self) -> Result<(Place<'_, T>, Box<Live<T>>), Fault> {
        let (place, live) = self.place();
        let live = match live {
            Some(live) => live,
            None => self.make()?,
        };
        Ok((place, live))
    }

    fn place(&self) -> (Place<'_, T>, Option<Box<Live<T>>>) {
        let mut idle = self.idle();
        while self.instances == Instances::One && idle.taken {
            idle = self.free.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
        idle.taken = true;
        let live = idle.live.pop();
        (Place { pool: self, live: None }, live)
    }

    fn idle(&self) -> MutexGuard<'_, Idle<T>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut idle = self.idle();
        idle.made += 1;
        Ok(Box::new(Live { store, exports, number: idle.made }))
    }
}
