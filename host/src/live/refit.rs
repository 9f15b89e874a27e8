//! One refit: through the set that the board says, with the policy for patches that fail, and the candidates that land
//! or take part.

use std::sync::Arc;

use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::error::RuntimeError;
use patchhost_runtime::hooks::HookCause;
use patchhost_runtime::refit::{Begin, Progress, RefitHooks, RefitReport, Source, StagedRefit};
use patchhost_runtime::weights::WeightSet;
use serde::Serialize;
use serde_json::json;

use super::canary::{CanaryUnit, Mixed};
use super::guard::Guarded;
use super::model::{LastRefit, Turn};
use super::{LiveError, LiveModel};
use crate::base::{Digest, Hook};
use crate::patch::{Actor, Beside, Failure, Generation, Landing, Mode, OnFailure, RefitPlan, has_native};

/// Fallbacks within one refit at most: each patch of a set can fail once.
const MOST_FALLBACKS: usize = 8;

/// What a refit did.
pub struct Refitted {
    /// Number of the refit, from 1.
    pub refit: u64,
    /// What was done.
    pub report: RefitReport,
    /// The weights that are live now.
    pub weights: Arc<WeightSet>,
    /// The set that made them.
    pub patch_set: Digest,
    /// Its patches. A canary's mixed weights have a digest of their own; then this is the set of the greater part.
    pub generation: Arc<Generation>,
    /// The swap that landed with it.
    pub swap: Option<Swapped>,
    /// Why a candidate did not land that should have.
    pub reversed: Option<String>,
    /// Why another set than the active one made them, or a part of them.
    pub degraded: Option<String>,
}

/// A swap that landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Swapped {
    /// The set before.
    pub from: Digest,
    /// The set now.
    pub to: Digest,
}

/// Weights that could be published, and who made them.
struct Made<'e> {
    staged: StagedRefit<'e>,
    generation: Arc<Generation>,
    degraded: Option<String>,
}

impl LiveModel {
    /// The first load: the model as it is. Observers watch refits, not this.
    pub fn load(&self, checkpoint: Checkpoint, actor: &Actor, progress: Progress<'_>) -> Result<Refitted, LiveError> {
        self.load_as(None, checkpoint, actor, progress)
    }

    /// The first load, with a name for the weights; none: the number of the publish.
    pub fn load_as(
        &self,
        version: Option<&str>,
        checkpoint: Checkpoint,
        actor: &Actor,
        progress: Progress<'_>,
    ) -> Result<Refitted, LiveError> {
        let begin = Begin { version: version.map(str::to_string), ..Begin::default() };
        self.run(self.engine.arrivals(begin).whole(checkpoint)?, Run { unobserved: true }, actor, progress)
    }

    /// One refit. Waits for another one that is under way. On an error the old weights serve on.
    pub fn refit(
        &self,
        checkpoint: Checkpoint,
        begin: Begin,
        actor: &Actor,
        progress: Progress<'_>,
    ) -> Result<Refitted, LiveError> {
        self.arrived(self.engine.arrivals(begin).whole(checkpoint)?, actor, progress)
    }

    /// The same with tensors that came in pieces.
    pub(super) fn arrived(&self, source: Source, actor: &Actor, progress: Progress<'_>) -> Result<Refitted, LiveError> {
        self.run(source, Run { unobserved: false }, actor, progress)
    }

    /// Loads the source of the last refit again, through what the board says now.
    pub(super) fn refit_again(&self, actor: &Actor) -> Result<Option<Refitted>, LiveError> {
        let Some(source) = self.source.load_full() else { return Ok(None) };
        let version = self.engine.live().ok().map(|w| w.label().to_string()).or(source.begin().version.clone());
        self.run(source.renamed(version), Run { unobserved: true }, actor, &|_, _, _| {}).map(Some)
    }

    fn run(&self, source: Source, run: Run, actor: &Actor, progress: Progress<'_>) -> Result<Refitted, LiveError> {
        let mut guard = self.turn();
        self.heed_revocations();
        let turn = &mut *guard;
        let refit = turn.refits + 1;
        let result = self.pools.refit(|| self.through_board(turn, refit, &source, run, actor, progress));
        match &result {
            Ok(_) => {
                guard.refits = refit;
                self.source.store(Some(Arc::new(source)));
            }
            Err(error) => {
                let why = crate::base::text::clean(&error.to_string().replace('\n', " "), 1000);
                let fields = json!({ "refit": refit, "version": source.begin().version, "why": why });
                self.board.event("refit.refused", actor, fields);
            }
        }
        drop(guard);
        self.board.drain();
        result
    }

