//! Why a patch was refused, at which stage, and what to do next.

use crate::audit::{Report, Severity};
use crate::base::{Code, Digest, Exit};
use patchhost_runtime::error::Refusal;
use patchhost_runtime::hooks::HookCause;
use serde::Serialize;
use std::fmt;

/// Steps of the pipeline, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Finding and reading the file.
    Read,
    /// Comparing its digest.
    Verify,
    /// Static rules.
    Audit,
    /// Compiling and linking.
    Compile,
    /// Instantiating, describing, configuring.
    Ready,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Read => "read",
            Stage::Verify => "verify",
            Stage::Audit => "audit",
            Stage::Compile => "compile",
            Stage::Ready => "ready",
        })
    }
}

/// A patch was refused. Nothing that was live has changed.
#[derive(Debug, thiserror::Error)]
#[error("refused: {}", self.parts())]
pub enum StageError {
    /// Neither a file nor a bundled patch.
    NotFound {
        /// As given.
        name: String,
        /// Names that would have worked.
        bundled: Vec<&'static str>,
    },
    /// The file could not be read.
    Unreadable {
        /// As given.
        name: String,
        /// From the operating system.
        #[source]
        error: std::io::Error,
    },
    /// The file is larger than any component may be.
    TooLarge {
        /// As given.
        name: String,
        /// Bytes of the file.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The bytes are not those that were pinned.
    DigestMismatch {
        /// Name of the patch.
        name: String,
        /// What pins it.
        pinned_by: &'static str,
        /// The pinned digest.
        expected: Digest,
        /// Digest of the bytes.
        found: Digest,
    },
    /// The lock does not know the patch, or cannot be read.
    NotLocked {
        /// Name of the patch.
        name: String,
        why: String,
    },
    /// Lock, signatures, revocations or the policy say no.
    Trust {
        /// Name of the patch.
        name: String,
        /// Why, with the ids of the rules.
        why: String,
        /// What to do; where a reviewer can accept it, the command that does.
        next: String,
    },
    /// A rule of the audit forbids it.
    Audit {
        /// Name of the patch.
        name: String,
        /// All findings.
        report: Box<Report>,
    },
    /// It does not compile or link.
    Compile {
        /// Name of the patch.
        name: String,
        why: String,
    },
    /// It failed while it was started, described or configured.
    Start {
        /// Name of the patch.
        name: String,
        /// The call: `instantiate`, `describe` or `configure`.
        call: &'static str,
        /// Kind of failure.
        cause: HookCause,
        why: String,
    },
    /// What it was granted cannot be given.
    Grants {
        /// Name of the patch.
        name: String,
        why: String,
    },
    /// The settings are more than the interface allows.
    Settings {
        /// Name of the patch.
        name: String,
        why: String,
    },
}

impl StageError {
    /// Where in the pipeline.
    pub fn stage(&self) -> Stage {
        match self {
            Self::NotFound { .. } | Self::Unreadable { .. } | Self::TooLarge { .. } => Stage::Read,
            Self::DigestMismatch { .. } | Self::NotLocked { .. } | Self::Trust { .. } => Stage::Verify,
            Self::Audit { .. } => Stage::Audit,
            Self::Compile { .. } => Stage::Compile,
            Self::Start { .. } | Self::Grants { .. } | Self::Settings { .. } => Stage::Ready,
        }
    }

    /// Name or path of the patch.
    pub fn patch(&self) -> &str {
        match self {
            Self::NotFound { name, .. }
            | Self::Unreadable { name, .. }
            | Self::TooLarge { name, .. }
            | Self::DigestMismatch { name, .. }
            | Self::NotLocked { name, .. }
            | Self::Trust { name, .. }
            | Self::Audit { name, .. }
            | Self::Compile { name, .. }
            | Self::Start { name, .. }
            | Self::Grants { name, .. }
            | Self::Settings { name, .. } => name,
        }
    }

    /// What was refused.
    pub fn what(&self) -> String {
        format!("patch `{}` at stage {}", self.patch(), self.stage())
    }

    /// Why, with the number, name or limit.
    pub fn why(&self) -> String {
        match self {
            Self::NotFound { bundled, .. } => {
                format!("there is no such file, and no bundled patch of this name ({})", bundled.join(", "))
            }
            Self::Unreadable { error, .. } => error.to_string(),
            Self::TooLarge { size, limit, .. } => format!("PH003: {size} bytes; a component has at most {limit}"),
            Self::DigestMismatch { pinned_by, expected, found, .. } => {
                format!("{pinned_by} pins {expected}, the file is {found}")
            }
            Self::NotLocked { why, .. }
            | Self::Trust { why, .. }
            | Self::Compile { why, .. }
            | Self::Grants { why, .. }
            | Self::Settings { why, .. } => why.clone(),
            Self::Audit { report, .. } => {
                let errors = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
                let lines: Vec<String> = errors.take(8).map(|finding| finding.line()).collect();
                let more = report.errors().saturating_sub(lines.len());
                let tail = if more > 0 { format!("\n       and {more} more") } else { String::new() };
                lines.join("\n       ") + &tail
            }
            Self::Start { call, why, .. } => format!("`{call}`: {why}"),
        }
    }

    /// What to do next.
    pub fn next(&self) -> String {
        match self {
            Self::NotFound { .. } => "give a path to a component, or one of these names".into(),
            Self::Unreadable { error, .. } => {
                patchhost_runtime::files::next_of(error, "check the path and its permissions").into()
            }
            Self::TooLarge { .. } => "strip it, or build it with opt-level = \"s\"".into(),
            Self::DigestMismatch { found, .. } => {
                format!("if these bytes are meant, review them and pin {found}")
            }
            Self::NotLocked { .. } => "rebuild the host with `cargo xtask guests`, or give a path".into(),
            Self::Trust { next, .. } => next.clone(),
            Self::Audit { report, .. } => {
                let fix = report.findings.iter().find(|finding| finding.severity == Severity::Error);
                // Rules do not know what the file is called; whoever reads this wants a command to copy.
                let named = |fix: &str| fix.replace("X.wasm", &crate::base::quoted(self.patch().as_ref()));
                fix.map_or_else(|| "rebuild the patch as its findings say".to_owned(), |finding| named(&finding.fix))
            }
            Self::Compile { .. } => "rebuild it with the interface in `wit/patch/0.1.0`".into(),
            Self::Start { cause: HookCause::Refused, .. } => "change the settings as it says".into(),
            Self::Start { .. } => "fix the patch; the live set is unchanged".into(),
            Self::Grants { .. } => "make the folder, or grant another one with `patchhost grant`".into(),
            Self::Settings { .. } => "give fewer or shorter `--set key=value`".into(),
        }
    }
}

impl Exit for StageError {
    fn exit(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::Unreadable { .. } | Self::Grants { .. } | Self::Settings { .. } => {
                Code::Usage
            }
            // The patch answered `configure` with an error: the user's settings, not the patch, are wrong.
            Self::Start { cause: HookCause::Refused, .. } => Code::Usage,
            Self::Start { .. } => Code::Patch,
            Self::TooLarge { .. }
            | Self::DigestMismatch { .. }
            | Self::NotLocked { .. }
            | Self::Trust { .. }
            | Self::Audit { .. }
            | Self::Compile { .. } => Code::Refused,
        }
    }

    fn parts(&self) -> Refusal {
        Refusal { what: self.what(), why: self.why(), next: self.next() }
    }
}
