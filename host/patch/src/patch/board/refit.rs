//! What a refit takes from the board, and what it tells it.

use super::{Board, Draining, Mode, Transition, When};
use crate::base::Digest;
use crate::patch::{Actor, Event, Generation};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which refit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefitAt {
    /// Counted in this process, from 1.
    pub refit: u64,
    /// The trainer's own step, where it names one: that goes on when a process is started again.
    pub step: Option<u64>,
}

impl RefitAt {
    /// What swaps that wait for a step go by.
    pub fn step_or_count(&self) -> u64 {
        self.step.unwrap_or(self.refit)
    }

    /// Fields of an event with the step, where one was named.
    pub fn with_step(&self, mut fields: Value) -> Value {
        if let Some(step) = self.step {
            fields["step"] = json!(step);
        }
        fields
    }
}

/// What the next refit goes through.
#[derive(Debug, Clone)]
pub struct RefitPlan {
    /// The active generation.
    pub active: Arc<Generation>,
    /// The one before it, for the failure policy `last-good`.
    pub before: Option<Arc<Generation>>,
    /// A candidate that takes over with this refit.
    pub landing: Option<Landing>,
    /// A candidate that takes part.
    pub beside: Option<Beside>,
}

/// A candidate that takes over.
#[derive(Debug, Clone)]
pub struct Landing {
    pub to: Arc<Generation>,
    /// Whether it was active before.
    pub rollback: bool,
    /// Who asked.
    pub by: Actor,
    /// Why.
    pub reason: Option<String>,
}

/// A candidate in shadow or canary.
#[derive(Debug, Clone)]
pub struct Beside {
    pub to: Arc<Generation>,
    /// Shadow or canary.
    pub mode: Mode,
}

impl RefitPlan {
    /// Whose weights they are where everything goes well.
    pub fn landing_or_active(&self) -> Arc<Generation> {
        self.landing.as_ref().map_or_else(|| self.active.clone(), |landing| landing.to.clone())
    }
}

impl Board {
    /// What this refit goes through. A swap that waits for a step lands at the first refit that reaches it, and then waits
    /// no more: a trainer that goes back lands nothing a second time.
    pub fn plan(&self, at: RefitAt) -> RefitPlan {
        let inner = self.lock();
        let due = |t: &&Transition| match t.when {
            When::Refit | When::Now => true,
            When::Step(n) => at.step_or_count() >= n,
        };
        let due = inner.transition.as_ref().filter(due);
        let landing = due.filter(|t| t.mode == Mode::Live).map(|t| Landing {
            to: t.to.clone(),
            rollback: t.rollback,
            by: t.by.clone(),
            reason: t.reason.clone(),
        });
        let beside = due.filter(|t| t.mode != Mode::Live).map(|t| Beside { to: t.to.clone(), mode: t.mode });
        RefitPlan { active: inner.active.clone(), before: inner.retained.front().cloned(), landing, beside }
    }

    /// Weights are about to be published: writes the refit to the ledger, whose `fields` say what it is. Where that fails
    /// nothing changes, and the weights must not be published. A candidate that made them is the active set from here on.
    pub fn publishes(
        &self,
        landing: Option<&Landing>,
        at: RefitAt,
        label: &str,
        fields: Value,
        actor: &Actor,
    ) -> Result<(), super::SwapError> {
        let refit = super::ledger_event("refit", actor, at.with_step(fields));
        match landing {
            None => self.record_all(&[refit]),
            Some(landing) => self.land(landing, at, label, refit),
        }
    }

    fn land(&self, landing: &Landing, at: RefitAt, label: &str, refit: Event) -> Result<(), super::SwapError> {
        let mut inner = self.lock();
        let from = inner.active.digest();
        let event = if landing.rollback { "swap.rolled_back" } else { "swap.landed" };
        let fields = json!({
            "from": from, "to": landing.to.digest(), "refit": at.refit, "version": label,
            "requested_by": landing.by.to_string(), "reason": landing.reason,
            "patches": super::members(&landing.to),
        });
        self.record_all(&[super::ledger_event(event, &landing.by, at.with_step(fields)), refit])?;
        let old = std::mem::replace(&mut inner.active, landing.to.clone());
        inner.retained.retain(|g| g.digest() != landing.to.digest());
        // After a rollback the set that was left is no candidate for the next rollback: two in a row go further back.
        if landing.rollback {
            inner.retained.push_back(old)
        } else {
            inner.retained.push_front(old)
        }
        while inner.retained.len() > self.rules.swap.retain {
            let Some(gone) = inner.retained.pop_back() else { break };
            let draining = Draining {
                number: gone.number(),
                digest: gone.digest(),
                pin: gone.pin(),
                since: Instant::now(),
                blocked: false,
            };
            inner.draining.push(draining);
        }
        if inner.transition.as_ref().is_some_and(|t| t.to.digest() == landing.to.digest()) {
            inner.transition = None;
        }
        if landing.rollback {
            inner.rollbacks += 1
        } else {
            inner.swaps += 1
        }
        Ok(())
    }

    /// The candidate failed: the transition is reversed, the active set was never touched.
    pub fn reverse(&self, to: &Digest, at: RefitAt, why: &str) {
        let mut inner = self.lock();
        if inner.transition.as_ref().is_none_or(|t| t.to.digest() != *to) {
            return;
        }
        let Some(t) = inner.transition.take() else { return };
        inner.refused += 1;
        let why = crate::base::text::clean(&why.replace('\n', " "), 1000);
        let fields = json!({
            "to": to, "active": inner.active.digest(), "mode": t.mode, "refit": at.refit, "why": why,
            "requested_by": t.by.to_string(),
        });
        self.note("swap.reversed", &Actor::policy(), at.with_step(fields));
    }

    /// A candidate beside took part in a refit without a finding. It stays where it is: promotion is somebody's decision.
    pub fn clean(&self, to: &Digest) -> u64 {
        let mut inner = self.lock();
        match &mut inner.transition {
            Some(t) if t.to.digest() == *to => {
                t.clean += 1;
                t.clean
            }
            _ => 0,
        }
    }

    /// Looks after superseded sets: notes those that are gone, and once those that are in use beyond the deadline.
    pub fn drain(&self) {
        let mut inner = self.lock();
        let deadline = Duration::from_secs(self.rules.swap.drain_deadline_s);
        let mut events: Vec<(&str, Value)> = Vec::new();
        inner.draining.retain_mut(|d| match d.pin.strong_count() {
            0 => {
                events.push(("patch.retired", json!({ "set": d.digest, "number": d.number })));
                false
            }
            users => {
                if d.since.elapsed() > deadline && !std::mem::replace(&mut d.blocked, true) {
                    events.push(("patch.blocked", json!({ "set": d.digest, "number": d.number, "users": users })));
                }
                true
            }
        });
        drop(inner);
        for (event, fields) in events {
            self.note(event, &Actor::policy(), fields);
        }
    }
}
