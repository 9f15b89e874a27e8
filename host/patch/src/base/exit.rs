//! How a command ends: four numbers that scripts can rely on, and the trait by which each error type names its own and
//! hands over what it says. The command line takes no error without this trait, so a new error type whose author forgot it
//! does not compile there.

use patchhost_kernels::environment::EnvironmentError;
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::hooks::{HookCause, HookError};
use std::io;

/// The exit code of a command that failed. 0, which is not among them, means that everything went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Refused by the audit, a digest, a conflict, or because weights and patches do not cover the model.
    Refused = 1,
    /// The arguments make no sense, or an input cannot be read.
    Usage = 2,
    /// A patch trapped, reached a limit or answered wrongly.
    Patch = 3,
    /// The machine or this program failed: no space on the disk, a bug.
    Host = 4,
}

impl Code {
    /// For reading or writing a file that the user named. A folder that does not exist or that the user may not use is
    /// the user's to mend; a full disk is not the fault of an argument.
    pub fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Self::Usage,
            _ => Self::Host,
        }
    }
}

impl From<Code> for std::process::ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// An error that a command may end with.
pub trait Exit: std::error::Error {
    /// The exit code of a command that ends with this error.
    fn exit(&self) -> Code;

    /// For programs, which must not take the text apart: what was refused, why, and what to do next, without the word
    /// "refused:" before them and without line feeds between them.
    fn parts(&self) -> Refusal;

    /// Fields that `--format json` shows beside the text of the error.
    fn details(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }
}

// The kernels and the runtime know no command line, so what it wants of their errors stands here.

impl Exit for RuntimeError {
    fn exit(&self) -> Code {
        match self {
            Self::Environment(_) | Self::Config(_) | Self::Checkpoint(_) | Self::Tokenizer(_) | Self::Request(_) => {
                Code::Usage
            }
            Self::Refit(_) | Self::NonFinite(_) => Code::Refused,
            Self::Hook(e) => e.exit(),
            Self::Contract(_) => Code::Patch,
            Self::Internal(_) => Code::Host,
        }
    }

    fn parts(&self) -> Refusal {
        match self {
            Self::Environment(refusal)
            | Self::Config(refusal)
            | Self::Checkpoint(refusal)
            | Self::Tokenizer(refusal)
            | Self::Refit(refusal)
            | Self::NonFinite(refusal)
            | Self::Contract(refusal)
            | Self::Request(refusal) => refusal.clone(),
            Self::Hook(e) => e.parts(),
            Self::Internal(what) => Refusal::internal(what),
        }
    }
}

impl Exit for EnvironmentError {
    fn exit(&self) -> Code {
        Code::Usage
    }

    fn parts(&self) -> Refusal {
        Refusal { what: self.what.clone(), why: self.why.clone(), next: self.next.clone() }
    }
}

impl Exit for HookError {
    fn exit(&self) -> Code {
        match self.cause {
            // The patch works and says no: to the model, the checkpoint or the settings.
            HookCause::Refused => Code::Refused,
            HookCause::Trap | HookCause::Limit | HookCause::BadOutput | HookCause::Unsupported => Code::Patch,
        }
    }

