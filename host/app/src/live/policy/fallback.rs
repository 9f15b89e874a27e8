//! Attempts at a refit through several generations: what happens when a patch of the active set fails, or may not be asked.

use std::sync::Arc;

use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::hooks::HookCause;
use patchhost_runtime::refit::{Progress, RefitReport, Source};
use serde_json::json;

use super::LiveError;
use super::refit::Run;
use crate::base::{Digest, Hook};
use crate::patch::{
    Actor, Attempt, Beside, Board, CanaryUnit, Digests, Failure, Generation, Mode, OnFailure, Proved, RefitAt,
    RefitPlan, RefitTarget, has_native,
};

/// Fallbacks within one refit at most: each patch of a set can fail once.
const MOST_FALLBACKS: usize = 8;

/// A refit with everything it needs; can be attempted through several generations.
pub(super) struct Job<'t, 'a, T> {
    pub(super) target: &'t T,
    pub(super) board: &'a Board,
    pub(super) source: &'a Source,
    pub(super) at: RefitAt,
    pub(super) run: Run,
    pub(super) progress: Progress<'a>,
}

/// Weights that could be published. Dropping them ends the attempt.
pub(super) struct Attempted<S> {
    pub(super) staged: S,
    pub(super) label: String,
    pub(super) report: RefitReport,
    pub(super) sha256: Option<String>,
    pub(super) digests: Option<Digests>,
    pub(super) patch_set: Digest,
}

/// Weights that could be published, and who made them.
pub(super) struct Made<S> {
    pub(super) attempt: Attempted<S>,
    pub(super) generation: Arc<Generation>,
    pub(super) degraded: Option<String>,
}

impl<'t, T: RefitTarget> Job<'t, '_, T> {
    /// One whole attempt.
    pub(super) fn attempt(
        &self,
        generation: &Generation,
        mixed: Option<(&Generation, u8)>,
    ) -> Result<Attempted<T::Staged<'t>>, LiveError> {
        let observed = self.run == Run::Observed;
        let attempt = Attempt { generation, mixed, observed, progress: self.progress };
        let Proved { label, report, sha256, digests, staged } = self.target.attempt(self.source, &attempt)?;
        Ok(Attempted { staged, label, report, sha256, digests, patch_set: attempt.patch_set() })
    }

    /// Through the active set; where a patch of it fails, through what the policy says.
    pub(super) fn with_policy(&self, plan: &RefitPlan) -> Result<Made<T::Staged<'t>>, LiveError> {
        let board = self.board;
        let mut generation = plan.active.clone();
        let mut degraded: Option<String> = None;
        for patch in plan.active.set().patches() {
            for hook in patch.hooks().iter().copied().filter(|hook| !matches!(hook, Hook::BlockQuantRows | Hook::Lora))
            {
                let Some(why) = board.left_alone(patch.digest(), hook) else { continue };
                let name = &patch.info().name;
                let why = format!("patch `{name}` is not asked: {why}");
                generation = self.instead(&generation, plan, hook, &why, board.rules().on_failure(hook))?;
                degraded = Some(why);
            }
        }
        if let Some(Beside { to, mode: Mode::Canary(percent) }) = &plan.beside
            && self.target.canary() == Some(CanaryUnit::Tensor)
            && degraded.is_none()
        {
            match self.attempt(&generation, Some((to, *percent))) {
                Ok(attempt) => return Ok(Made { attempt, generation, degraded }),
                Err(error) => board.reverse(&to.digest(), self.at, &error.to_string()),
            }
        }
        for _ in 0..MOST_FALLBACKS {
            let error = match self.attempt(&generation, None) {
                Ok(attempt) => {
                    if degraded.is_none() {
                        generation.set().patches().iter().for_each(|p| board.recovered(p.digest()));
                    }
                    return Ok(Made { attempt, generation, degraded });
                }
                Err(error) => error,
            };
            let Some(failure) = blame(&generation, &error) else { return Err(error) };
            let reaction = board.failed(&failure);
            if reaction.on_failure == OnFailure::Closed {
                return Err(error);
            }
            let why = format!("patch `{}` failed in {}: {}", failure.patch, failure.hook, failure.why);
            // Where there is nothing to fall back to, the failure itself says more.
            let Ok(next) = self.instead(&generation, plan, failure.hook, &why, reaction.on_failure) else {
                return Err(error);
            };
            generation = next;
            degraded = Some(why);
        }
        Err(LiveError::Runtime(RuntimeError::Refit(Refusal::new(
            "this refit",
            format!("patches failed {MOST_FALLBACKS} times in it"),
            "look at `patchhost log show`; roll back to a set that works",
        ))))
    }

    /// The generation that answers instead, written to the ledger.
    fn instead(
        &self,
        generation: &Arc<Generation>,
        plan: &RefitPlan,
        hook: Hook,
        why: &str,
        on_failure: OnFailure,
    ) -> Result<Arc<Generation>, LiveError> {
        let nothing = |what: &str| {
            LiveError::Runtime(RuntimeError::Refit(Refusal::new(
                "this refit",
                format!("{why}; and {what}"),
                "roll back, swap to a patch that works, or lift the quarantine; the old weights keep serving",
            )))
        };
        let next = match on_failure {
            OnFailure::Closed => return Err(nothing("its failure policy is `closed`")),
            OnFailure::Native if has_native(hook) && !generation.is_native(hook) => generation.with_native(hook),
            OnFailure::Native => return Err(nothing("the host has no code of its own for this hook")),
            OnFailure::LastGood => match &plan.before {
                Some(before) if before.digest() != generation.digest() && self.usable(before) => before.clone(),
                _ => return Err(nothing("there is no earlier set to go to")),
            },
        };
        let fields = json!({
            "hook": hook, "why": crate::base::text::clean(why, 600), "policy": on_failure,
            "from": generation.digest(), "to": next.digest(),
        });
        self.board.event("patch.fallback", &Actor::policy(), fields);
        tracing::warn!(%why, policy = %on_failure, "a refit falls back");
        Ok(next)
    }

    fn usable(&self, generation: &Generation) -> bool {
        generation.set().patches().iter().all(|p| self.board.quarantined(p.digest()).is_none())
    }
}

/// The patch of the set whose fault an error is, if it is one's. A patch that says no (to weights with NaN, to a model)
/// works: that is an answer, not a failure.
fn blame(generation: &Generation, error: &LiveError) -> Option<Failure> {
    let LiveError::Runtime(error) = error else { return None };
    let patches = generation.set().patches();
    match error {
        RuntimeError::Hook(e) if e.cause != HookCause::Refused => {
            let patch = patches.iter().find(|p| p.info().name == e.patch)?;
            let hook = Hook::of_call(&e.call).or(patch.hooks().first().copied())?;
            let why = crate::base::text::clean(&format!("{}: {}", e.call, e.why), 600);
            Some(Failure { patch: e.patch.clone(), sha256: *patch.digest(), hook, cause: e.cause, why })
        }
        RuntimeError::Contract(refusal) => {
            let patch =
                generation.set().claims(Hook::BlockQuant).filter(|_| !generation.is_native(Hook::BlockQuant))?;
            Some(Failure {
                patch: patch.info().name.clone(),
                sha256: *patch.digest(),
                hook: Hook::BlockQuant,
                cause: HookCause::BadOutput,
                why: crate::base::text::clean(&format!("{}: {}", refusal.what, refusal.why), 600),
            })
        }
        _ => None,
    }
}
