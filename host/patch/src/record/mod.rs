//! Recording what patches are asked and answer, bit for bit, and asking them the same again.

mod compare;
mod error;
mod format;
mod recorder;
mod replay;

pub use crate::call::{Answer, Blocks, Outcome, PatchEntry, Question, Rows};
pub use compare::{Difference, Ending};
pub use error::RecordingError;
pub use format::{Call, End, Event, Overview, Recording};
pub use recorder::{RecordStatus, Recorder};
pub use replay::{Count, PatchReplay, Replay, ReplayReport};

#[cfg(test)]
mod tests;
