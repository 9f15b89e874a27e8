//! One patch as the adapters see it: its name, its pool, and how a fault becomes an error with three parts.

use super::hooks::{Exports, Indices};
use super::identity::{Info, configure, describe};
use super::state::Inherited;
use crate::base::Function;
use crate::base::{Hook, text};
use crate::sandbox::{Budget, Fault, Granted, Instances, Lease, Lent, Limits, Pool, Sandbox, State, Stats, run};
use patchhost_runtime::hooks::{HookCause, HookError};
use std::fmt;
use std::sync::{Arc, OnceLock};
use wasmtime::Store;
use wasmtime::component::{Instance, InstancePre};

/// A patch that can be called.
pub(crate) struct Guest {
    info: Info,
    pool: Pool<Exports>,
    /// Only where the patch exports `state`: what its instances begin with.
    inherited: Option<Inherited>,
}

impl Guest {
    /// Makes the first instance: instantiate, describe, configure. `settings` go to every later instance too. A patch
    /// with `state` has one instance at a time.
    pub(crate) fn start(
        sandbox: Sandbox,
        pre: InstancePre<State>,
        hooks: &[Hook],
        state: bool,
        settings: Vec<(String, String)>,
        limits: Limits,
        granted: Granted,
    ) -> Result<Self, Fault> {
        let fault = |error: wasmtime::Error| Fault {
            function: Function::Instantiate,
            cause: HookCause::Unsupported,
            why: text::clean(&format!("{error:#}"), 512),
        };
        let indices = Indices::new(&pre, hooks, state).map_err(fault)?;
        let known: Arc<OnceLock<Info>> = Arc::default();
        let first = Arc::clone(&known);
        let budget = limits.setup_budget();
        let inherited = state.then(Inherited::default);
        let (heir, import_budget) = (inherited.clone(), limits.state_budget(0));
        let setup = move |store: &mut Store<State>, instance: &Instance, stats: &Stats| {
            let exports = run(store, stats, Function::Instantiate, &budget, |store| indices.load(store, instance))?;
            let info = describe(store, stats, &exports.identity, &budget)?;
            let expected = known.get_or_init(|| info.clone());
            if *expected != info {
                let why = "`describe` gave another answer than it gave the first time".to_owned();
                return Err(Fault { function: Function::Describe, cause: HookCause::BadOutput, why });
            }
            configure(store, stats, &exports.identity, &settings, &budget)?;
            if let (Some(heir), Some(state)) = (&heir, &exports.state) {
                heir.hand_over(store, stats, state, &import_budget)?;
            }
            Ok(exports)
        };
        let instances = if state { Instances::One } else { Instances::Many };
        let pool = Pool::new(sandbox, pre, limits, granted, instances, Box::new(setup))?;
        let info = first.get().cloned().unwrap_or_default();
        Ok(Self { info, pool, inherited })
    }

    pub(crate) fn info(&self) -> &Info {
        &self.info
    }

    /// Whether the patch exports `state`.
    pub(crate) fn has_state(&self) -> bool {
        self.inherited.is_some()
    }

    pub(super) fn inherited(&self) -> Option<&Inherited> {
        self.inherited.as_ref()
    }

    pub(crate) fn limits(&self) -> &Limits {
        self.pool.limits()
    }

    pub(crate) fn stats(&self) -> crate::sandbox::CallStats {
        self.pool.stats().snapshot()
    }

    /// Calls a hook function about one thing.
    pub(super) fn call<R>(
        &self,
        function: Function,
        subject: &Subject<'_>,
        budget: &Budget,
        lent: Option<Lent>,
        f: impl FnOnce(&mut Store<State>, &Exports) -> wasmtime::Result<Result<R, String>>,
    ) -> Result<R, HookError> {
        self.judge(function, subject, self.pool.call(function, budget, lent, f))
    }

    /// An instance for several calls in a row.
    pub(super) fn lease(&self, function: Function, subject: &Subject<'_>) -> Result<Lease<Exports>, HookError> {
        self.judge(function, subject, self.pool.lease().map(Ok))
    }

    /// Calls a hook function on a leased instance.
    pub(super) fn call_leased<R>(
        &self,
        lease: &mut Lease<Exports>,
        function: Function,
        subject: &Subject<'_>,
        budget: &Budget,
        f: impl FnOnce(&mut Store<State>, &Exports) -> wasmtime::Result<Result<R, String>>,
    ) -> Result<R, HookError> {
        self.judge(function, subject, self.pool.call_leased(lease, function, budget, f))
    }

    /// Replaces the idle instances by a new one.
    pub(super) fn renew(&self, function: Function) -> Result<(), HookError> {
        self.judge(function, &Subject::Nothing, self.pool.renew().map(Ok))
    }

    fn judge<R>(
        &self,
        function: Function,
        subject: &Subject<'_>,
        result: Result<Result<R, String>, Fault>,
    ) -> Result<R, HookError> {
        match result {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(message)) => {
                let why = format!("it answered with an error: {}", text::reason(&message, 512));
                Err(self.error(function, subject, HookCause::Refused, why))
            }
            Err(fault) if fault.function == function => Err(self.error(function, subject, fault.cause, fault.why)),
            Err(fault) => {
                // A replacement instance could not be made: say in which step.
                let why = format!("a new instance failed in `{}`: {}", fault.function, fault.why);
                Err(self.error(function, subject, fault.cause, why))
            }
        }
    }

    /// An error of this patch in `function`.
    pub(super) fn error(&self, function: Function, subject: &Subject<'_>, cause: HookCause, why: String) -> HookError {
        let call = format!("`{function}`{subject}");
        let next = match cause {
            HookCause::Trap => "the instance was dropped and nothing was changed; report this to the patch's author",
            HookCause::Limit => "fix the patch, or raise the named limit if the work is honest",
            HookCause::BadOutput => "fix the patch: nothing of this answer was used",
            HookCause::Refused => "change the settings or the model as the patch says, or leave the patch out",
            HookCause::Unsupported => "use a patch that exports what it declares to need",
        };
        HookError { patch: self.info.name.clone(), call, cause, why, next: next.to_owned() }
    }
}

/// What a call is about. Made into text only where there is an error to report: a call takes half a microsecond.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    /// Nothing in particular.
    Nothing,
    /// A tensor or an architecture, by name.
    Named(&'a str),
    /// That many tensors.
    Tensors(usize),
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Nothing => Ok(()),
            Subject::Named(name) => write!(f, " for `{}`", text::clean(name, 200)),
            Subject::Tensors(count) => write!(f, " for {count} tensors"),
        }
    }
}
