//! A model whose patches can change while it runs: the engine, the board of its patches, and the one way in for refits,
//! candidates and swaps. `serve` and `train` stand on it.

mod canary;
mod error;
mod guard;
mod model;
mod priority;
mod probe;
mod refit;
mod shadow;
mod stage;
mod swap;
mod update;
mod watch;

pub use canary::CanaryUnit;
pub use error::LiveError;
pub use model::{LiveModel, LiveOptions, LiveStatus};
pub use refit::{Refitted, Swapped};
pub use shadow::{ShadowReport, TensorFinding};
pub use stage::Staged;
pub use swap::SwapOutcome;
pub use update::Update;
pub use watch::{Seen, SettingsFor, WatchError, Watcher};
