//! Why training did not begin, or stopped.

use patchhost_runtime::error::{Refusal, RuntimeError};

use crate::base::{Code, Exit};
use crate::checkpoint::write::WriteError;
use crate::live::LiveError;

/// Why training did not begin, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// What was asked for makes no sense, or a file does not hold what it must.
    #[error("refused: {0}")]
    Usage(Refusal),
    /// It makes sense, but going on would do harm: other settings than those of the checkpoint, a step that diverged.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The model, the checkpoint or a patch.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The rollout engine was not refitted.
    #[error(transparent)]
    Live(#[from] LiveError),
    /// A file was not written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<candle_core::Error> for TrainError {
    fn from(e: candle_core::Error) -> Self {
        Self::Runtime(RuntimeError::Internal(format!("the tensor library refused an operation: {e}")))
    }
}

impl Exit for TrainError {
    fn exit(&self) -> Code {
        match self {
            Self::Usage(_) => Code::Usage,
            Self::Refused(_) => Code::Refused,
            Self::Runtime(e) => e.exit(),
            Self::Live(e) => e.exit(),
            Self::Write(e) => e.exit(),
        }
    }

    fn parts(&self) -> Refusal {
        match self {
            Self::Usage(refusal) | Self::Refused(refusal) => refusal.clone(),
            Self::Runtime(e) => e.parts(),
            Self::Live(e) => e.parts(),
            Self::Write(e) => e.parts(),
        }
    }
}

/// Shorthand of these modules.
pub type Result<T> = std::result::Result<T, TrainError>;

pub(super) fn usage(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> TrainError {
    TrainError::Usage(Refusal::new(what, why, next))
}

pub(super) fn refused(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> TrainError {
    TrainError::Refused(Refusal::new(what, why, next))
}