    fn through_board(
        &self,
        turn: &mut Turn,
        refit: u64,
        source: &Source,
        run: Run,
        actor: &Actor,
        progress: Progress<'_>,
    ) -> Result<Refitted, LiveError> {
        let plan = self.board.plan(refit);
        let job = Job { live: self, source, run, progress };
        let mut reversed = None;
        let mut landed = None;
        if let Some(landing) = &plan.landing {
            match self.hand_over(&plan.active, landing).and_then(|()| job.attempt(&landing.to, None)) {
                Ok(staged) => landed = Some(Made { staged, generation: landing.to.clone(), degraded: None }),
                Err(error) => reversed = Some(error.to_string()),
            }
        }
        let made = match landed {
            Some(made) => made,
            // Where the active set cannot load these weights either, they are at fault and not the candidate.
            None => job.with_policy(&plan)?,
        };
        let label = made.staged.report().label.clone();
        let swap = match (&plan.landing, &reversed) {
            (Some(landing), None) => {
                let from = plan.active.digest();
                self.board.land(landing, refit, &label)?;
                self.canary.store(None);
                Some(Swapped { from, to: landing.to.digest() })
            }
            (Some(landing), Some(why)) => {
                self.board.reverse(&landing.to.digest(), refit, why);
                None
            }
            _ => None,
        };
        let Made { staged, generation, degraded } = made;
        let patch_set = staged.weights().patches().parse().unwrap_or_else(|_| generation.digest());
        let report = staged.publish();
        let weights = self.engine.live()?;
        if plan.beside.is_none() {
            self.canary.store(None);
        }
        self.write_down(turn, refit, &report, &weights, (patch_set, &generation), degraded.as_deref(), actor);
        let last = LastRefit { refit, patch_set, degraded: degraded.clone(), report: report.clone() };
        self.last.store(Some(Arc::new(last)));
        if let Some(beside) = &plan.beside {
            self.beside(&plan, beside, source, refit, &label);
        }
        Ok(Refitted { refit, report, weights, patch_set, generation, swap, reversed, degraded })
    }

    /// The record of a refit, with how often each patch was called for it.
    fn write_down(
        &self,
        turn: &mut Turn,
        refit: u64,
        report: &RefitReport,
        weights: &WeightSet,
        (patch_set, generation): (Digest, &Generation),
        degraded: Option<&str>,
        actor: &Actor,
    ) {
        let mut calls = Vec::new();
        let mut seen = std::collections::BTreeMap::new();
        for patch in generation.set().patches() {
            let stats = patch.stats();
            let now = (stats.hook_calls(), stats.functions.values().map(|f| f.fuel_total).sum::<u64>());
            let (calls_before, fuel_before) = turn.calls.get(&patch.generation()).copied().unwrap_or_default();
            calls.push(json!({
                "name": patch.info().name, "sha256": patch.digest(),
                "calls": now.0.saturating_sub(calls_before), "fuel": now.1.saturating_sub(fuel_before),
            }));
            seen.insert(patch.generation(), now);
        }
        turn.calls = seen;
        let digest = self.options.hash_weights.then(|| weights.digest(self.engine.registry()));
        let fields = json!({
            "refit": refit, "version": report.label, "patch_set": patch_set, "degraded": degraded,
            "quantized": report.quantized, "kept": report.kept, "saturated": report.saturated,
            "flushed": report.flushed, "observers": report.observers, "weights_sha256": digest, "calls": calls,
        });
        self.board.event("refit", actor, fields);
    }

