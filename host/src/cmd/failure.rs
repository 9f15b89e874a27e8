//! From errors to exit codes and to what is printed.

use std::process::ExitCode;

use patchhost_runtime::error::{RuntimeError, plain};
use patchhost_runtime::hooks::{HookCause, HookError};

use super::args::Format;
use crate::checkpoint::export::ExportError;
use crate::checkpoint::versions::VersionError;
use crate::checkpoint::write::WriteError;
use crate::compare::CompareError;
use crate::live::{LiveError, WatchError};
use crate::patch::{AttachError, LedgerError, SetError, StageError, SwapError, SwapErrorKind};
use crate::record::RecordingError;
use crate::train::TrainError;
use crate::trust::{PolicyError, RecordError, TrustError, TrustErrorKind};

/// Refused: by the audit, a digest, a conflict, or because weights and patches do not cover the model.
pub const EXIT_REFUSED: u8 = 1;
/// Usage, or input that cannot be read.
pub const EXIT_USAGE: u8 = 2;
/// A patch failed: it trapped, reached a limit or answered wrongly.
pub const EXIT_PATCH: u8 = 3;
/// The host failed: out of disk, a bug.
pub const EXIT_HOST: u8 = 4;

/// Arguments that clap cannot judge.
#[derive(Debug, thiserror::Error)]
#[error("refused: {what}\n  why: {why}\n  next: {next}")]
pub struct UsageError {
    what: String,
    why: String,
    next: String,
}

impl UsageError {
    pub(super) fn new(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        // Names out of files go into them.
        Self { what: plain(what.into()), why: plain(why.into()), next: plain(next.into()) }
    }

    /// The same with other advice, where a verb takes its arguments in another way.
    pub(super) fn with_next(self, next: impl Into<String>) -> Self {
        Self { next: next.into(), ..self }
    }
}

/// A verdict that was printed already: only the exit code is left to say.
#[derive(Debug, thiserror::Error)]
#[error(
    "refused: {what}\n  why: findings that refuse, listed above\n  next: mend what they name; `patchhost audit --explain ID` says more"
)]
pub struct Refused {
    what: String,
}

impl Refused {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}
/// Everything was printed already; only the exit code is left.
#[derive(Debug, thiserror::Error)]
#[error("see above")]
pub struct Said(pub(super) u8);

/// Prints the error (JSON on standard output if asked for, else text on standard error) and gives its exit code.
pub(super) fn report(error: &anyhow::Error, format: Format) -> ExitCode {
    let code = code(error);
    if error.is::<Said>() {
        return ExitCode::from(code);
    }
    match format {
        Format::Text => errln!("error: {error}"),
        // The one object of the verb says it.
        Format::Json if error.is::<Refused>() => {}
        Format::Json => {
            let mut object = serde_json::json!({ "error": error.to_string(), "exit": code });
            if let Some(LedgerError::Broken { at, .. }) = error.downcast_ref() {
                object["first_bad_seq"] = at.seq.into();
                object["broken"] = serde_json::json!(at);
            }
            outln!("{object}");
        }
    }
    ExitCode::from(code)
}

