//! Swaps and rollbacks, with those that are to land at once.

use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::refit::Swapped;
use super::told::Telling;
use super::{Live, LiveError};
use crate::base::Digest;
use crate::patch::{Actor, Mode, Patch, RefitTarget, Requested, SwapError, SwapErrorKind, SwapRequest, When};

/// What became of a request.
#[derive(Debug, Clone, Serialize)]
pub struct SwapOutcome {
    /// What the board said.
    #[serde(flatten)]
    pub requested: Requested,
    /// The swap, where it landed at once.
    pub landed: Option<Swapped>,
    /// Why it was reversed at once, where it was.
    pub reversed: Option<String>,
    /// The set that is active now.
    pub active: Digest,
}

impl<T: RefitTarget> Live<T> {
    /// Asks for a swap. With [`When::Now`] the weights are loaded again at once, from where they came.
    pub fn swap(&self, request: &SwapRequest, actor: &Actor) -> Result<SwapOutcome, LiveError> {
        let mut telling = self.begins("swap", actor);
        telling.fact("swap.asked", || request.to);
        telling.fact("swap.mode", || request.mode.to_string());
        telling.fact("swap.when", || request.when.to_string());
        self.outcome(telling, self.asked(request, actor))
    }

    fn asked(&self, request: &SwapRequest, actor: &Actor) -> Result<SwapOutcome, LiveError> {
        self.heed_revocations();
        let files = || self.files_hold(&format!("swap to {}", request.to));
        let allowed = self.has_canary(request.mode).and_then(|()| files()).and_then(|()| self.not_revoked(&request.to));
        let asked = allowed.and_then(|()| self.board.request(request, actor));
        let requested = asked.inspect_err(|error| {
            let why = crate::base::text::clean(&error.why, 600);
            self.board.event("swap.refused", actor, json!({ "to": request.to, "mode": request.mode, "why": why }));
        })?;
        self.settle(requested, request.when, actor)
    }

    /// Goes back to the set before.
    pub fn rollback(&self, when: When, reason: Option<String>, actor: &Actor) -> Result<SwapOutcome, LiveError> {
        let mut telling = self.begins("rollback", actor);
        telling.fact("swap.when", || when.to_string());
        self.outcome(telling, self.back(when, reason, actor))
    }

    fn back(&self, when: When, reason: Option<String>, actor: &Actor) -> Result<SwapOutcome, LiveError> {
        self.heed_revocations();
        self.files_hold("rollback")?;
        let requested = self.board.rollback(when, reason, actor)?;
        self.target.canary_ends();
        self.settle(requested, when, actor)
    }

    /// Moves a candidate to another mode: shadow, canary, or live, which only somebody can decide.
    pub fn set_mode(&self, mode: Mode, when: When, actor: &Actor) -> Result<SwapOutcome, LiveError> {
        let mut telling = self.begins("mode", actor);
        telling.fact("swap.mode", || mode.to_string());
        telling.fact("swap.when", || when.to_string());
        self.outcome(telling, self.moved(mode, when, actor))
    }

    fn moved(&self, mode: Mode, when: When, actor: &Actor) -> Result<SwapOutcome, LiveError> {
        self.heed_revocations();
        self.has_canary(mode)?;
        let requested = self.board.set_mode(mode, when, actor)?;
        if !matches!(mode, Mode::Canary(_)) {
            self.target.canary_ends();
        }
        self.settle(requested, when, actor)
    }

    /// Ends a transition; false if there was none.
    pub fn cancel(&self, why: &str, actor: &Actor) -> bool {
        let cancelled = self.board.cancel(why, actor);
        if cancelled {
            self.target.canary_ends();
        }
        cancelled
    }

    /// Not everything that has weights can serve two sets of them.
    fn has_canary(&self, mode: Mode) -> Result<(), SwapError> {
        match (mode, self.target.canary()) {
            (Mode::Canary(_), None) => Err(SwapError::new(
                SwapErrorKind::Invalid,
                format!("mode {mode}"),
                format!("{} has no canary here", self.target.describe().host.engine),
                "use shadow, or swap",
            )),
            _ => Ok(()),
        }
    }

