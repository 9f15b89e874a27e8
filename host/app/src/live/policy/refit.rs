//! One refit: through the set that the board says, with the policy for patches that fail, and the candidates that land
//! or take part.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::refit::{Begin, Progress, RefitReport, Source};
use serde::Serialize;
use serde_json::{Value, json};

use super::fallback::{Attempted, Job, Made};
use super::told::Telling;
use super::{LastRefit, Live, LiveError, Turn};
use crate::base::Digest;
use crate::patch::{Actor, Generation, Landing, Receipt, RefitAt, RefitPlan, RefitTarget};

/// What a refit did.
pub struct Refitted<W> {
    /// Number of the refit, from 1.
    pub refit: u64,
    /// The trainer's step, where it named one.
    pub step: Option<u64>,
    /// What was done.
    pub report: RefitReport,
    /// The same to be kept and compared: with digests of all tensors, where somebody asked for them.
    pub receipt: Receipt,
    /// The weights that are live now.
    pub weights: W,
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

impl<W> Refitted<W> {
    fn facts(&self, telling: &mut Telling) {
        let report = &self.report;
        telling.fact("patch_set", || self.patch_set);
        telling.fact("weight_version", || report.label.as_str());
        telling.fact("tensors.quantized", || report.quantized);
        telling.fact("tensors.kept", || report.kept);
        telling.fact("bytes.received", || report.bytes_before);
        telling.fact("bytes.published", || report.bytes_after);
        telling.fact("blocks_proved", || report.blocks_proved);
        telling.maybe("swap.from", || self.swap.map(|swap| swap.from));
        telling.maybe("swap.to", || self.swap.map(|swap| swap.to));
        telling.maybe("reversed", || self.reversed.clone());
        telling.maybe("degraded", || self.degraded.clone());
    }
}

/// A swap that landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Swapped {
    /// The set before.
    pub from: Digest,
    /// The set now.
    pub to: Digest,
}

/// What kind of refit it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    /// Shown to observers.
    Observed,
    /// Not shown to them: a first load, or one of what they accepted before.
    Unobserved,
}

/// What the board's sets made of a refit.
struct ThroughBoard<S> {
    plan: RefitPlan,
    made: Made<S>,
    reversed: Option<String>,
}

/// A refit that is proved and not yet live. Dropping it is giving it up: what serves serves on.
pub struct Prepared<'l, T: RefitTarget> {
    live: &'l Live<T>,
    turn: MutexGuard<'l, Turn>,
    source: Source,
    at: RefitAt,
    actor: Actor,
    proved: ThroughBoard<T::Staged<'l>>,
    telling: Telling,
}

impl<'l, T: RefitTarget> Prepared<'l, T> {
    /// The weights.
    pub fn staged(&self) -> &T::Staged<'l> {
        &self.proved.made.attempt.staged
    }

    /// What was done to make them.
    pub fn report(&self) -> &RefitReport {
        &self.proved.made.attempt.report
    }

    /// The set that made them, and the swap that lands with them.
    pub fn patches(&self) -> (Digest, Option<Swapped>) {
        let swap = self.landing().map(|landing| self.swapped(&landing.to));
        (self.proved.made.attempt.patch_set, swap)
    }

    /// Writes it down, and makes it live.
    pub fn commit(self) -> Result<Refitted<T::Weights>, LiveError> {
        let Self { live, mut turn, source, at, actor, proved, mut telling } = self;
        let now = &mut *turn;
        let result = live.pools.refit(|| live.publish(now, &source, at, &actor, proved));
        drop(turn);
        telling.step("publish");
        match result {
            Ok(refitted) => {
                refitted.facts(&mut telling);
                telling.ends::<LiveError>(None);
                if live.target.retains() {
                    live.source.store(Some(Arc::new(source)));
                }
                live.board.drain();
                Ok(refitted)
            }
            Err(error) => {
                telling.ends(Some(&error));
                live.refused(&source, at, &actor, &error);
                live.board.drain();
                Err(error)
            }
        }
    }

    /// Gives it up, and writes down why.
    pub fn abandon(self, why: &str) {
        let why = crate::base::text::clean(why, 1000);
        let fields = json!({ "refit": self.at.refit, "version": self.source.begin().version, "why": why });
        self.live.board.event("refit.abandoned", &self.actor, self.at.with_step(fields));
        self.telling.ends(Some(&why));
    }

    fn landing(&self) -> Option<&Landing> {
        self.proved.plan.landing.as_ref().filter(|_| self.proved.reversed.is_none())
    }

    fn swapped(&self, to: &Generation) -> Swapped {
        Swapped { from: self.proved.plan.active.digest(), to: to.digest() }
    }
}