fn code(error: &anyhow::Error) -> u8 {
    if let Some(e) = error.downcast_ref::<RuntimeError>() {
        return runtime(e);
    }
    if let Some(e) = error.downcast_ref::<HookError>() {
        return hook(e);
    }
    if let Some(e) = error.downcast_ref::<StageError>() {
        return stage(e);
    }
    if let Some(e) = error.downcast_ref::<LiveError>() {
        return live(e);
    }
    if let Some(e) = error.downcast_ref::<TrainError>() {
        return match e {
            TrainError::Usage(_) => EXIT_USAGE,
            TrainError::Refused(_) => EXIT_REFUSED,
            TrainError::Runtime(e) => runtime(e),
            TrainError::Live(e) => live(e),
            TrainError::Write(e) => write(e),
        };
    }
    if let Some(e) = error.downcast_ref::<SwapError>() {
        return swap(e);
    }
    if let Some(Said(code)) = error.downcast_ref() {
        return *code;
    }
    if let Some(e) = error.downcast_ref::<TrustError>() {
        return trust(e);
    }
    if let Some(e) = error.downcast_ref::<RecordError>() {
        return match e {
            RecordError::Stage(e) => stage(e),
            RecordError::Trust(e) => trust(e),
        };
    }
    if let Some(e) = error.downcast_ref::<RecordingError>() {
        return match e {
            RecordingError::NoPatch { .. } | RecordingError::NoHook { .. } => EXIT_REFUSED,
            RecordingError::Stage(e) => stage(e),
            _ => EXIT_USAGE,
        };
    }
    if error.is::<PolicyError>() || error.is::<WatchError>() {
        return EXIT_USAGE;
    }
    if let Some(ExportError::Refused(_)) = error.downcast_ref::<ExportError>() {
        return EXIT_REFUSED;
    }
    if let Some(ExportError::Usage(_)) = error.downcast_ref::<ExportError>() {
        return EXIT_USAGE;
    }
    if let Some(e) = error.downcast_ref::<VersionError>() {
        return match e {
            VersionError::Base(_) | VersionError::Corrupt(_) => EXIT_REFUSED,
            _ => EXIT_USAGE,
        };
    }
    if let Some(e) = error.downcast_ref::<CompareError>() {
        return match e {
            CompareError::Usage(_) => EXIT_USAGE,
            CompareError::Refused(_) => EXIT_REFUSED,
            CompareError::Runtime(e) => runtime(e),
        };
    }
    if let Some(e) = error.downcast_ref::<LedgerError>() {
        return ledger(e);
    }
    if error.is::<SetError>() || error.is::<Refused>() || error.is::<AttachError>() {
        return EXIT_REFUSED;
    }
    if let Some(e) = error.downcast_ref::<super::admin_client::Refused>() {
        // The server's status says whose fault it is.
        return if matches!(e.status, 400 | 401 | 404 | 413 | 415) { EXIT_USAGE } else { EXIT_REFUSED };
    }
    if error.is::<UsageError>() {
        return EXIT_USAGE;
    }
    error.downcast_ref::<WriteError>().map_or(EXIT_HOST, write)
}

fn trust(error: &TrustError) -> u8 {
    match error.kind {
        TrustErrorKind::Usage => EXIT_USAGE,
        TrustErrorKind::Refused => EXIT_REFUSED,
        TrustErrorKind::Host => EXIT_HOST,
    }
}

fn write(error: &WriteError) -> u8 {
    match error {
        // A folder that does not exist or cannot be written is the user's to mend, a full disk is not his argument's fault.
        WriteError::Io { source, .. }
            if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied) =>
        {
            EXIT_USAGE
        }
        _ => EXIT_HOST,
    }
}

fn live(error: &LiveError) -> u8 {
    match error {
        LiveError::Runtime(e) => runtime(e),
        LiveError::Stage(e) => stage(e),
        LiveError::Swap(e) => swap(e),
        LiveError::Probe(_) => EXIT_PATCH,
        LiveError::Busy(_) => EXIT_REFUSED,
    }
}

fn stage(error: &StageError) -> u8 {
    match error {
        StageError::NotFound { .. }
        | StageError::Unreadable { .. }
        | StageError::Grants { .. }
        | StageError::Settings { .. } => EXIT_USAGE,
        // The patch answered `configure` with an error: the user's settings, not the patch, are wrong.
        StageError::Start { cause: HookCause::Refused, .. } => EXIT_USAGE,
        StageError::Start { .. } => EXIT_PATCH,
        _ => EXIT_REFUSED,
    }
}

fn swap(error: &SwapError) -> u8 {
    match error.kind {
        SwapErrorKind::Conflict | SwapErrorKind::Forbidden => EXIT_REFUSED,
        SwapErrorKind::NotFound | SwapErrorKind::Invalid => EXIT_USAGE,
        SwapErrorKind::Ledger => EXIT_HOST,
    }
}

fn runtime(error: &RuntimeError) -> u8 {
    match error {
        RuntimeError::Config(_)
        | RuntimeError::Checkpoint(_)
        | RuntimeError::Tokenizer(_)
        | RuntimeError::Request(_) => EXIT_USAGE,
        RuntimeError::Refit(_) | RuntimeError::NonFinite(_) => EXIT_REFUSED,
        RuntimeError::Hook(e) => hook(e),
        RuntimeError::Contract(_) => EXIT_PATCH,
        RuntimeError::Internal(_) => EXIT_HOST,
    }
}

fn ledger(error: &LedgerError) -> u8 {
    match error {
        LedgerError::Broken { .. } | LedgerError::Head { .. } | LedgerError::Busy { .. } => EXIT_REFUSED,
        LedgerError::NotALedger { .. } => EXIT_USAGE,
        LedgerError::Io { source, .. }
            if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied) =>
        {
            EXIT_USAGE
        }
        _ => EXIT_HOST,
    }
}

fn hook(error: &HookError) -> u8 {
    match error.cause {
        // The patch works and says no: to the model, the checkpoint or the settings.
        HookCause::Refused => EXIT_REFUSED,
        _ => EXIT_PATCH,
    }
}
