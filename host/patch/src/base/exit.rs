//! How a command ends: four numbers that scripts can rely on, and the trait by which each error type names its own. The
//! command line takes no error without this trait, so a new error type whose author forgot it does not compile there.

use patchhost_kernels::environment::EnvironmentError;
use patchhost_runtime::error::RuntimeError;
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

    /// Fields that `--format json` shows beside the text of the error.
    fn details(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }
}

// The kernels and the runtime know no command line, so the codes of their errors stand here.

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
}

impl Exit for EnvironmentError {
    fn exit(&self) -> Code {
        Code::Usage
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
}
