//! The board: which patch set is active, which one is coming, and which ones can still be gone back to. Every change
//! goes through here, is written to the ledger, and takes effect at a refit. As in the kernel's livepatch there is one
//! transition at a time, it is cumulative, and it can be reversed until it has landed.

mod change;
mod error;
mod failures;
mod refit;
mod requests;
mod status;

use super::{Actor, Applicability, Attachments, Description, Digest, Event, Generation, Ledger, Patch, Rules};
use failures::Failures;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

pub use change::probe_set;
pub use error::{SwapError, SwapErrorKind};
pub use failures::{Failure, Reaction};
pub use refit::{Beside, Landing, RefitAt, RefitPlan};
pub use status::{BoardStatus, DrainingStatus, QuarantineStatus, StagedStatus, TransitionStatus};

/// When a swap lands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    /// At the next refit.
    #[default]
    Refit,
    /// At once: the source of the last refit is loaded again.
    Now,
    /// At the first refit whose step is this or greater: the step that the trainer names, else the number of refits of this
    /// process.
    Step(u64),
}

/// How a candidate takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// It takes over.
    #[default]
    Live,
    /// It does all the work and is compared; nothing of it is used.
    Shadow,
    /// It is used for so many percent, 1 to 99.
    Canary(u8),
}

/// What somebody wants to change.
#[derive(Debug, Clone)]
pub struct SwapRequest {
    /// The staged patch, by the digest of its generation or of its component.
    pub to: Digest,
    /// What must be active now: the digest of the set, or of the patch that is replaced.
    pub expect: Option<Digest>,
    /// When it lands.
    pub when: When,
    /// How the candidate takes part.
    pub mode: Mode,
    /// Also where a transition is under way or hooks would be left without a patch. Marks the process for good.
    pub force: bool,
    /// Why, for the ledger; a forced change must have one.
    pub reason: Option<String>,
}

impl SwapRequest {
    /// A plain swap at the next refit.
    pub fn to(to: Digest) -> Self {
        Self { to, expect: None, when: When::Refit, mode: Mode::Live, force: false, reason: None }
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Requested {
    /// It is what is active already: nothing was done.
    AlreadyActive {
        /// Digest of the set.
        active: Digest,
    },
    /// It is what is coming already: nothing was done.
    AlreadyPending {
        /// Digest of the set that is coming.
        to: Digest,
    },
    /// It is coming.
    Pending {
        /// The active set.
        from: Digest,
        /// The set that is coming.
        to: Digest,
    },
}

impl fmt::Display for Requested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyActive { active } => write!(f, "it is active already (set {})", active.short()),
            Self::AlreadyPending { to } => write!(f, "it is coming already (set {})", to.short()),
            Self::Pending { from, to } => {
                write!(f, "it comes (set {} takes the place of {})", to.short(), from.short())
            }
        }
    }
}

/// A patch that passed every stage and waits.
struct StagedPatch {
    patch: Arc<Patch>,
    applicability: Applicability,
    by: Actor,
    at: Instant,
}

/// A change that has not landed.
struct Transition {
    to: Arc<Generation>,
    mode: Mode,
    when: When,
    by: Actor,
    since: Instant,
    rollback: bool,
    reason: Option<String>,
    /// Refits that the candidate took part in without a finding.
    clean: u64,
}

/// A superseded set that is no longer retained.
struct Draining {
    number: u64,
    digest: Digest,
    /// Held by the weights that it made.
    pin: Weak<()>,
    since: Instant,
    blocked: bool,
}

#[derive(Clone)]
struct Quarantined {
    reason: String,
    by: Actor,
}

struct Inner {
    active: Arc<Generation>,
    /// Newest first.
    retained: VecDeque<Arc<Generation>>,
    draining: Vec<Draining>,
    staged: Vec<StagedPatch>,
    transition: Option<Transition>,
    quarantine: BTreeMap<Digest, Quarantined>,
    failures: BTreeMap<Digest, Failures>,
    tainted: Vec<String>,
    not_applicable: Vec<(Arc<Patch>, String)>,
    numbers: u64,
    swaps: u64,
    rollbacks: u64,
    refused: u64,
}

/// The board of one model.
pub struct Board {
    /// What its patches are applied to.
    to: Description,
    rules: Rules,
    ledger: Ledger,
    inner: Mutex<Inner>,
}

impl Board {
    /// With the patches that a run starts with.
    pub fn new(start: &Attachments, rules: Rules, ledger: Ledger) -> Self {
        let not = |(patch, applicability): &(Arc<Patch>, Applicability)| match applicability {
            Applicability::Applies => None,
            Applicability::NotApplicable { reason } => Some((patch.clone(), reason.clone())),
        };
        let inner = Inner {
            active: Generation::new(1, start.set().clone()),
            retained: VecDeque::new(),
            draining: Vec::new(),
            staged: Vec::new(),
            transition: None,
            quarantine: BTreeMap::new(),
            failures: BTreeMap::new(),
            tainted: Vec::new(),
            not_applicable: start.entries().iter().filter_map(not).collect(),
            numbers: 1,
            swaps: 0,
            rollbacks: 0,
            refused: 0,
        };
        Self { to: start.to().clone(), rules, ledger, inner: Mutex::new(inner) }
    }

