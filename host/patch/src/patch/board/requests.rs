//! What people, files and programs ask of the board.

use super::change::replaced;
use super::{
    Board, Inner, Mode, Quarantined, Requested, StagedPatch, SwapError, SwapErrorKind, SwapRequest, Transition, When,
    members,
};
use crate::base::Digest;
use crate::patch::{Actor, Applicability, Facts, Generation, Patch};
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

use SwapErrorKind::{Conflict, Forbidden, Invalid, NotFound};

impl Board {
    /// Takes in a patch that passed every stage; `remarks`: what its probe said that somebody should know. The same generation
    /// again changes nothing; false says so.
    pub fn staged(
        &self,
        patch: &Arc<Patch>,
        trust: &Facts,
        remarks: &[String],
        actor: &Actor,
    ) -> Result<bool, SwapError> {
        let applicability = patch.applies_to(&self.to);
        let mut inner = self.lock();
        if let Some(known) = inner.staged.iter_mut().find(|s| s.patch.generation() == patch.generation()) {
            known.at = Instant::now();
            return Ok(false);
        }
        let fields = json!({
            "name": patch.info().name, "version": patch.info().version, "sha256": patch.digest(),
            "generation": patch.generation(), "hooks": patch.hooks(), "applicability": applicability,
            "trust": trust, "remarks": remarks,
        });
        self.record("patch.staged", actor, fields)?;
        let (by, at) = (actor.clone(), Instant::now());
        inner.staged.push(StagedPatch { patch: patch.clone(), applicability, by, at });
        while inner.staged.len() > self.rules.swap.max_staged {
            inner.staged.remove(0);
        }
        Ok(true)
    }

    /// Notes that a candidate was refused before it was staged.
    pub fn refused(&self, name: &str, sha256: Option<&Digest>, stage: &str, why: &str, actor: &Actor) {
        self.lock().refused += 1;
        let why = crate::base::text::clean(&why.replace('\n', " "), 1000);
        self.note("patch.refused", actor, json!({ "name": name, "sha256": sha256, "stage": stage, "why": why }));
    }

    /// Why a component may not run, if it may not.
    pub fn quarantined(&self, component: &Digest) -> Option<String> {
        self.lock().quarantine.get(component).map(|q| q.reason.clone())
    }

    /// Asks for a swap. It lands at a refit; until then it can be canceled.
    pub fn request(&self, request: &SwapRequest, actor: &Actor) -> Result<Requested, SwapError> {
        let mut inner = self.lock();
        let what = || format!("swap to {}", request.to);
        let patch = inner.find(&request.to).ok_or_else(|| {
            SwapError::new(NotFound, what(), "no staged or retained patch has this digest", "stage the component first")
        })?;
        if let Applicability::NotApplicable { reason } = patch.applies_to(&self.to) {
            let next = "use a patch for this model and host";
            return Err(SwapError::new(Forbidden, what(), format!("it is not applicable: {reason}"), next));
        }
        if let Some(q) = inner.quarantine.get(patch.digest()) {
            let next = "repair the patch; or lift the quarantine with a reason";
            return Err(SwapError::new(Forbidden, what(), format!("it is in quarantine: {}", q.reason), next));
        }
        if request.force && request.reason.as_deref().unwrap_or_default().trim().is_empty() {
            let why = "a forced change without a reason";
            return Err(SwapError::new(Invalid, what(), why, "say why: it is written to the ledger"));
        }
        if let Some(expected) = &request.expect {
            inner.expected(expected, &patch, &what())?;
        }
        // Changes that all land at the next refit add up; any other transition must end first.
        let amends = |t: &Transition| {
            (t.mode, t.when) == (Mode::Live, When::Refit) && (request.mode, request.when) == (Mode::Live, When::Refit)
        };
        let base = match &inner.transition {
            Some(t) if amends(t) => t.to.set().clone(),
            _ => inner.active.set().clone(),
        };
        let set = replaced(&base, &patch, request.force)?;
        if set.digest() == inner.active.digest() {
            if inner.transition.as_ref().is_some_and(amends) {
                inner.transition = None;
                self.note("swap.cancelled", actor, json!({ "why": "the active set was asked for again" }));
            }
            return Ok(Requested::AlreadyActive { active: set.digest() });
        }
        if let Some(t) = &inner.transition {
            if t.to.digest() == set.digest() {
                if (t.mode, t.when) == (request.mode, request.when) {
                    return Ok(Requested::AlreadyPending { to: set.digest() });
                }
                return self.change_mode(&mut inner, request.mode, request.when, actor);
            }
            if !amends(t) && !request.force {
                let why = format!("a transition to {} ({}, {}) is under way", t.to.digest(), t.mode, t.when);
                let next = "wait for it, cancel it, or force the change with a reason";
                return Err(SwapError::new(Conflict, what(), why, next));
            }
        }
        self.begin(&mut inner, set, request.mode, request.when, false, request.reason.clone(), request.force, actor)
    }

