//! Why something was not recorded, or cannot be replayed.

use crate::base::text;
use crate::base::{Code, Exit, Hook};
use crate::patch::StageError;
use patchhost_runtime::error::Refusal;
use std::io;
use std::path::{Path, PathBuf};

/// A recording could not be made or read. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("refused: {}", self.parts())]
pub enum RecordingError {
    /// The file to record to could not be made.
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The limit leaves no room for anything.
    Limit {
        /// The file.
        path: PathBuf,
        /// What was given.
        limit: u64,
        /// What is needed.
        least: u64,
    },
    /// The file cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else, or of another version.
    NotARecording {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A frame is not what was written.
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
    NoPatch {
        /// Its name in the recording.
        patch: String,
        /// Why there is none.
        why: String,
        /// What to do.
        next: String,
    },
    /// The component that is to answer has other hooks.
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

    fn parts(&self) -> Refusal {
        let recording = |path: &Path| format!("recording `{}`", path.display());
        let recording_to = |path: &Path| format!("recording to `{}`", path.display());
        let replay = |patch: &str| format!("replay of `{patch}`");
        let (what, why, next) = match self {
            Self::Create { path, source } => (recording_to(path), source.to_string(), advice(source).to_owned()),
            Self::Limit { path, limit, least } => (
                recording_to(path),
                format!("{limit} bytes at most are not enough for the head of a recording ({least})"),
                "give a larger --record-max-bytes, or none for 256 MiB".to_owned(),
            ),
            Self::Unreadable { path, source } => {
                (recording(path), source.to_string(), "check the path and its permissions".to_owned())
            }
            Self::NotARecording { path, why } => {
                (recording(path), why.clone(), "give a file that `--record` wrote".to_owned())
            }
            Self::Damaged { path, frame, at, why } => (
                recording(path),
                format!("frame {frame} at byte {at}: {why}"),
                "copy the file again from where it was recorded; nothing of it was replayed".to_owned(),
            ),
            Self::NoPatch { patch, why, next } => (replay(patch), why.clone(), next.clone()),
            Self::NoHook { patch, component, hook } => (
                replay(patch),
                format!("the recording holds calls of {hook}, which `{component}` does not claim"),
                format!("give a component that claims {hook}"),
            ),
            Self::Stage(e) => return e.parts(),
        };
        Refusal { what, why, next }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AlreadyExists => "give another name, or remove the file: a recording is never written over",
        _ => "check the folder and its permissions",
    }
}