impl<T: RefitTarget> Live<T> {
    /// The first load: the model as it is. Observers watch refits, not this.
    pub fn load(
        &self,
        checkpoint: Checkpoint,
        actor: &Actor,
        progress: Progress<'_>,
    ) -> Result<Refitted<T::Weights>, LiveError> {
        self.load_as(None, checkpoint, actor, progress)
    }

    /// The first load, with a name for the weights; none: the number of the publish.
    pub fn load_as(
        &self,
        version: Option<&str>,
        checkpoint: Checkpoint,
        actor: &Actor,
        progress: Progress<'_>,
    ) -> Result<Refitted<T::Weights>, LiveError> {
        let begin = Begin { version: version.map(str::to_string), ..Begin::default() };
        self.run(self.target.arrivals(begin).whole(checkpoint)?, Run::Unobserved, actor, progress)
    }

    /// One refit. Waits for another one that is under way. On an error the old weights serve on.
    pub fn refit(
        &self,
        checkpoint: Checkpoint,
        begin: Begin,
        actor: &Actor,
        progress: Progress<'_>,
    ) -> Result<Refitted<T::Weights>, LiveError> {
        self.arrived(self.target.arrivals(begin).whole(checkpoint)?, actor, progress)
    }

    /// The same with tensors that came in pieces.
    pub fn arrived(
        &self,
        source: Source,
        actor: &Actor,
        progress: Progress<'_>,
    ) -> Result<Refitted<T::Weights>, LiveError> {
        self.run(source, Run::Observed, actor, progress)
    }

    /// Loads the source of the last refit again, through what the board says now.
    pub(super) fn refit_again(&self, actor: &Actor) -> Result<Option<Refitted<T::Weights>>, LiveError> {
        let Some(source) = self.source.load_full() else { return Ok(None) };
        let version = self.last.load().as_ref().map(|last| last.report.label.clone());
        let version = version.or_else(|| source.begin().version.clone());
        self.run(source.renamed(version), Run::Unobserved, actor, &|_, _, _| {}).map(Some)
    }

    /// The first half of a refit: everything that can be refused is, and nothing that serves is touched. Until the result is
    /// committed or dropped, every other refit, and every swap and rollback `now`, waits.
    pub fn prepare(&self, source: Source, actor: &Actor, progress: Progress<'_>) -> Result<Prepared<'_, T>, LiveError> {
        self.prepare_run(source, Run::Observed, actor, progress)
    }

    fn run(
        &self,
        source: Source,
        run: Run,
        actor: &Actor,
        progress: Progress<'_>,
    ) -> Result<Refitted<T::Weights>, LiveError> {
        self.prepare_run(source, run, actor, progress)?.commit()
    }

    fn prepare_run(
        &self,
        source: Source,
        run: Run,
        actor: &Actor,
        progress: Progress<'_>,
    ) -> Result<Prepared<'_, T>, LiveError> {
        let mut telling = self.begins("refit", actor);
        let turn = self.turn();
        telling.step("wait");
        self.heed_revocations();
        let at = RefitAt { refit: turn.refits + 1, step: source.begin().step };
        // In the turn: nothing is published between what is held now and this.
        let source = match self.completed(&source) {
            Ok(whole) => whole.unwrap_or(source),
            Err(error) => {
                telling.ends(Some(&error));
                self.refused(&source, at, actor, &error);
                drop(turn);
                self.board.drain();
                return Err(error);
            }
        };
        telling.fact("refit", || at.refit);
        telling.maybe("step", || at.step);
        telling.fact("tensors.received", || source.checkpoint().tensors().count());
        let job = Job { target: &self.target, board: &self.board, source: &source, at, run, progress };
        let proved = self.pools.refit(|| self.through_board(&job));
        telling.step("prove");
        match proved {
            Ok(proved) => Ok(Prepared { live: self, turn, source, at, actor: actor.clone(), proved, telling }),
            Err(error) => {
                telling.maybe("weight_version", || source.begin().version.clone());
                telling.fact("patch_set", || self.board.active().digest());
                telling.ends(Some(&error));
                self.refused(&source, at, actor, &error);
                drop(turn);
                self.board.drain();
                Err(error)
            }
        }
    }

    /// All tensors of a partial update, with those that stay; none where all of them came.
    fn completed(&self, source: &Source) -> Result<Option<Source>, LiveError> {
        if !source.begin().is_partial() {
            return Ok(None);
        }
        let Some(held) = self.source.load_full() else {
            return Err(RuntimeError::Refit(Refusal::new(
                "a partial update",
                "there are no tensors that could stay: none were loaded yet, or they are not kept here",
                "send all tensors",
            ))
            .into());
        };
        Ok(Some(self.target.over(&held, source)?))
    }

