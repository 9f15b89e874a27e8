//! Why a change was not made.

use crate::base::{Code, Exit};
use patchhost_runtime::error::Refusal;

/// Kinds of refusals, for exit codes and HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapErrorKind {
    /// Another change is under way, or another set is active than was expected.
    Conflict,
    /// Nothing of that digest is there.
    NotFound,
    /// The request makes no sense.
    Invalid,
    /// A rule or a quarantine forbids it.
    Forbidden,
    /// The ledger cannot be written.
    Ledger,
}

/// A change was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused: {what}\n  why: {why}\n  next: {next}")]
pub struct SwapError {
    pub kind: SwapErrorKind,
    /// What was refused.
    pub what: String,
    pub why: String,
    /// What to do next.
    pub next: String,
}

impl SwapError {
    pub fn new(kind: SwapErrorKind, what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { kind, what: what.into(), why: why.into(), next: next.into() }
    }
}

impl Exit for SwapError {
    fn exit(&self) -> Code {
        match self.kind {
            SwapErrorKind::Conflict | SwapErrorKind::Forbidden => Code::Refused,
            SwapErrorKind::NotFound | SwapErrorKind::Invalid => Code::Usage,
            SwapErrorKind::Ledger => Code::Host,
        }
    }

    fn parts(&self) -> Refusal {
        Refusal { what: self.what.clone(), why: self.why.clone(), next: self.next.clone() }
    }
}