    /// A component that was revoked while it was staged, retained or active goes into quarantine: nobody swaps or rolls back
    /// to it, and the next refit asks it nothing.
    pub(super) fn heed_revocations(&self) {
        for patch in self.board.patches() {
            let revoked = || self.gate.revoked(patch.digest());
            let Some(why) = (self.board.quarantined(patch.digest()).is_none()).then(revoked).flatten() else {
                continue;
            };
            let why = format!("PH714 revoked: {}", crate::base::text::clean(&why, 300));
            if let Err(error) = self.board.quarantine(*patch.digest(), &why, &Actor::policy()) {
                tracing::error!(%error, "a revoked patch is not in quarantine");
            }
        }
    }

    /// Lock and revocations can be read and fit together: a file of revocations that is gone must not let back in what it
    /// kept out.
    fn files_hold(&self, what: &str) -> Result<(), SwapError> {
        self.gate.check().map_err(|error| {
            SwapError::new(SwapErrorKind::Forbidden, what, format!("{}: {}", error.what, error.why), error.next)
        })
    }

    /// A generation can be revoked without its component: these settings, limits and grants.
    fn not_revoked(&self, to: &Digest) -> Result<(), SwapError> {
        let asked = |patch: &Arc<Patch>| patch.generation() == *to || patch.digest() == to;
        let generations = self.board.patches().into_iter().filter(asked).map(|patch| patch.generation());
        match generations.into_iter().find_map(|generation| self.gate.revoked(&generation)) {
            None => Ok(()),
            Some(why) => {
                let why = format!("PH714 revoked: {}", crate::base::text::clean(&why, 300));
                let next = "swap to a generation that is not revoked";
                Err(SwapError::new(SwapErrorKind::Forbidden, format!("swap to {to}"), why, next))
            }
        }
    }

    /// Tells what became of it.
    fn outcome(&self, mut telling: Telling, result: Result<SwapOutcome, LiveError>) -> Result<SwapOutcome, LiveError> {
        telling.fact("patch_set", || self.board.active().digest());
        telling.maybe("weight_version", || self.last.load().as_ref().map(|last| last.report.label.clone()));
        if let Ok(outcome) = &result {
            let (state, to) = match &outcome.requested {
                Requested::AlreadyActive { active } => ("already-active", *active),
                Requested::AlreadyPending { to } => ("already-pending", *to),
                Requested::Pending { to, .. } if outcome.landed.is_some() => ("landed", *to),
                Requested::Pending { to, .. } if outcome.reversed.is_some() => ("reversed", *to),
                Requested::Pending { to, .. } => ("pending", *to),
            };
            telling.fact("swap.state", || state);
            telling.fact("swap.to", || to);
            telling.maybe("swap.from", || match &outcome.requested {
                Requested::Pending { from, .. } => Some(*from),
                _ => None,
            });
            telling.maybe("reversed", || outcome.reversed.clone());
        }
        match &result {
            Ok(SwapOutcome { reversed: Some(why), .. }) => telling.ends(Some(why)),
            Ok(_) => telling.ends::<LiveError>(None),
            Err(error) => telling.ends(Some(error)),
        }
        result
    }

    fn settle(&self, requested: Requested, when: When, actor: &Actor) -> Result<SwapOutcome, LiveError> {
        let pending = matches!(requested, Requested::Pending { .. });
        let done = match (pending, when) {
            (true, When::Now) => self.refit_again(actor).inspect_err(|_| {
                // Who is refused now must not find it live after the next refit.
                self.cancel("it was asked for now, and the weights could not be loaded again", actor);
            })?,
            _ => None,
        };
        let (landed, reversed) = done.map(|done| (done.swap, done.reversed)).unwrap_or_default();
        Ok(SwapOutcome { requested, landed, reversed, active: self.board.active().digest() })
    }
}
