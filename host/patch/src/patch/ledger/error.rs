//! Why a ledger was not opened, written or believed.

use super::Broken;
use crate::base::{Code, Exit};
use patchhost_runtime::error::Refusal;
use std::path::PathBuf;

/// What went wrong. The file is as it was.
#[derive(Debug, thiserror::Error)]
#[error("refused: {}", self.parts())]
pub enum LedgerError {
    /// The disk.
    Io {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// From the operating system.
        #[source]
        source: std::io::Error,
    },
    /// Another process writes this ledger.
    Busy {
        /// The ledger.
        path: PathBuf,
        /// What the lock file says about its holder.
        holder: String,
    },
    /// The chain does not hold.
    Broken {
        /// Where.
        at: Broken,
        /// What was to be done with the ledger.
        doing: &'static str,
    },
    /// The chain holds, but does not reach the head that was given.
    Head {
        /// The head that was given.
        expected: String,
        /// The head of the ledger.
        found: String,
    },
    /// Not the path of a ledger.
    NotALedger { path: PathBuf, why: String },
    /// Someone else changed the file while it was open.
    Changed {
        /// The ledger.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// A field has a name that the ledger uses.
    Reserved {
        event: String,
        /// The field.
        name: String,
    },
    /// A record is too long.
    TooLarge {
        event: String,
        /// Bytes of its line.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A field is nested too deep to be read again.
    TooDeep {
        event: String,
        /// Levels allowed.
        limit: usize,
    },
}

impl LedgerError {
    fn what(&self) -> String {
        match self {
            Self::Io { doing, path, .. } => format!("{doing} `{}`", path.display()),
            Self::Busy { path, .. } => format!("a second writer of the ledger `{}`", path.display()),
            Self::Broken { doing, at } => format!("{doing}: the chain breaks at seq {}", at.seq),
            Self::Head { .. } => "the end of the ledger".to_owned(),
            Self::NotALedger { path, .. } => format!("`{}` as a ledger", path.display()),
            Self::Changed { path, .. } => format!("writing the ledger `{}`", path.display()),
            Self::Reserved { event, .. } | Self::TooLarge { event, .. } | Self::TooDeep { event, .. } => {
                format!("the record `{event}`")
            }
        }
    }

    pub(super) fn why(&self) -> String {
        match self {
            Self::Io { source, .. } => source.to_string(),
            Self::Busy { holder, .. } => format!("{holder} has it open; two writers would break the chain"),
            Self::Broken { at, .. } => at.to_string(),
            Self::Head { expected, found } => format!("no record has the hash {expected}; the last one is {found}"),
            Self::NotALedger { why, .. } | Self::Changed { why, .. } => why.clone(),
            Self::Reserved { name, .. } => format!("its field `{name}` has a name that every record has already"),
            Self::TooLarge { bytes, limit, .. } => format!("its line has {bytes} bytes; a line has at most {limit}"),
            Self::TooDeep { limit, .. } => format!("a field is nested deeper than {limit} levels"),
        }
    }

    fn next(&self) -> &'static str {
        match self {
            Self::Io { .. } => "check the path, its permissions and the free space",
            Self::Busy { .. } => "give each process a ledger file of its own, or end the other process",
            Self::Broken { .. } => {
                "keep the file as it is, look at it with `patchhost log show`, and start a ledger under another name"
            }
            Self::Head { .. } => "the end was cut off, or the head belongs to another ledger: compare with a copy",
            Self::NotALedger { .. } => "give the file that `--ledger` named, or its folder",
            Self::Changed { .. } => "let only patchhost write this file (it rotates by itself), then start again",
            Self::Reserved { .. } | Self::TooLarge { .. } | Self::TooDeep { .. } => {
                "report this: it is an error of patchhost"
            }
        }
    }
}

impl Exit for LedgerError {
    fn exit(&self) -> Code {
        match self {
            Self::Broken { .. } | Self::Head { .. } | Self::Busy { .. } => Code::Refused,
            Self::NotALedger { .. } => Code::Usage,
            Self::Io { source, .. } => Code::of_io(source),
            Self::Changed { .. } | Self::Reserved { .. } | Self::TooLarge { .. } | Self::TooDeep { .. } => Code::Host,
        }
    }

    fn parts(&self) -> Refusal {
        Refusal { what: self.what(), why: self.why(), next: self.next().to_owned() }
    }

    fn details(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut fields = serde_json::Map::new();
        if let Self::Broken { at, .. } = self {
            fields.insert("first_bad_seq".to_owned(), at.seq.into());
            fields.insert("broken".to_owned(), serde_json::json!(at));
        }
        fields
    }
}