    /// Asks for the set before the active one. Its patches are still instantiated: nothing is compiled.
    pub fn rollback(&self, when: When, reason: Option<String>, actor: &Actor) -> Result<Requested, SwapError> {
        let mut inner = self.lock();
        // A candidate that has not landed is the first thing to be taken back.
        if let Some(t) = inner.transition.take() {
            self.note("swap.cancelled", actor, json!({ "to": t.to.digest(), "mode": t.mode, "why": "rollback" }));
            if t.mode != Mode::Live || inner.retained.is_empty() {
                return Ok(Requested::AlreadyActive { active: inner.active.digest() });
            }
        }
        let Some(to) = inner.retained.front().cloned() else {
            let next = "stage a component and swap to it";
            return Err(SwapError::new(NotFound, "rollback", "no earlier set is retained", next));
        };
        if let Some((name, why)) = inner.quarantined_member(&to) {
            let why = format!("patch `{name}` of the set before is in quarantine: {why}");
            return Err(SwapError::new(Forbidden, "rollback", why, "lift the quarantine with a reason, or swap"));
        }
        self.begin(&mut inner, to.set().clone(), Mode::Live, when, true, reason, false, actor)
    }

    /// Ends the transition; false if there was none.
    pub fn cancel(&self, why: &str, actor: &Actor) -> bool {
        let Some(t) = self.lock().transition.take() else { return false };
        self.note("swap.cancelled", actor, json!({ "to": t.to.digest(), "mode": t.mode, "why": why }));
        true
    }

    /// Moves the transition from one mode to another; to live only somebody can, never the host by itself.
    pub fn set_mode(&self, mode: Mode, when: When, actor: &Actor) -> Result<Requested, SwapError> {
        self.change_mode(&mut self.lock(), mode, when, actor)
    }

    fn change_mode(&self, inner: &mut Inner, mode: Mode, when: When, actor: &Actor) -> Result<Requested, SwapError> {
        let from = inner.active.digest();
        let Some(t) = &mut inner.transition else {
            let next = "stage a component and swap to it with the mode";
            return Err(SwapError::new(NotFound, format!("mode {mode}"), "no candidate is under way", next));
        };
        let fields =
            json!({ "to": t.to.digest(), "from_mode": t.mode, "mode": mode, "when": when, "clean_refits": t.clean });
        self.record("patch.mode", actor, fields)?;
        (t.mode, t.when, t.clean) = (mode, when, 0);
        Ok(Requested::Pending { from, to: t.to.digest() })
    }

    /// A component never runs again until somebody lifts it. A transition to it ends.
    pub fn quarantine(&self, component: Digest, reason: &str, actor: &Actor) -> Result<(), SwapError> {
        let reason = reasoned("quarantine", reason)?;
        self.record("patch.quarantined", actor, json!({ "sha256": component, "reason": reason }))?;
        let mut inner = self.lock();
        inner.quarantine.insert(component, Quarantined { reason, by: actor.clone() });
        let pending = inner.transition.as_ref().is_some_and(|t| has(&t.to, &component));
        if pending && let Some(t) = inner.transition.take() {
            self.note("swap.cancelled", actor, json!({ "to": t.to.digest(), "why": "quarantine" }));
        }
        Ok(())
    }

