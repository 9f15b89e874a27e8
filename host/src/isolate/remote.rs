//! A patch in child processes, as the runtime's hooks. What comes back is checked by the rules that answers of guests in
//! this process are checked by: who took over a child must not take over the host.

mod hooks;

pub(crate) use hooks::Hooked;

use super::process::{Isolation, Lost, Process};
use super::protocol::{Answer, Counters, Request, Start};
use crate::abi::{Info, Snapshot, identity};
use crate::base::{Function, Grants};
use crate::base::{Hook, text};
use crate::sandbox::{CallStats, Fault, FunctionStats, Limits};
use patchhost_runtime::hooks::{HookCause, HookError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// How much longer than the guest's own wall time the host waits: the guest is ended by its child first.
const PATIENCE: Duration = Duration::from_secs(2);

/// A patch that runs elsewhere.
pub(crate) struct Remote {
    isolation: Isolation,
    info: Info,
    hooks: Vec<Hook>,
    limits: Limits,
    start: Mutex<Start>,
    slots: Mutex<Vec<Arc<Slot>>>,
    past: Mutex<Counters>,
    state: bool,
}

/// A place for one process.
#[derive(Default)]
pub(super) struct Slot {
    held: Mutex<Held>,
    /// What can be looked at while a call is under way: counters after the last call, and the process.
    seen: Mutex<(Counters, Option<u32>)>,
}

#[derive(Default)]
struct Held {
    process: Option<Process>,
    /// Counts the processes that this place had.
    number: u64,
}

/// Why a patch did not start in a child.
pub(crate) enum NotStarted {
    /// The child could not be made, or did not compile the component.
    NotCompiled(String),
    /// The patch failed.
    Fault(Fault),
}

impl Remote {
    /// Starts one child with the patch in it, so that what can go wrong goes wrong here.
    pub(crate) fn start(
        isolation: Isolation,
        bytes: &[u8],
        digest: [u8; 32],
        hooks: &[Hook],
        state: bool,
        settings: &[(String, String)],
        limits: &Limits,
        grants: &Grants,
    ) -> Result<Self, NotStarted> {
        let not = |why: String| NotStarted::NotCompiled(text::clean(&why, 512));
        let start = Start {
            bytes: bytes.to_vec(),
            digest,
            hooks: hooks.iter().map(|hook| hook.name().to_owned()).collect(),
            state,
            settings: settings.to_vec(),
            limits: limits.clone(),
            grants: toml::to_string(grants).map_err(|e| not(e.to_string()))?,
            inherited: None,
        };
        let (process, first) = Process::start(&isolation, &start).map_err(|e| not(format!("no child process: {e}")))?;
        let info = match first {
            Ok(Answer::Started(info)) => *info,
            Ok(Answer::NotStarted(fault)) => {
                let why = text::clean(&fault.why, 1024);
                return Err(NotStarted::Fault(Fault { why, ..fault }));
            }
            Ok(Answer::NotCompiled(why)) => return Err(not(why)),
            Ok(other) => return Err(not(format!("the child answered `start` with {}", kind(&other)))),
            Err(Lost { why, .. }) => return Err(not(why)),
        };
        identity::check(&info).map_err(not)?;
        let isolation = Isolation { processes: if state { 1 } else { isolation.processes }, ..isolation };
        let seen = Mutex::new((process.counters.clone(), Some(process.pid())));
        let slot = Slot { held: Mutex::new(Held { process: Some(process), number: 1 }), seen };
        Ok(Self {
            isolation,
            info,
            hooks: hooks.to_vec(),
            limits: limits.clone(),
            start: Mutex::new(start),
            slots: Mutex::new(vec![Arc::new(slot)]),
            past: Mutex::default(),
            state,
        })
    }

    pub(crate) fn info(&self) -> &Info {
        &self.info
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn has_state(&self) -> bool {
        self.state
    }

    /// Process ids, for status and for drills.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let slots = lock(&self.slots).clone();
        slots.iter().filter_map(|slot| lock(&slot.seen).1).collect()
    }

    /// What the patch remembers now. None: it has no state.
    pub(crate) fn export_state(&self) -> Result<Option<Snapshot>, HookError> {
        if !self.state {
            return Ok(None);
        }
        match self.ask(Function::ExportState, "", self.limits.wall_state_ms, &Request::ExportState)? {
            Answer::State(Some(s)) => {
                let checked = Snapshot::new(s.schema().to_owned(), s.version(), s.payload().to_vec());
                checked.map(Some).map_err(|why| self.error(Function::ExportState, "", HookCause::BadOutput, why))
            }
            Answer::State(None) => Ok(None),
            other => Err(self.odd(Function::ExportState, &other)),
        }
    }

    /// Starts anew with this snapshot; so does each later process.
    pub(crate) fn import_state(&self, snapshot: Snapshot) -> Result<(), HookError> {
        let request = Request::ImportState(snapshot.clone());
        match self.ask(Function::ImportState, "", self.limits.wall_state_ms, &request)? {
            Answer::Done => {
                lock(&self.start).inherited = Some(snapshot);
                Ok(())
            }
            other => Err(self.odd(Function::ImportState, &other)),
        }
    }

    /// Counters of all processes, those that are gone included.
    pub(crate) fn stats(&self) -> CallStats {
        let mut stats = CallStats::default();
        add(&mut stats, &lock(&self.past));
        let slots = lock(&self.slots).clone();
        for slot in slots {
            add(&mut stats, &lock(&slot.seen).0);
        }
        stats
    }

    /// Asks whichever process is free, or a new one.
    fn ask(&self, function: Function, subject: &str, wall_ms: u64, request: &Request) -> Result<Answer, HookError> {
        let slot = self.slot();
        self.ask_in(&slot, None, function, subject, wall_ms, request).map(|(answer, _)| answer)
    }

    /// Asks the process of one place; `number`: only if it is still that one. Also gives which one it was.
    fn ask_in(
        &self,
        slot: &Slot,
        number: Option<u64>,
        function: Function,
        subject: &str,
        wall_ms: u64,
        request: &Request,
    ) -> Result<(Answer, u64), HookError> {
        let mut held = lock(&slot.held);
        if let Some(how) = held.process.as_mut().and_then(Process::ended) {
            self.lost(slot, &mut held, function, &format!("the process that it runs in ended between calls: {how}"));
        }
        if number.is_some_and(|number| number != held.number || held.process.is_none()) {
            let why = "the process that began this sequence of calls is gone".to_owned();
            return Err(self.error(function, subject, HookCause::Trap, why));
        }
        if held.process.is_none() {
            let started = self.again().map_err(|why| self.error(function, subject, HookCause::Trap, why))?;
            held.process = Some(started);
            held.number += 1;
            tracing::warn!(patch = self.info.name, "a new process for a patch whose process ended");
        }
        let number = held.number;
        let Some(process) = &mut held.process else {
            return Err(self.error(function, subject, HookCause::Trap, "it has no process".into()));
        };
        let asked = process.ask(request, Duration::from_millis(wall_ms) + PATIENCE);
        *lock(&slot.seen) = (process.counters.clone(), Some(process.pid()));
        match asked {
            Ok(Answer::Error(error)) => Err(HookError {
                patch: self.info.name.clone(),
                call: text::clean(&error.call, 512),
                why: text::clean(&error.why, 2048),
                next: text::clean(&error.next, 512),
                cause: error.cause,
            }),
            Ok(answer) => Ok((answer, number)),
            Err(Lost { why, late }) => {
                self.lost(slot, &mut held, function, &why);
                let cause = if late { HookCause::Limit } else { HookCause::Trap };
                Err(self.error(function, subject, cause, why))
            }
        }
    }

    /// What is known of a process that is gone is kept; the place is free.
    fn lost(&self, slot: &Slot, held: &mut Held, function: Function, why: &str) {
        if let Some(gone) = held.process.take() {
            let mut past = lock(&self.past);
            past.dropped += 1;
            merge(&mut past, &gone.counters);
        }
        *lock(&slot.seen) = (Counters::default(), None);
        tracing::error!(patch = self.info.name, %function, why, "a process with a patch in it is gone");
    }

    /// A process in the place of one that is gone. It must be the same patch.
    fn again(&self) -> Result<Process, String> {
        let start = lock(&self.start).clone();
        let (process, first) = Process::start(&self.isolation, &start).map_err(|e| format!("no child process: {e}"))?;
        match first {
            Ok(Answer::Started(info)) if *info == self.info => Ok(process),
            Ok(Answer::Started(_)) => Err("`describe` gave another answer than it gave the first time".to_owned()),
            Ok(Answer::NotStarted(fault)) => Err(text::clean(&fault.to_string(), 1024)),
            Ok(other) => Err(format!("a new process answered `start` with {}", kind(&other))),
            Err(lost) => Err(lost.why),
        }
    }

    /// A place whose process nobody is asking; a new one if there may be more; else the first to wait for.
    fn slot(&self) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        for slot in slots.iter() {
            match slot.held.try_lock() {
                Ok(_) | Err(TryLockError::Poisoned(_)) => return slot.clone(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        if slots.len() < self.isolation.processes || slots.is_empty() {
            slots.push(Arc::default());
        } else {
            slots.rotate_left(1);
        }
        slots.last().cloned().unwrap_or_default()
    }

    fn error(&self, function: Function, subject: &str, cause: HookCause, why: String) -> HookError {
        let call = if subject.is_empty() {
            format!("`{function}`")
        } else {
            format!("`{function}` for {}", text::clean(subject, 200))
        };
        let next = match cause {
            HookCause::Trap => "its process is started again for the next call; report this to the patch's author",
            HookCause::Limit => "fix the patch, or raise the named limit if the work is honest",
            _ => "fix the patch: nothing of this answer was used",
        };
        HookError { patch: self.info.name.clone(), call, cause, why, next: next.to_owned() }
    }

    fn odd(&self, function: Function, answer: &Answer) -> HookError {
        let why = format!("its process answered with {}", kind(answer));
        self.error(function, "", HookCause::BadOutput, why)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn merge(into: &mut Counters, from: &Counters) {
    into.made += from.made;
    into.dropped += from.dropped;
    for (function, stats) in &from.functions {
        match into.functions.iter_mut().find(|(known, _)| known == function) {
            Some((_, known)) => sum(known, stats),
            None => into.functions.push((*function, *stats)),
        }
    }
}

fn add(stats: &mut CallStats, counters: &Counters) {
    stats.instances_made += counters.made;
    stats.instances_dropped += counters.dropped;
    for (function, more) in &counters.functions {
        sum(stats.functions.entry(function.name()).or_default(), more);
    }
}

fn sum(into: &mut FunctionStats, more: &FunctionStats) {
    into.calls += more.calls;
    into.traps += more.traps;
    into.fuel_total = into.fuel_total.saturating_add(more.fuel_total);
    into.fuel_max = into.fuel_max.max(more.fuel_max);
    into.wall_ns = into.wall_ns.saturating_add(more.wall_ns);
}

/// What kind of answer it is: what is in it is not the host's to repeat.
fn kind(answer: &Answer) -> &'static str {
    match answer {
        Answer::Started(_) => "`started`",
        Answer::NotCompiled(_) => "`not compiled`",
        Answer::NotStarted(_) => "`not started`",
        Answer::Placements(_) => "placements",
        Answer::Decisions(_) => "decisions",
        Answer::Activation(_) => "an activation rule",
        Answer::Numbers(_) => "numbers",
        Answer::Passes(_) => "passes",
        Answer::Plan(_) => "a plan",
        Answer::Ranges(_) => "ranges",
        Answer::Begun(..) => "`begun`",
        Answer::Verdict(_) => "a verdict",
        Answer::State(_) => "state",
        Answer::Done => "`done`",
        Answer::Error(_) => "an error",
        Answer::Nonsense(_) => "`nonsense`",
    }
}
