//! The embedded engine as a target of refits.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use patchhost_runtime::engine::Engine;
use patchhost_runtime::error::RuntimeError;
use patchhost_runtime::refit::{Arrivals, Begin, RefitHooks, Source, StagedRefit};
use patchhost_runtime::weights::{ParamDigest, WeightSet};

use super::guard::Guarded;
use super::shadow::{ShadowReport, Side};
use crate::base::{Digest, Hook};
use crate::compare::CompareError;
use crate::patch::{
    Attempt, Board, CanaryUnit, Compared, Description, Digests, Generation, Handed, HookOptions, NotADigest, Patch,
    Proved, RefitTarget, ShadowPolicy, TargetError, Verdict,
};

/// An engine of this process: weights are staged beside those that serve, and published by one pointer exchange.
pub struct Embedded {
    pub(super) engine: Arc<Engine>,
    /// For what a patch does between refits: activation scales in a forward pass.
    pub(super) board: Arc<Board>,
    pub(super) hooks: HookOptions,
    pub(super) canary_unit: CanaryUnit,
    pub(super) reports: Option<PathBuf>,
    pub(super) hash_weights: bool,
    pub(super) canary: ArcSwapOption<CanaryWeights>,
    pub(super) shadow: ArcSwapOption<ShadowReport>,
}

/// Weights of a candidate, for some of the requests.
pub(super) struct CanaryWeights {
    pub(super) percent: u8,
    pub(super) to: Digest,
    pub(super) weights: Arc<WeightSet>,
}

impl Embedded {
    /// Hooks of a generation, with the guard for what happens between refits.
    pub(super) fn hooks(&self, generation: &Generation) -> RefitHooks {
        let mut hooks = generation.hooks(self.hooks);
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

impl RefitTarget for Embedded {
    type Staged<'t> = StagedRefit<'t>;
    type Weights = Arc<WeightSet>;
    type Seen = Side;

    fn describe(&self) -> Description {
        Description::patchhost(&self.engine.info().architecture)
    }

    fn arrivals(&self, begin: Begin) -> Arrivals {
        self.engine.arrivals(begin)
    }

    fn over(&self, held: &Source, part: &Source) -> Result<Source, RuntimeError> {
        self.engine.over(held.checkpoint(), part)
    }

    fn attempt<'t>(&'t self, source: &Source, attempt: &Attempt<'_>) -> Result<Proved<StagedRefit<'t>>, RuntimeError> {
        let hooks = attempt.hooks(|generation| self.hooks(generation));
        let staged = self.engine.prepare(source, &hooks, attempt.progress)?;
        let report = staged.report().clone();
        let Some(made) = self.hash_weights.then(|| staged.weights().digests(self.engine.registry())) else {
            return Ok(Proved { label: report.label.clone(), report, sha256: None, digests: None, staged });
        };
        // For the receipt, which takes the digests of what came where they are there.
        source.sums()?;
        let held: Vec<Handed> = made.iter().map(handed).collect::<Result<_, _>>()?;
        let digests = Some(Digests::of_engine(&held));
        let sha256 = Some(WeightSet::digest_of(&made));
        Ok(Proved { label: report.label.clone(), report, sha256, digests, staged })
    }

    fn publish(&self, staged: StagedRefit<'_>) -> Result<Arc<WeightSet>, RuntimeError> {
        staged.publish();
        self.engine.live()
    }

    fn probe(&self, source: &Source, trial: &Generation, patch: &Arc<Patch>) -> Result<Vec<String>, TargetError> {
        self.probe_on_model(source, trial, patch)
    }

    fn compare(
        &self,
        source: &Source,
        active: &Generation,
        candidate: &Generation,
        rules: &ShadowPolicy,
    ) -> Compared<Side> {
        self.compare_with(source, active, candidate, rules)
    }

    fn judged(&self, verdict: &Verdict, seen: Side) -> Option<String> {
        self.keep(verdict, seen)
    }

    fn canary(&self) -> Option<CanaryUnit> {
        Some(self.canary_unit)
    }

    fn canary_ends(&self) {
        self.canary.store(None);
    }
}

/// A tensor as it lies in the engine's memory.
fn handed(of: &ParamDigest) -> Result<Handed, RuntimeError> {
    Ok(Handed {
        name: of.name.clone(),
        dtype: format!("{:?}", of.dtype),
        shape: of.shape.iter().map(|d| *d as u64).collect(),
        sha256: of.sha256_runtime.parse().map_err(|e: NotADigest| RuntimeError::Internal(e.to_string()))?,
    })
}

impl From<CompareError> for TargetError {
    fn from(error: CompareError) -> Self {
        match error {
            CompareError::Runtime(error) => TargetError::Runtime(error),
            CompareError::Usage(refusal) | CompareError::Refused(refusal) => TargetError::Refused(refusal),
        }
    }
}