    /// Lifts a quarantine; false if there was none.
    pub fn unquarantine(&self, component: &Digest, reason: &str, actor: &Actor) -> Result<bool, SwapError> {
        let reason = reasoned("lifting a quarantine", reason)?;
        let mut inner = self.lock();
        if !inner.quarantine.contains_key(component) {
            return Ok(false);
        }
        self.record("patch.unquarantined", actor, json!({ "sha256": component, "reason": reason }))?;
        inner.quarantine.remove(component);
        inner.failures.remove(component);
        Ok(true)
    }

    fn begin(
        &self,
        inner: &mut Inner,
        set: crate::patch::PatchSet,
        mode: Mode,
        when: When,
        rollback: bool,
        reason: Option<String>,
        force: bool,
        actor: &Actor,
    ) -> Result<Requested, SwapError> {
        let reason = reason.map(|r| crate::base::text::clean(&r, 400)).filter(|r| !r.is_empty());
        // A set that is retained keeps its generation: nothing is made anew.
        let to = match inner.retained.iter().find(|g| g.digest() == set.digest()) {
            Some(known) => known.clone(),
            None => {
                let number = inner.next_number();
                Generation::new(number, set)
            }
        };
        let from = inner.active.digest();
        let event = if rollback { "swap.rollback" } else { "swap.requested" };
        let fields = json!({
            "from": from, "to": to.digest(), "mode": mode, "when": when, "patches": members(&to),
            "reason": reason, "forced": force,
        });
        self.record(event, actor, fields)?;
        if force {
            let why = reason.clone().unwrap_or_default();
            self.record("patch.forced", actor, json!({ "to": to.digest(), "reason": why }))?;
            inner.tainted.push(format!("forced swap to {}: {why}", to.digest()));
        }
        let (requested, since) = (Requested::Pending { from, to: to.digest() }, Instant::now());
        let by = actor.clone();
        inner.transition = Some(Transition { to, mode, when, by, since, rollback, reason, clean: 0 });
        Ok(requested)
    }
}

impl Inner {
    /// A patch by the digest of its generation or of its component: staged ones first, newest first.
    fn find(&self, digest: &Digest) -> Option<Arc<Patch>> {
        let is = |p: &&Arc<Patch>| p.generation() == *digest || p.digest() == digest;
        let staged = self.staged.iter().rev().map(|s| &s.patch);
        let sets = std::iter::once(&self.active).chain(&self.retained).flat_map(|g| g.set().patches());
        staged.chain(sets).find(is).cloned()
    }

    /// Whether `expected` is the active set, or the patch (by either digest) that `patch` would replace.
    fn expected(&self, expected: &Digest, patch: &Patch, what: &str) -> Result<(), SwapError> {
        let active = self.active.digest();
        let in_place_of = self.active.set().patches().iter().filter(|old| {
            old.info().name == patch.info().name || old.hooks().iter().any(|h| !h.shared() && patch.hooks().contains(h))
        });
        let fits = |old: &Arc<Patch>| old.generation() == *expected || old.digest() == expected;
        if *expected == active || in_place_of.clone().any(fits) {
            return Ok(());
        }
        let now: Vec<String> = in_place_of.map(|p| p.digest().to_string()).collect();
        let now = if now.is_empty() { "no patch has its hooks".to_owned() } else { now.join(", ") };
        let why = format!("{expected} was expected to be active; active is the set {active} ({now})");
        Err(SwapError::new(Conflict, what, why, "look at the status, and expect what is active"))
    }

    pub(super) fn quarantined_member(&self, generation: &Generation) -> Option<(String, String)> {
        let patches = generation.set().patches().iter();
        patches.filter_map(|p| Some((p.info().name.clone(), self.quarantine.get(p.digest())?.reason.clone()))).next()
    }
}

fn has(generation: &Generation, component: &Digest) -> bool {
    generation.set().patches().iter().any(|p| p.digest() == component)
}

fn reasoned(what: &str, reason: &str) -> Result<String, SwapError> {
    let reason = crate::base::text::clean(reason.trim(), 400);
    match reason.is_empty() {
        true => Err(SwapError::new(Invalid, what, "it has no reason", "say why: it is written to the ledger")),
        false => Ok(reason),
    }
}
