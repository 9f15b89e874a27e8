//! A patch in child processes. What comes back is checked, as every answer that does not come from a guest in this process
//! is ([`crate::call::Asked`]): who took over a child must not take over the host.

use super::process::{Isolation, Lost, Process};
use super::protocol::{Counters, Request, Said, Start};
use crate::abi::{Info, identity};
use crate::base::{Function, Grants, Hook, text};
use crate::call::{Answer, Ask, Outcome, Question};
use crate::sandbox::{CallStats, Fault, FunctionStats, Limits};
use patchhost_runtime::hooks::{HookCause, HookError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// How much longer than the guest's own wall time the host waits: the guest is ended by its child first.
const PATIENCE: Duration = Duration::from_secs(2);

/// A patch that runs elsewhere.
pub(crate) struct Remote {
    isolation: Isolation,
    info: Info,
    limits: Limits,
    start: Mutex<Start>,
    slots: Mutex<Vec<Arc<Slot>>>,
    past: Mutex<Counters>,
    watches: Mutex<Watches>,
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

/// Refits that are observed, each by the process that it began in.
#[derive(Default)]
struct Watches {
    begun: u64,
    open: HashMap<u64, Watch>,
}

/// One of them.
#[derive(Clone)]
struct Watch {
    slot: Arc<Slot>,
    /// Which of the processes that the place had.
    process: u64,
    /// The number that the process gave it.
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
            Ok(Said::Started(info)) => *info,
            Ok(Said::NotStarted(fault)) => {
                let why = text::clean(&fault.why, 1024);
                return Err(NotStarted::Fault(Fault { why, ..fault }));
            }
            Ok(Said::NotCompiled(why)) => return Err(not(why)),
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
            limits: limits.clone(),
            start: Mutex::new(start),
            slots: Mutex::new(vec![Arc::new(slot)]),
            past: Mutex::default(),
            watches: Mutex::default(),
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

    /// Asks the process of one place; `number`: only if it is still that one. Also gives which one it was.
    fn ask_in(&self, slot: &Slot, number: Option<u64>, question: Question) -> Result<(Answer, u64), HookError> {
        let function = question.function().unwrap_or(Function::Finish);
        let subject = question.subject().to_owned();
        let error = |cause, why| self.error(function, &subject, cause, why);
        let mut held = lock(&slot.held);
        if let Some(how) = held.process.as_mut().and_then(Process::ended) {
            self.lost(slot, &mut held, function, &format!("the process that it runs in ended between calls: {how}"));
        }
        if number.is_some_and(|number| number != held.number || held.process.is_none()) {
            let why = "the process that began this sequence of calls is gone".to_owned();
            return Err(error(HookCause::Trap, why));
        }
        if held.process.is_none() {
            let started = self.again().map_err(|why| error(HookCause::Trap, why))?;
            held.process = Some(started);
            held.number += 1;
            tracing::warn!(patch = %self.info.name, "a new process for a patch whose process ended");
        }
        let number = held.number;
        let Some(process) = &mut held.process else {
            return Err(error(HookCause::Trap, "it has no process".into()));
        };
        let wall = Duration::from_millis(self.limits.wall_ms(function)) + PATIENCE;
        let asked = process.ask(&Request::Ask(question), wall);
        *lock(&slot.seen) = (process.counters.clone(), Some(process.pid()));
        match asked {
            Ok(Said::Outcome(Ok(answer))) => Ok((answer, number)),
            Ok(Said::Outcome(Err(said))) => Err(HookError {
                patch: self.info.name.clone(),
                call: text::clean(&said.call, 512),
                why: text::clean(&said.why, 2048),
                next: text::clean(&said.next, 512),
                cause: said.cause,
            }),
            Ok(other) => Err(error(HookCause::BadOutput, format!("its process answered with {}", kind(&other)))),
            Err(Lost { why, late }) => {
                self.lost(slot, &mut held, function, &why);
                let cause = if late { HookCause::Limit } else { HookCause::Trap };
                Err(error(cause, why))
            }
        }
    }

    /// Asks the process that a refit began in; it knows the refit by a number of its own.
    fn ask_watch(&self, watch: u64, question: impl FnOnce(u64) -> Question) -> Outcome {
        let known = lock(&self.watches).open.get(&watch).cloned();
        let Some(Watch { slot, process, number }) = known else {
            let why = "the refit that this call belongs to is over".to_owned();
            return Err(self.error(Function::Tensors, "", HookCause::Trap, why));
        };
        self.ask_in(&slot, Some(process), question(number)).map(|(answer, _)| answer)
    }

    /// What is known of a process that is gone is kept; the place is free.
    fn lost(&self, slot: &Slot, held: &mut Held, function: Function, why: &str) {
        if let Some(gone) = held.process.take() {
            let mut past = lock(&self.past);
            past.dropped += 1;
            merge(&mut past, &gone.counters);
        }
        *lock(&slot.seen) = (Counters::default(), None);
        tracing::error!(patch = %self.info.name, %function, %why, "a process with a patch in it is gone");
    }

    /// A process in the place of one that is gone. It must be the same patch.
    fn again(&self) -> Result<Process, String> {
        let start = lock(&self.start).clone();
        let (process, first) = Process::start(&self.isolation, &start).map_err(|e| format!("no child process: {e}"))?;
        match first {
            Ok(Said::Started(info)) if *info == self.info => Ok(process),
            Ok(Said::Started(_)) => Err("`describe` gave another answer than it gave the first time".to_owned()),
            Ok(Said::NotStarted(fault)) => Err(text::clean(&fault.to_string(), 1024)),
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
}

impl Ask for Remote {
    fn name(&self) -> &str {
        &self.info.name
    }

    /// Asks whichever process is free, or a new one; a refit that began, the process that it began in.
    fn ask(&self, question: Question) -> Outcome {
        match question {
            Question::Tensors { watch, batch } => self.ask_watch(watch, |watch| Question::Tensors { watch, batch }),
            Question::Finish { watch, total } => self.ask_watch(watch, |watch| Question::Finish { watch, total }),
            Question::Forget { watch } => {
                let forgotten = self.ask_watch(watch, |watch| Question::Forget { watch });
                lock(&self.watches).open.remove(&watch);
                forgotten
            }
            Question::ExportState if !self.state => Ok(Answer::State(None)),
            Question::ImportState(snapshot) => {
                let slot = self.slot();
                let (answer, _) = self.ask_in(&slot, None, Question::ImportState(snapshot.clone()))?;
                if matches!(answer, Answer::Done) {
                    // So does each later process.
                    lock(&self.start).inherited = Some(snapshot);
                }
                Ok(answer)
            }
            question => {
                let slot = self.slot();
                match self.ask_in(&slot, None, question)? {
                    (Answer::Begun(verdict, number), process) => {
                        let mut watches = lock(&self.watches);
                        let watch = watches.begun;
                        watches.begun += 1;
                        watches.open.insert(watch, Watch { slot, process, number });
                        Ok(Answer::Begun(verdict, watch))
                    }
                    (answer, _) => Ok(answer),
                }
            }
        }
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

/// What kind of thing it said: what is in it is not the host's to repeat.
fn kind(said: &Said) -> &'static str {
    match said {
        Said::Started(_) => "`started`",
        Said::NotCompiled(_) => "`not compiled`",
        Said::NotStarted(_) => "`not started`",
        Said::Outcome(Ok(answer)) => answer.kind(),
        Said::Outcome(Err(_)) => "an error",
        Said::Nonsense(_) => "`nonsense`",
    }
}