    /// State goes from the patches that leave to those that take their place. Giving is best effort; a patch that does
    /// not take what it is given does not land. A set that was active before has its own state still.
    fn hand_over(&self, active: &Generation, landing: &Landing) -> Result<(), LiveError> {
        if landing.rollback {
            return Ok(());
        }
        for patch in landing.to.set().patches() {
            let same = |old: &&Arc<crate::patch::Patch>| old.generation() == patch.generation();
            if !patch.has_state() || active.set().patches().iter().any(|old| same(&old)) {
                continue;
            }
            let Some(old) = active.set().patches().iter().find(|old| old.info().name == patch.info().name) else {
                continue;
            };
            match old.export_state() {
                Ok(Some(state)) => patch.import_state(state).map_err(RuntimeError::from)?,
                Ok(None) => {}
                Err(error) => {
                    let why = crate::base::text::clean(&error.to_string().replace('\n', " "), 600);
                    let fields = json!({ "name": old.info().name, "sha256": old.digest(), "why": why });
                    self.board.event("state.lost", &landing.by, fields);
                }
            }
        }
        Ok(())
    }

    /// Hooks of a generation, with the guard for what happens between refits.
    pub(super) fn hooks(&self, generation: &Generation) -> RefitHooks {
        let mut hooks = generation.hooks(self.options.hooks);
        let claimed = generation.set().claims(Hook::BlockQuant);
        if let (Some(inner), Some(patch), false) = (&hooks.quant, claimed, generation.is_native(Hook::BlockQuant)) {
            hooks.quant = Some(Arc::new(Guarded {
                inner: inner.clone(),
                board: self.board.clone(),
                component: *patch.digest(),
                settings: patch.settings().to_vec(),
            }));
        }
        hooks
    }
}

/// What kind of refit it is.
#[derive(Clone, Copy)]
struct Run {
    /// Not shown to observers: a first load, or one of what they accepted before.
    unobserved: bool,
}

/// A refit with everything it needs; can be attempted through several generations.
struct Job<'a> {
    live: &'a LiveModel,
    source: &'a Source,
    run: Run,
    progress: Progress<'a>,
}

impl<'a> Job<'a> {
    /// One whole attempt. Dropping what it gives aborts it.
    fn attempt(&self, generation: &Generation, mixed: Option<(&Generation, u8)>) -> Result<StagedRefit<'a>, LiveError> {
        let mut hooks = self.live.hooks(generation);
        if self.run.unobserved {
            hooks.observers.clear();
        }
        if let Some((candidate, percent)) = mixed
            && let (Some(live), Some(quant)) = (&hooks.quant, self.live.hooks(candidate).quant)
        {
            let (live, to) = (live.clone(), candidate.digest());
            hooks.quant = Some(Arc::new(Mixed { live, candidate: quant, to, percent }));
            hooks.origin.patches = Mixed::digest(&generation.digest(), &to, percent).to_string();
        }
        Ok(self.live.engine.prepare(self.source, &hooks, self.progress)?)
    }

    /// Through the active set; where a patch of it fails, through what the policy says.
    fn with_policy(&self, plan: &RefitPlan) -> Result<Made<'a>, LiveError> {
        let board = &self.live.board;
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
            && self.live.options.canary == CanaryUnit::Tensor
            && degraded.is_none()
        {
            match self.attempt(&generation, Some((to, *percent))) {
                Ok(staged) => return Ok(Made { staged, generation, degraded }),
                Err(error) => board.reverse(&to.digest(), self.live_refit(), &error.to_string()),
            }
        }
        for _ in 0..MOST_FALLBACKS {
            let error = match self.attempt(&generation, None) {
                Ok(staged) => {
                    if degraded.is_none() {
                        generation.set().patches().iter().for_each(|p| board.recovered(p.digest()));
                    }
                    return Ok(Made { staged, generation, degraded });
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
        Err(LiveError::Runtime(RuntimeError::Refit(patchhost_runtime::error::Refusal::new(
            "this refit",
            format!("patches failed {MOST_FALLBACKS} times in it"),
            "look at `patchhost log show`; roll back to a set that works",
        ))))
    }

    fn live_refit(&self) -> u64 {
        self.live.engine.version() + 1
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
            LiveError::Runtime(RuntimeError::Refit(patchhost_runtime::error::Refusal::new(
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
        self.live.board.event("patch.fallback", &Actor::policy(), fields);
        tracing::warn!(why, policy = ?on_failure, "a refit falls back");
        Ok(next)
    }

    fn usable(&self, generation: &Generation) -> bool {
        generation.set().patches().iter().all(|p| self.live.board.quarantined(p.digest()).is_none())
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
