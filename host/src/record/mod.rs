//! Recording what patches are asked and answer, bit for bit, and asking them the same again.

mod call;
mod compare;
mod error;
mod format;
mod player;
mod recorder;
mod replay;
mod tape;

pub use call::{Answer, Blocks, Call, Outcome, Question, Rows};
pub use compare::{Difference, Ending};
pub use error::RecordingError;
pub use format::{End, Event, Overview, PatchEntry, Recording};
pub use recorder::{RecordStatus, Recorder};
pub use replay::{Count, PatchReplay, Replay, ReplayReport};

pub(crate) use tape::Tape;

#[cfg(test)]
mod tests;
