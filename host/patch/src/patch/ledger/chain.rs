//! The chain: what the next record must say, and where it stops being true.

use super::record::{self, CONTINUED, Entry, GENESIS};
use crate::base::Digest;
use serde::Serialize;
use std::fmt;

/// The last record of a ledger, by number and hash. Kept elsewhere, it shows when the end of a ledger was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Sequence number of the last record.
    pub seq: u64,
    pub hash: Digest,
}

/// Where a chain breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// Name of the file.
    pub file: String,
    /// Line of that file, from 1.
    pub line: u64,
    /// The sequence number that should stand there.
    pub seq: u64,
    /// What stands there instead.
    pub why: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record seq {} (`{}`, line {}): {}", self.seq, self.file, self.line, self.why)
    }
}

/// Follows the records of a ledger one by one.
#[derive(Debug, Clone, Default)]
pub(super) struct Chain {
    head: Option<Head>,
    first: Option<u64>,
    records: u64,
}

impl Chain {
    /// A chain that goes on after `head`.
    pub(super) fn after(head: Option<Head>) -> Self {
        Self { head, first: None, records: 0 }
    }

    /// The last good record.
    pub(super) fn head(&self) -> Option<Head> {
        self.head
    }

    /// Sequence number of the first record seen.
    pub(super) fn first(&self) -> Option<u64> {
        self.first
    }

    /// Records seen.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// The sequence number that comes next.
    pub(super) fn next(&self) -> u64 {
        self.head.map_or(0, |head| head.seq + 1)
    }

    /// Checks the next line, without its line feed. The error says what is wrong.
    pub(super) fn accept(&mut self, line: &[u8]) -> Result<Entry, String> {
        let entry = record::open(line)?;
        match self.head {
            Some(head) if entry.seq != head.seq + 1 => {
                return Err(format!(
                    "it has seq {}, expected {}: lines are missing, moved or inserted",
                    entry.seq,
                    head.seq + 1
                ));
            }
            Some(head) if entry.prev != head.hash => {
                return Err(format!("its `prev` is {}, the record before has the hash {}", entry.prev, head.hash));
            }
            None if entry.event == GENESIS && (entry.seq != 0 || entry.prev != Digest::ZERO) => {
                return Err("the genesis has seq 0 and a `prev` of zeros; this one does not".to_owned());
            }
            None if entry.event != GENESIS && (entry.event != CONTINUED || entry.seq == 0) => {
                return Err(format!(
                    "a ledger begins with `{GENESIS}` or, in a later file, `{CONTINUED}`: lines are missing"
                ));
            }
            _ => {}
        }
        self.head = Some(Head { seq: entry.seq, hash: entry.hash });
        self.first.get_or_insert(entry.seq);
        self.records += 1;
        Ok(entry)
    }
}
