//! Why something live did not do what was asked. Whatever it was, what served before serves on.

use patchhost_runtime::error::{Refusal, RuntimeError};

use crate::base::{Code, Exit};
use crate::patch::{StageError, SwapError, TargetError};

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

    fn parts(&self) -> Refusal {
        match self {
            Self::Runtime(e) => e.parts(),
            Self::Stage(e) => e.parts(),
            Self::Swap(e) => e.parts(),
            Self::Probe(refusal) | Self::Busy(refusal) => refusal.clone(),
        }
    }
}

impl From<TargetError> for LiveError {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::Runtime(error) => LiveError::Runtime(error),
            TargetError::Refused(refusal) => LiveError::Probe(refusal),
        }
    }
}
