//! Exporting a model to block FP8 for another engine: a folder of safetensors shards and a config.json that its reader
//! takes. Everything is decided before the first weight is read, weights are streamed one by one, and the folder
//! appears in one step.

mod companions;
mod config;
mod consumer;
mod decide;
mod shards;
mod target;
pub mod tensor_parallel;
mod tensors;
mod write;

pub use crate::checkpoint::staging::Staging;
pub use companions::Companions;
pub use config::{config_json, quantization_config};
pub use consumer::{Consumer, Format};
pub use decide::{Entry, Fate, Options, Plan};
pub use target::Target;
pub use tensors::{Output, outputs};
pub use write::{ClassReport, Job, Report, WrittenFile, write};

use crate::base::{Code, Exit};
use crate::checkpoint::write::WriteError;
use patchhost_runtime::error::{Refusal, RuntimeError};

/// Why a model was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// What was asked for makes no sense, or would destroy something.
    #[error("refused: {0}")]
    Usage(Refusal),
    /// The result would not load in its reader.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The model, the checkpoint or a patch.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The disk.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Exit for ExportError {
    fn exit(&self) -> Code {
        match self {
            Self::Usage(_) => Code::Usage,
            Self::Refused(_) => Code::Refused,
            Self::Runtime(e) => e.exit(),
            Self::Write(e) => e.exit(),
        }
    }

    fn parts(&self) -> Refusal {
        match self {
            Self::Usage(refusal) | Self::Refused(refusal) => refusal.clone(),
            Self::Runtime(e) => e.parts(),
            Self::Write(e) => e.parts(),
        }
    }
}

/// Shorthand of these modules.
pub type Result<T> = std::result::Result<T, ExportError>;

fn usage(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> ExportError {
    ExportError::Usage(Refusal::new(what, why, next))
}

fn refused(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> ExportError {
    ExportError::Refused(Refusal::new(what, why, next))
}

fn io(path: &std::path::Path) -> impl Fn(std::io::Error) -> ExportError + '_ {
    move |source| ExportError::Write(WriteError::Io { path: path.display().to_string(), source })
}