    fn refused(&self, source: &Source, at: RefitAt, actor: &Actor, error: &LiveError) {
        let why = crate::base::text::clean(&error.to_string().replace('\n', " "), 1000);
        let fields = json!({ "refit": at.refit, "version": source.begin().version, "why": why });
        self.board.event("refit.refused", actor, at.with_step(fields));
    }

    fn through_board<'t>(&'t self, job: &Job<'t, '_, T>) -> Result<ThroughBoard<T::Staged<'t>>, LiveError> {
        let at = job.at;
        // Before anybody is asked: what was promised and did not come is no patch's fault.
        job.source.check()?;
        let plan = self.board.plan(at);
        let mut reversed = None;
        let mut landed = None;
        if let Some(landing) = &plan.landing {
            match self.hand_over(&plan.active, landing).and_then(|()| job.attempt(&landing.to, None)) {
                Ok(made) => landed = Some(made),
                Err(error) => reversed = Some(error.to_string()),
            }
        }
        let made = match landed {
            Some(attempt) => Made { attempt, generation: plan.landing_or_active(), degraded: None },
            // Where the active set cannot load these weights either, they are at fault and not the candidate.
            None => job.with_policy(&plan)?,
        };
        if let (Some(landing), Some(why)) = (&plan.landing, &reversed) {
            self.board.reverse(&landing.to.digest(), at, why);
        }
        Ok(ThroughBoard { plan, made, reversed })
    }

    /// The second half of a refit: it is written down, and then live.
    fn publish(
        &self,
        turn: &mut Turn,
        source: &Source,
        at: RefitAt,
        actor: &Actor,
        proved: ThroughBoard<T::Staged<'_>>,
    ) -> Result<Refitted<T::Weights>, LiveError> {
        let ThroughBoard { plan, made, reversed } = proved;
        let Made { attempt, generation, degraded } = made;
        let Attempted { staged, label, report, sha256, digests, patch_set } = attempt;
        let receipt = Receipt::of(at, &report, patch_set, source, digests);
        let (refit, step, degraded_by) = (at.refit, at.step, degraded.clone());
        let last = LastRefit { refit, step, patch_set, degraded: degraded_by, report, receipt: receipt.summary() };
        // Before anything is live: a refit that cannot be written down is refused.
        let landing = plan.landing.as_ref().filter(|_| reversed.is_none());
        let (fields, seen) = self.record_of(turn, at, &last, sha256, &generation);
        self.board.publishes(landing, at, &label, fields, actor)?;
        turn.calls = seen;
        let swap = landing.map(|landing| Swapped { from: plan.active.digest(), to: landing.to.digest() });
        if swap.is_some() || plan.beside.is_none() {
            self.target.canary_ends();
        }
        let weights = self.target.publish(staged)?;
        turn.refits = at.refit;
        turn.step = at.step.or(turn.step);
        let report = last.report.clone();
        self.last.store(Some(Arc::new(last)));
        if let Some(beside) = &plan.beside {
            self.beside(&plan, beside, source, at, &label);
        }
        Ok(Refitted { refit, step, report, receipt, weights, patch_set, generation, swap, reversed, degraded })
    }

    /// The record of a refit, with how often each patch was called for it; and the counts that the next one goes by.
    fn record_of(
        &self,
        turn: &Turn,
        at: RefitAt,
        LastRefit { patch_set, degraded, report, receipt, .. }: &LastRefit,
        sha256: Option<String>,
        generation: &Generation,
    ) -> (Value, BTreeMap<Digest, (u64, u64)>) {
        let mut calls = Vec::new();
        let mut seen = BTreeMap::new();
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
        let mut fields = json!({
            "refit": at.refit, "version": report.label, "patch_set": patch_set, "degraded": degraded,
            "quantized": report.quantized, "kept": report.kept, "saturated": report.saturated,
            "flushed": report.flushed, "non_finite": report.non_finite, "placed_elsewhere": report.placed_elsewhere,
            "remarks": report.remarks, "observers": report.observers, "weights_sha256": sha256, "calls": calls,
            "receipt": receipt,
        });
        if let Some(stayed) = &report.stayed {
            fields["stayed"] = json!(**stayed);
        }
        // A trainer that was started again from an earlier checkpoint.
        if let (Some(step), Some(before)) = (at.step, turn.step)
            && step < before
        {
            fields["step_before"] = json!(before);
        }
        (fields, seen)
    }
}
