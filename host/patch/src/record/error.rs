//! Why something was not recorded, or cannot be replayed.

use crate::base::text;
use crate::base::{Code, Exit, Hook};
use crate::patch::StageError;
use std::io;
use std::path::{Path, PathBuf};

/// A recording could not be made or read. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file to record to could not be made.
    #[error("refused: recording to `{}`\n  why: {source}\n  next: {}", path.display(), advice(source))]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The limit leaves no room for anything.
    #[error(
        "refused: recording to `{}`\n  why: {limit} bytes at most are not enough for the head of a recording ({least})\n  \
         next: give a larger --record-max-bytes, or none for 256 MiB",
        path.display()
    )]
    Limit {
        /// The file.
        path: PathBuf,
        /// What was given.
        limit: u64,
        /// What is needed.
        least: u64,
    },
    /// The file cannot be read.
    #[error("refused: recording `{}`\n  why: {source}\n  next: check the path and its permissions", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else, or of another version.
    #[error("refused: recording `{}`\n  why: {why}\n  next: give a file that `--record` wrote", path.display())]
    NotARecording {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A frame is not what was written.
    #[error(
        "refused: recording `{}`\n  why: frame {frame} at byte {at}: {why}\n  next: copy the file again from where it was \
         recorded; nothing of it was replayed",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counts from 0.
        frame: u64,
        /// Where it begins.
        at: u64,
        /// What is wrong.
        why: String,
    },
    /// No patch to ask.
    #[error("refused: replay of `{patch}`\n  why: {why}\n  next: {next}")]
    NoPatch {
        /// Its name in the recording.
        patch: String,
        /// Why there is none.
        why: String,
        /// What to do.
        next: String,
    },
    /// The component that is to answer has other hooks.
    #[error(
        "refused: replay of `{patch}`\n  why: the recording holds calls of {hook}, which `{component}` does not claim\n  \
         next: give a component that claims {hook}"
    )]
    NoHook {
        /// Its name in the recording.
        patch: String,
        /// What was to answer in its place.
        component: String,
        hook: Hook,
    },
    /// The patch did not start.
    #[error(transparent)]
    Stage(#[from] StageError),
}

impl RecordingError {
    pub(super) fn not(path: &Path, why: impl Into<String>) -> Self {
        RecordingError::NotARecording { path: path.to_owned(), why: text::clean(&why.into(), 200) }
    }
}

impl Exit for RecordingError {
    fn exit(&self) -> Code {
        match self {
            Self::NoPatch { .. } | Self::NoHook { .. } => Code::Refused,
            Self::Stage(e) => e.exit(),
            Self::Create { .. }
            | Self::Limit { .. }
            | Self::Unreadable { .. }
            | Self::NotARecording { .. }
            | Self::Damaged { .. } => Code::Usage,
        }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AlreadyExists => "give another name, or remove the file: a recording is never written over",
        _ => "check the folder and its permissions",
    }
}
