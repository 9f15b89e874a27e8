//! A refit: checkpoint tensors into a new set of weights. Everything is staged apart from the live weights and published
//! by one pointer exchange; an error at any point leaves the live weights as they were.
//!
//! [`Arrivals`] take chunks (a tensor may be split in byte ranges) → [`Source`]: all that came → [`StagedRefit`]: observers,
//! promises, coverage, quantization, layout passes → verify → publish. A source can be staged again with other patches. Of a
//! partial update, [`Source::over`] makes a whole one first.

mod arrivals;
mod cast;
pub(crate) mod declared;
mod names;
mod partial;
mod planned;
mod remarks;
mod report;
mod rules;
mod staged;
mod turn;
mod watch;

use std::any::Any;
use std::sync::Arc;

use crate::activation::ActivationMode;
use crate::hooks::{BlockQuant, Layout, LoaderMap, LogitsMask, RefitObserver};
pub use arrivals::{Arrivals, Begin, Manifest, Promise, Source};
pub use cast::{first_nonfinite, nonfinite};
pub use declared::rounded;
pub use partial::Stayed;
pub use planned::{Planned, Progress, Setup, info};
pub use report::{Outcome, Placed, RefitReport, TensorOutcome};
pub use rules::{Differs, NonFinite, RefitRules};
pub use staged::StagedRefit;
pub(crate) use turn::Turn;
pub use watch::observe;

/// The patches of one refit: one set for all of it.
#[derive(Clone, Default)]
pub struct RefitHooks {
    /// Where tensors go; none: only what the host itself can load.
    pub loader: Option<Arc<dyn LoaderMap>>,
    /// What becomes FP8; none: nothing.
    pub quant: Option<Arc<dyn BlockQuant>>,
    /// Treatment of activations before FP8 matrices.
    pub activation: ActivationMode,
    /// Which layout the published weights have; none: the plain one.
    pub layout: Option<Arc<dyn Layout>>,
    /// Who watches refits, in order; each may veto.
    pub observers: Vec<Arc<dyn RefitObserver>>,
    /// Which token ids are never sampled; none: all may be.
    pub mask: Option<MaskHook>,
    /// What the operator allows, whatever the patches say.
    pub rules: RefitRules,
    /// Whose answers these are; the weights carry it.
    pub origin: Origin,
}

/// Who says which token ids are never sampled, and what it is asked.
#[derive(Clone)]
pub struct MaskHook {
    /// The patch.
    pub patch: Arc<dyn LogitsMask>,
    /// One more than the tokenizer's largest id.
    pub vocabulary: u32,
}

/// Whose answers a refit follows. Published weights carry it, so that a forward pass that holds the weights holds the
/// patches too: activation scales and weights can never come from different sets.
#[derive(Clone, Default)]
pub struct Origin {
    /// Digest of the patch set; empty where nobody named one.
    pub patches: String,
    /// Dropped with the last user of the weights: this is how a superseded patch set knows that it is drained.
    pub pin: Option<Arc<dyn Any + Send + Sync>>,
}
