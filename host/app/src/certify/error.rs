//! Why the kit could not do its work. What an engine did wrong is no error: it stands in the certificate.

use patchhost_runtime::error::{Refusal, plain};

use crate::base::{Code, Exit};

/// Whose turn it is after an error of the kit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KitErrorKind {
    /// An argument or a file cannot be used as it is.
    Usage,
    /// A certificate or a results file is not what it says.
    Refused,
    /// The server or the engine cannot be reached, or the machine failed.
    Host,
}

/// The kit could not do its work.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {what}\n  why: {why}\n  next: {next}", self.word())]
pub struct KitError {
    /// Whose turn it is.
    pub kind: KitErrorKind,
    what: String,
    why: String,
    next: String,
}

impl KitError {
    /// An argument or a file that the user gave.
    pub fn usage(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { kind: KitErrorKind::Usage, what: plain(what.into()), why: plain(why.into()), next: plain(next.into()) }
    }

    /// A document that is not what it says.
    pub fn refused(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { kind: KitErrorKind::Refused, ..Self::usage(what, why, next) }
    }

    /// A server, an engine or a machine that does not answer.
    pub fn host(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { kind: KitErrorKind::Host, ..Self::usage(what, why, next) }
    }

    fn word(&self) -> &'static str {
        if self.kind == KitErrorKind::Host { "failed" } else { "refused" }
    }

    /// Why, for a line of a report.
    pub fn why(&self) -> &str {
        &self.why
    }
}

impl Exit for KitError {
    fn exit(&self) -> Code {
        match self.kind {
            KitErrorKind::Usage => Code::Usage,
            KitErrorKind::Refused => Code::Refused,
            KitErrorKind::Host => Code::Host,
        }
    }

    fn parts(&self) -> Refusal {
        Refusal { what: self.what.clone(), why: self.why.clone(), next: self.next.clone() }
    }
}
