//! Why a live model did not do something. Whatever it was, what served before serves on.

use patchhost_runtime::error::{Refusal, RuntimeError};

use crate::base::{Code, Exit};
use crate::compare::CompareError;
use crate::patch::{StageError, SwapError};

/// A refit, a swap or an update was refused.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The runtime or a patch in it.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A candidate did not pass a stage.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The board.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// A candidate failed its probe.
    #[error("refused: {0}")]
    Probe(Refusal),
    /// Something else is under way.
    #[error("refused: {0}")]
    Busy(Refusal),
}

impl Exit for LiveError {
    fn exit(&self) -> Code {
        match self {
            Self::Runtime(e) => e.exit(),
            Self::Stage(e) => e.exit(),
            Self::Swap(e) => e.exit(),
            Self::Probe(_) => Code::Patch,
            Self::Busy(_) => Code::Refused,
        }
    }
}

impl From<CompareError> for LiveError {
    fn from(error: CompareError) -> Self {
        match error {
            CompareError::Runtime(error) => LiveError::Runtime(error),
            CompareError::Usage(refusal) | CompareError::Refused(refusal) => LiveError::Probe(refusal),
        }
    }
}
