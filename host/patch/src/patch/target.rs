//! What a refit changes. Everything that is decided about patches (which set makes the weights, what happens when one
//! fails, whether a candidate may stay) is decided once, over this trait; what weights are and how they become live is the
//! target's own business. The embedded engine is one target; an engine of somebody else can be another.

use std::sync::Arc;

use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::refit::{Arrivals, Begin, Progress, RefitHooks, RefitReport, Source};
use serde::Serialize;

use super::mixed::Mixed;
use super::{Description, Digests, Generation, Mode, Patch, ShadowPolicy};
use crate::base::{Digest, Hook};

/// Something with weights that refits replace. One refit at a time comes to it.
pub trait RefitTarget: Send + Sync {
    /// Weights that one attempt made: complete and proved, and not yet live. Dropping them leaves what serves as it is.
    type Staged<'t>: Send
    where
        Self: 't;
    /// A handle on the weights that serve after a publish.
    type Weights: Send;
    /// What a comparison saw beyond its findings: for reports, and the candidate's weights for a canary.
    type Seen;

    /// What patches are applied to here.
    fn describe(&self) -> Description;

    /// An empty place for the tensors of a refit, with the most bytes that may come.
    fn arrivals(&self, begin: Begin) -> Arrivals {
        Arrivals::new(begin, usize::MAX)
    }

    /// All tensors after a partial update: those that came, and those of the last refit that stay.
    fn over(&self, held: &Source, part: &Source) -> Result<Source, RuntimeError> {
        part.over(held.checkpoint(), None)
    }

    /// Makes weights of `source` through the hooks of one generation, and proves them; touches nothing that serves. It can
    /// be asked again with other patches. An error of a patch must come as that patch gave it: the failure policy reads it.
    fn attempt<'t>(&'t self, source: &Source, attempt: &Attempt<'_>) -> Result<Proved<Self::Staged<'t>>, RuntimeError>;

    /// Makes them live, and gives a handle on them. The board and its ledger say so already: what can fail belongs into the
    /// attempt.
    fn publish(&self, staged: Self::Staged<'_>) -> Result<Self::Weights, RuntimeError>;

    /// Asks a candidate what a refit would ask, with the tensors of the last one, and keeps nothing. Gives what somebody
    /// should know of its answers.
    fn probe(&self, source: &Source, trial: &Generation, patch: &Arc<Patch>) -> Result<Vec<String>, TargetError> {
        let _ = patch;
        let attempt = Attempt { generation: trial, mixed: None, observed: false, progress: &|_, _, _| {} };
        Ok(self.attempt(source, &attempt)?.report.remarks)
    }

    /// Makes weights of the same source through a candidate, apart from everything, and compares them with those that were
    /// just published through `active`. What the rules do not allow is a finding; an error of the candidate is one too.
    fn compare(
        &self,
        source: &Source,
        active: &Generation,
        candidate: &Generation,
        rules: &ShadowPolicy,
    ) -> Compared<Self::Seen>;

    /// The verdict on a comparison is known: here reports are kept, and the candidate's weights taken for a canary, or those
    /// of an earlier one let go. Gives the file of the report, where one was written.
    fn judged(&self, verdict: &Verdict, seen: Self::Seen) -> Option<String>;

    /// Whether the tensors of a refit are kept until the next one: for swaps `now`, and to probe candidates with. Not where
    /// they lie in memory that somebody else writes to.
    fn retains(&self) -> bool {
        true
    }

    /// What a canary divides here; none: this target has no canary, and asking for one is refused.
    fn canary(&self) -> Option<CanaryUnit> {
        None
    }

    /// From now on nobody gets the candidate's weights.
    fn canary_ends(&self) {}
}

/// What is divided between the live set and the candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CanaryUnit {
    /// Requests: both sets have weights of their own, and every answer is wholly of one.
    #[default]
    Request,
    /// Tensors of a refit: one set of weights, whose identity says that it is mixed. For block-quant candidates only.
    Tensor,
}

/// One attempt at a refit.
pub struct Attempt<'a> {
    /// Whose hooks answer.
    pub generation: &'a Generation,
    /// A candidate that quantizes so many percent of the tensors in the place of the generation.
    pub mixed: Option<(&'a Generation, u8)>,
    /// Whether observers see it: not where they accepted these tensors before, nor at a first load.
    pub observed: bool,
    /// Called as it goes on.
    pub progress: Progress<'a>,
}

impl Attempt<'_> {
    /// The hooks to ask. `of` gives those of a generation as the target wants them.
    pub fn hooks(&self, of: impl Fn(&Generation) -> RefitHooks) -> RefitHooks {
        let mut hooks = of(self.generation);
        if !self.observed {
            hooks.observers.clear();
        }
        if let Some((candidate, percent)) = self.mixed
            && let (Some(live), Some(quant)) = (&hooks.quant, of(candidate).quant)
        {
            let (live, to) = (live.clone(), candidate.digest());
            hooks.quant = Some(Arc::new(Mixed { live, candidate: quant, to, percent }));
            hooks.origin.patches = self.patch_set().to_string();
        }
        hooks
    }

    /// Identity of the patches whose answers the weights follow.
    pub fn patch_set(&self) -> Digest {
        let quantizes = |generation: &Generation| generation.set().claims(Hook::BlockQuant).is_some();
        match self.mixed {
            Some((candidate, percent)) if quantizes(self.generation) && quantizes(candidate) => {
                Mixed::digest(&self.generation.digest(), &candidate.digest(), percent)
            }
            _ => self.generation.digest(),
        }
    }
}

/// An attempt that went well.
pub struct Proved<S> {
    /// What the weights are called: the trainer's word, else the number of the publish.
    pub label: String,
    /// What was done.
    pub report: RefitReport,
    /// A digest of all weights for the ledger, where somebody asked for one.
    pub sha256: Option<String>,
    /// What the receipt says of the bytes, where somebody asked for digests.
    pub digests: Option<Digests>,
    /// The weights.
    pub staged: S,
}

/// What a comparison found.
pub struct Compared<S> {
    /// What the rules do not allow, and errors; empty is good.
    pub findings: Vec<TensorFinding>,
    /// Tensors whose bytes or layout differ between the two.
    pub differing_tensors: usize,
    /// What the target keeps of it.
    pub seen: S,
}

/// One thing that the rules do not allow.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorFinding {
    /// Name of the tensor; empty for the refit as a whole.
    pub tensor: String,
    /// What, with the number and the limit.
    pub what: String,
}

impl TensorFinding {
    /// A candidate that could not be compared.
    pub fn failed(error: impl ToString) -> Self {
        let what = crate::base::text::clean(&error.to_string().replace('\n', " "), 600);
        Self { tensor: String::new(), what }
    }
}

/// What became of a candidate in one refit.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Number of the refit.
    pub refit: u64,
    /// What the weights are called.
    pub version: String,
    /// The live set.
    pub live: Digest,
    pub candidate: Digest,
    /// Shadow or canary.
    pub mode: Mode,
    /// Refits in a row without a finding, this one included.
    pub clean_refits: u64,
    /// Tensors whose bytes or layout differ between the two.
    pub differing_tensors: usize,
    /// The first findings.
    pub findings: Vec<TensorFinding>,
    /// How many more there are.
    pub more_findings: usize,
    /// The share of requests, in percent, that get the candidate's weights from now on; none: none do.
    pub serve: Option<u8>,
}

/// Why a target did not do something. What served before serves on.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The weights, or a patch that was asked about them.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A candidate's answers, which the target found wrong itself.
    #[error("refused: {0}")]
    Refused(Refusal),
}