    /// The active generation: what a refit that starts now goes through.
    pub fn active(&self) -> Arc<Generation> {
        self.lock().active.clone()
    }

    /// The engine and the model that its patches are applied to.
    pub fn to(&self) -> &Description {
        &self.to
    }

    /// What it follows when a patch fails, a candidate differs or sets pile up.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Every patch that a counter may still move of: active, retained, staged, coming.
    pub fn patches(&self) -> Vec<Arc<Patch>> {
        let inner = self.lock();
        let sets = std::iter::once(&inner.active).chain(&inner.retained).chain(inner.transition.iter().map(|t| &t.to));
        let mut all: Vec<Arc<Patch>> = sets.flat_map(|g| g.set().patches().to_vec()).collect();
        all.extend(inner.staged.iter().map(|s| s.patch.clone()));
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|patch| seen.insert(patch.generation()));
        all
    }

    /// A patch that need not be staged anew: it is staged, active, retained or coming.
    pub fn known(&self, generation: &Digest) -> Option<Arc<Patch>> {
        self.patches().into_iter().find(|patch| patch.generation() == *generation)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an event. A change that cannot be written down is not made: callers that can still refuse do.
    fn record(&self, event: &'static str, actor: &Actor, fields: Value) -> Result<(), SwapError> {
        self.record_all(&[ledger_event(event, actor, fields)])
    }

    /// The same for several events: all of them are written, or none.
    fn record_all(&self, events: &[Event]) -> Result<(), SwapError> {
        self.ledger.append_all(events).map(drop).map_err(|e| {
            let names: Vec<String> = events.iter().map(|event| format!("`{}`", event.name)).collect();
            SwapError::new(
                SwapErrorKind::Ledger,
                format!("event {}", names.join(" and ")),
                format!("the ledger cannot be written: {}", crate::base::text::clean(&e.to_string(), 400)),
                "free the disk or name another --ledger; nothing was changed",
            )
        })
    }

    /// The same where nothing can be refused any more: what cannot be written leaves a gap that the ledger reports.
    fn note(&self, event: &'static str, actor: &Actor, fields: Value) {
        let Event { name, actor, fields } = ledger_event(event, actor, fields);
        if let Err(error) = self.ledger.note(name, &actor, fields) {
            tracing::error!(%error, %event, "an event is missing in the ledger");
        }
    }

    /// Writes what a run starts with; one that cannot be written down does not start.
    pub fn started(&self, actor: &Actor) -> Result<(), SwapError> {
        let active = self.active();
        let fields = json!({
            "architecture": self.to.architecture, "active": active.digest(), "patches": members(&active),
            "policy": self.rules.file, "patchhost": env!("CARGO_PKG_VERSION"),
        });
        self.record("host.started", actor, fields)
    }

    /// Notes an event of somebody who shares the ledger.
    pub fn event(&self, event: &'static str, actor: &Actor, fields: Value) {
        self.note(event, actor, fields);
    }

    /// Writes an event of somebody who shares the ledger, before what it is about happens: an error stops that.
    pub fn before(&self, event: &'static str, actor: &Actor, fields: Value) -> Result<(), SwapError> {
        self.record(event, actor, fields)
    }
}

fn ledger_event(name: &'static str, actor: &Actor, fields: Value) -> Event {
    let fields = match fields {
        Value::Object(fields) => fields,
        other => Map::from_iter([("value".to_owned(), other)]),
    };
    Event { name, actor: actor.clone(), fields }
}

impl Inner {
    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

fn members(generation: &Generation) -> Value {
    json!(
        generation
            .set()
            .patches()
            .iter()
            .map(|p| json!({ "name": p.info().name, "sha256": p.digest(), "generation": p.generation() }))
            .collect::<Vec<_>>()
    )
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            When::Refit => f.write_str("refit"),
            When::Now => f.write_str("now"),
            When::Step(n) => write!(f, "step:{n}"),
        }
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{}` is none of refit, now, step:N", crate::base::text::clean(text, 40));
        match text {
            "refit" => Ok(When::Refit),
            "now" => Ok(When::Now),
            _ => text.strip_prefix("step:").and_then(|n| n.parse().ok()).map(When::Step).ok_or_else(wrong),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Live => f.write_str("live"),
            Mode::Shadow => f.write_str("shadow"),
            Mode::Canary(percent) => write!(f, "canary={percent}%"),
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown = crate::base::text::clean(text, 40);
            format!("`{shown}` is none of live, shadow, canary=N% with N from 1 to 99")
        };
        match text {
            "live" => Ok(Mode::Live),
            "shadow" => Ok(Mode::Shadow),
            _ => {
                let percent = text.strip_prefix("canary=").map(|n| n.strip_suffix('%').unwrap_or(n));
                let percent = percent.and_then(|n| n.parse().ok()).filter(|n| (1..=99).contains(n));
                percent.map(Mode::Canary).ok_or_else(wrong)
            }
        }
    }
}

impl Serialize for When {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl Serialize for Mode {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
