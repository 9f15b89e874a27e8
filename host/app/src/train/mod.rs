//! A small reinforcement-learning trainer in this process: policy gradient with a verifiable reward on master weights of
//! its own, and rollouts from an engine that every step refits through the patches.

mod checkpoint;
mod error;
mod lines;
pub mod loss;
mod masters;
pub mod metrics;
pub mod model;
pub mod optimizer;
pub mod plot;
pub mod rollout;
mod settings;
mod task;
mod trainer;

pub use checkpoint::{Checkpoints, State};
pub use error::{Result, TrainError};
pub use lines::{Lines, Mark};
pub use masters::{Master, Masters};
pub use settings::{MasterDtype, ModelId, RolloutIs, Settings};
pub use task::{PROMPTS, Task};
pub use trainer::{Refitted, Rollout, Trainer};
