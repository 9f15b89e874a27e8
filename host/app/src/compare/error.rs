//! Why two quantizations were not compared.

use patchhost_runtime::error::{Refusal, RuntimeError};

use crate::base::{Code, Exit};

/// Why a comparison was not made.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// What was asked for makes no sense, or a file does not hold what it must.
    #[error("refused: {0}")]
    Usage(Refusal),
    /// It makes sense, but this host cannot do it for this patch.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The model, the checkpoint or a patch.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl Exit for CompareError {
    fn exit(&self) -> Code {
        match self {
            Self::Usage(_) => Code::Usage,
            Self::Refused(_) => Code::Refused,
            Self::Runtime(e) => e.exit(),
        }
    }

    fn parts(&self) -> Refusal {
        match self {
            Self::Usage(refusal) | Self::Refused(refusal) => refusal.clone(),
            Self::Runtime(e) => e.parts(),
        }
    }
}

/// Shorthand of these modules.
pub type Result<T> = std::result::Result<T, CompareError>;

pub(super) fn usage(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> CompareError {
    CompareError::Usage(Refusal::new(what, why, next))
}

pub(super) fn refused(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> CompareError {
    CompareError::Refused(Refusal::new(what, why, next))
}
