//! Why something about trust was refused.

use crate::base::file::{FileError, FileErrorKind};
use crate::base::{Code, Exit};
use patchhost_runtime::error::Refusal;

/// Whose turn it is after a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustErrorKind {
    /// A file or an argument cannot be used as it is.
    Usage,
    /// Policy, lock or signatures say no.
    Refused,
    /// The machine failed: a full disk.
    Host,
}

/// A lock, a key, a signature or a statement was refused. Nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("refused: {what}\n  why: {why}\n  next: {next}")]
pub struct TrustError {
    /// Whose turn it is.
    pub kind: TrustErrorKind,
    /// What was refused.
    pub what: String,
    /// Why, with the value and the limit where there are some.
    pub why: String,
    /// What the user can do now.
    pub next: String,
}

impl TrustError {
    pub fn usage(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { kind: TrustErrorKind::Usage, what: what.into(), why: why.into(), next: next.into() }
    }

    pub fn refused(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { kind: TrustErrorKind::Refused, ..Self::usage(what, why, next) }
    }

    /// An error of the operating system: the user's to mend where a path or a permission is wrong.
    pub(crate) fn io(what: impl Into<String>, error: &std::io::Error, next: impl Into<String>) -> Self {
        FileError::io(what, error, next).into()
    }
}

impl Exit for TrustError {
    fn exit(&self) -> Code {
        match self.kind {
            TrustErrorKind::Usage => Code::Usage,
            TrustErrorKind::Refused => Code::Refused,
            TrustErrorKind::Host => Code::Host,
        }
    }

    fn parts(&self) -> Refusal {
        Refusal { what: self.what.clone(), why: self.why.clone(), next: self.next.clone() }
    }
}

impl From<FileError> for TrustError {
    fn from(FileError { kind, what, why, next }: FileError) -> Self {
        let kind = match kind {
            FileErrorKind::Usage => TrustErrorKind::Usage,
            FileErrorKind::Refused => TrustErrorKind::Refused,
            FileErrorKind::Host => TrustErrorKind::Host,
        };
        Self { kind, what, why, next }
    }
}
