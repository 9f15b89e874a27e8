//! Weights that are complete and proved, and not yet live. Dropping them leaves what serves as it is.

use super::arrivals::Source;
use super::declared::Declared;
use super::turn::TurnGuard;
use super::watch::watch;
use super::{Planned, Progress, RefitHooks, RefitReport};
use crate::checkpoint::Checkpoint;
use crate::engine::Engine;
use crate::error::{Refusal, Result, RuntimeError};
use crate::weights::WeightSet;

/// One attempt at a refit that went well.
pub struct StagedRefit<'e> {
    engine: &'e Engine,
    _turn: TurnGuard<'e>,
    checkpoint: Checkpoint,
    hooks: RefitHooks,
    set: WeightSet,
    report: RefitReport,
    /// What the model is declared in if this is its first load.
    declares: Declared,
}

impl<'e> StagedRefit<'e> {
    /// Observers, manifest, coverage, quantization and layout, in this order.
    pub(crate) fn new(
        engine: &'e Engine,
        turn: TurnGuard<'e>,
        source: &Source,
        hooks: &RefitHooks,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let begin = source.begin();
        let label = begin.version.clone().unwrap_or_else(|| (engine.version() + 1).to_string());
        let mut watches = watch(&hooks.observers, &label, source.expected().as_deref())?;
        source.check()?;
        let observers = watches.show(source)?;
        let checkpoint = engine.readable(source.checkpoint())?;
        let planned = Planned::new(engine.setup(), &checkpoint, hooks)?.keeping(source.stayed());
        if !engine.allows_narrowing(begin) {
            planned.refuse_narrowed()?;
        }
        let declares = planned.declares(engine.of_config());
        let (set, mut report) = planned.stage(engine.version() + 1, &label, hooks, progress)?;
        report.observers = observers;
        report.notes.extend(source.notes().iter().cloned());
        Ok(Self { engine, _turn: turn, checkpoint, hooks: hooks.clone(), set, report, declares })
    }

    /// The weights, for a look before they are live.
    pub fn weights(&self) -> &WeightSet {
        &self.set
    }

    /// What was done.
    pub fn report(&self) -> &RefitReport {
        &self.report
    }

    /// Loads the same tensors a second time, apart from everything, and compares every bit and the layout.
    pub fn verify(&self) -> Result<()> {
        let planned = Planned::new(self.engine.setup(), &self.checkpoint, &self.hooks)?;
        let (fresh, _) = planned.stage(self.report.version, &self.report.label, &self.hooks, &|_, _, _| {})?;
        match self.set.first_difference(&fresh) {
            None => Ok(()),
            Some((param, part)) => {
                let decl = &self.engine.registry().params()[param];
                Err(RuntimeError::Refit(Refusal::new(
                    format!("{} of `{}`", decl.part_label(part), decl.name),
                    "a fresh load of the same tensors gives other bits: a patch does not answer the same twice",
                    "do not use that patch; the old weights keep serving",
                )))
            }
        }
    }

    /// Makes the weights live, by one pointer exchange. Caches that the old ones made are refused from now on.
    pub fn publish(self) -> RefitReport {
        self.engine.publish(self.set, &self.report, self.declares);
        self.report
    }
}
