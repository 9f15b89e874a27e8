//! A model whose patches can change while it runs: the engine, the board of its patches, and the one way in for refits,
//! candidates and swaps. `serve` and `train` stand on it. What is decided about patches is in `policy`, over any target;
//! the rest is the embedded engine as one of them.

mod embedded;
mod guard;
mod model;
mod policy;
mod probe;
mod shadow;
mod watch;

pub use crate::patch::{CanaryUnit, TensorFinding};
pub use embedded::Embedded;
pub use model::{LiveModel, LiveOptions, LiveStatus};
pub use policy::{
    Deed, Fact, LastRefit, Listener, Live, LiveError, Prepared, Staged, Staging, StagingStep, Step, SwapOutcome,
    Swapped,
};
pub use shadow::ShadowReport;
pub use watch::{Seen, SettingsFor, WatchError, Watcher};

/// What a refit of a live model did.
pub type Refitted = policy::Refitted<std::sync::Arc<patchhost_runtime::weights::WeightSet>>;
/// An update of a live model that arrives in pieces.
pub type Update = policy::Update<Embedded>;
