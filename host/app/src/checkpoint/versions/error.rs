//! What can be wrong with a version of weights.

use patchhost_runtime::error::{Refusal, RuntimeError};

use crate::base::{Code, Exit};
use crate::checkpoint::write::WriteError;

/// Why a version was not read, not applied or not written. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// What was given is nothing that weights can be taken from, or not in the version asked for.
    #[error("weights refused: {0}")]
    Source(Refusal),
    /// A version that is not completely there: still being written, or its writer was killed.
    #[error("version refused: {0}")]
    Incomplete(Refusal),
    /// A version in a form that we cannot read.
    #[error("version refused: {0}")]
    Format(Refusal),
    /// The delta was made for other weights.
    #[error("delta refused: {0}")]
    Base(Refusal),
    /// The bytes are not those that were written.
    #[error("version refused: {0}")]
    Corrupt(Refusal),
    /// What was to be written cannot be a version, or its place is taken.
    #[error("not written: {0}")]
    Unwritable(Refusal),
    /// A safetensors file.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The disk.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Exit for VersionError {
    fn exit(&self) -> Code {
        match self {
            Self::Base(_) | Self::Corrupt(_) => Code::Refused,
            Self::Source(_) | Self::Incomplete(_) | Self::Format(_) | Self::Unwritable(_) => Code::Usage,
            Self::Runtime(e) => e.exit(),
            Self::Write(e) => e.exit(),
        }
    }

    fn parts(&self) -> Refusal {
        match self {
            Self::Source(refusal)
            | Self::Incomplete(refusal)
            | Self::Format(refusal)
            | Self::Base(refusal)
            | Self::Corrupt(refusal)
            | Self::Unwritable(refusal) => refusal.clone(),
            Self::Runtime(e) => e.parts(),
            Self::Write(e) => e.parts(),
        }
    }
}

/// Shorthand of these modules.
pub type Result<T> = std::result::Result<T, VersionError>;

macro_rules! shorthand {
    ($($name:ident $variant:ident),*) => {$(
        pub(super) fn $name(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> VersionError {
            VersionError::$variant(Refusal::new(what, why, next))
        }
    )*};
}

shorthand!(
    source Source,
    incomplete Incomplete,
    format Format,
    base Base,
    corrupt Corrupt,
    unwritable Unwritable
);

/// The system could not read something.
pub(super) fn unreadable(path: &std::path::Path, e: &std::io::Error) -> VersionError {
    let next = patchhost_runtime::files::next_of(e, "check the path and its permissions");
    source(format!("`{}`", path.display()), e.to_string(), next)
}

impl VersionError {
    /// Its second part: the reason alone, for a list of what was passed over.
    pub fn why(&self) -> String {
        match self {
            Self::Source(r)
            | Self::Incomplete(r)
            | Self::Format(r)
            | Self::Base(r)
            | Self::Corrupt(r)
            | Self::Unwritable(r)
            | Self::Runtime(RuntimeError::Checkpoint(r)) => format!("{}: {}", r.what, r.why),
            other => other.to_string(),
        }
    }
}