    fn parts(&self) -> Refusal {
        let what = format!("patch `{}`, call {}", self.patch, self.call);
        Refusal { what, why: self.why.clone(), next: self.next.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Hook;
    use crate::patch::{AttachError, LedgerError, Phase, SetError, StageError, SwapError, SwapErrorKind};
    use crate::record::RecordingError;
    use crate::sandbox::AddressSpaceError;
    use crate::trust::{Policy, RecordError, TrustError};
    use std::ffi::OsStr;
    use std::path::{Path, PathBuf};

    /// The text of an error is made of its parts, behind the word that it begins with.
    #[track_caller]
    fn said(error: &dyn Exit, word: &str) {
        let Refusal { what, why, next } = error.parts();
        assert!(!what.is_empty() && !why.is_empty() && !next.is_empty(), "{error:?}");
        assert!(!what.contains('\n') && !what.starts_with("refused"), "{what}");
        assert_eq!(error.to_string(), format!("{word}{what}\n  why: {why}\n  next: {next}"));
    }

    fn unsupported() -> HookError {
        let (patch, call) = ("fp8_block".to_owned(), "`block-scales` of tensor `w`".to_owned());
        let (why, next) = ("it does not know it".to_owned(), "give another patch".to_owned());
        HookError { patch, call, cause: HookCause::Unsupported, why, next }
    }

    #[test]
    fn errors_hand_over_the_parts_of_their_text() {
        let refusal = || Refusal::new("`model_type`", "it is not supported", "see the README");
        said(&EnvironmentError::new("PATCHHOST_ISA", OsStr::new("bogus"), "one of two"), "refused: ");
        said(&RuntimeError::Config(refusal()), "config refused: ");
        said(&RuntimeError::Contract(refusal()), "scale contract broken: ");
        said(&RuntimeError::Internal("it fell over".to_owned()), "");
        said(&TrustError::usage("key `k`", "it is empty", "make another"), "refused: ");
        said(&RecordError::Trust(TrustError::refused("lock `l`", "its seal broke", "restore it")), "refused: ");
        said(&SwapError::new(SwapErrorKind::Conflict, "a swap", "one is under way", "wait"), "refused: ");
        said(&AddressSpaceError { limit: 1 << 20, needed: 1 << 40, memories: 192 }, "refused: ");
        said(&Policy::read(Path::new("/no/such/patchhost.toml")).expect_err("no file"), "refused: ");
        said(&LedgerError::TooDeep { event: "host.started".to_owned(), limit: 8 }, "refused: ");
        let (path, patch) = (PathBuf::from("calls.rec"), "mask".to_owned());
        said(&RecordingError::Limit { path, limit: 1, least: 100 }, "refused: ");
        said(&RecordingError::NoHook { patch, component: "x".to_owned(), hook: Hook::Layout }, "refused: ");
    }

    #[test]
    fn a_failed_call_is_named_by_its_patch() {
        let parts = unsupported().parts();
        assert_eq!(parts.what, "patch `fp8_block`, call `block-scales` of tensor `w`");
        assert_eq!((parts.why.as_str(), parts.next.as_str()), ("it does not know it", "give another patch"));
    }

    #[test]
    fn an_error_inside_of_another_hands_over_its_own_parts() {
        let missing = || StageError::NotFound { name: "x".to_owned(), bundled: vec!["fp8_block"] };
        said(&missing(), "refused: ");
        said(&RecordError::Stage(missing()), "refused: ");
        said(&RecordingError::Stage(missing()), "refused: ");
        assert_eq!(RecordingError::Stage(missing()).parts(), missing().parts());
        let (first, second) = ("a".to_owned(), "b".to_owned());
        let conflict = SetError::Conflict { hook: Hook::Layout, first, second };
        said(&conflict, "refused: ");
        assert_eq!(AttachError::Conflict(conflict.clone()).parts(), conflict.parts());
        for is in [Phase::Built, Phase::Refitting] {
            said(&AttachError::WrongPhase { patch: "a".to_owned(), needs: "serving", is }, "refused: ");
        }
        assert_eq!(RuntimeError::Hook(unsupported()).parts(), unsupported().parts());
    }

    #[test]
    fn texts_that_are_made_of_parts_stay_as_they_were() {
        let (path, source) = (PathBuf::from("calls.rec"), io::Error::from(io::ErrorKind::AlreadyExists));
        let texts = [
            RuntimeError::Internal("it fell over".to_owned()).to_string(),
            AttachError::WrongPhase { patch: "a".to_owned(), needs: "serving", is: Phase::Built }.to_string(),
            RecordingError::Create { path, source }.to_string(),
        ];
        assert_eq!(
            texts,
            [
                "internal: it fell over\n  why: a bug of this program\n  next: please report this",
                "refused: patch `a` (wrong-phase)\n  why: it needs the phase serving, the engine is built\n  next: make the \
                 engine first, then attach its patches",
                "refused: recording to `calls.rec`\n  why: entity already exists\n  next: give another name, or remove the \
                 file: a recording is never written over",
            ]
        );
    }
}
