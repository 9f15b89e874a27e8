//! The handle that everything writes to.

use super::chain::Head;
use super::file::{LedgerFile, LedgerOptions, Opened};
use super::record::{self, CONTINUED, Entry, GENESIS};
use super::{Actor, LedgerError};
use crate::base::Digest;
use serde_json::{Map, Value};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Records kept in memory, for `status` and the admin API.
const RECENT: usize = 1_024;

/// A ledger. Cheap to clone; all clones write one chain.
#[derive(Clone)]
pub struct Ledger(Arc<Mutex<Inner>>);

struct Inner {
    /// None: in memory only.
    file: Option<LedgerFile>,
    /// The first record of the file is still to be written.
    opening: Option<Opening>,
    /// Number and hash of the last record; none before the genesis.
    head: Option<Head>,
    recent: VecDeque<Entry>,
}

/// How a file begins.
enum Opening {
    Genesis,
    /// It goes on from this closed file.
    Continued(PathBuf),
}

impl Ledger {
    /// Opens the ledger at `path`, or begins one there. This process is its only writer until the last clone is dropped.
    pub fn open(path: &Path, options: LedgerOptions) -> Result<(Self, Opened), LedgerError> {
        let (file, found) = LedgerFile::open(path, options, RECENT)?;
        let opening = match (found.records, found.previous) {
            (0, Some(previous)) => Some(Opening::Continued(previous)),
            (0, None) => Some(Opening::Genesis),
            _ => None,
        };
        let genesis = matches!(opening, Some(Opening::Genesis));
        let records = found.records + u64::from(opening.is_some());
        let mut inner = Inner { file: Some(file), opening, head: found.head, recent: found.recent };
        inner.write_opening()?;
        if let Some(torn) = &found.torn {
            let moved_to = torn.moved_to.display();
            tracing::warn!(ledger = %path.display(), bytes = torn.bytes, %moved_to, "a torn last line was cut off");
        }
        Ok((Self(Arc::new(Mutex::new(inner))), Opened { records, genesis, torn: found.torn }))
    }

    /// The same chain without a file: the newest records are kept, the older ones forgotten.
    pub fn in_memory() -> Self {
        let mut inner = Inner { file: None, opening: Some(Opening::Genesis), head: None, recent: VecDeque::new() };
        // Without a file nothing can fail but a record that is too long, and this one is not.
        if let Err(error) = inner.write_opening() {
            tracing::error!(%error, "the genesis of a ledger in memory");
        }
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Adds a record. When this returns, it is in the file, and on the disk as [`super::Sync`] says. After an error the
    /// record is not in the ledger, and the chain is whole: the next one goes on from the last good one.
    pub fn append(&self, event: &str, actor: &Actor, fields: Map<String, Value>) -> Result<Entry, LedgerError> {
        let mut inner = self.inner();
        inner.rotate_if_full();
        inner.write_opening()?;
        inner.append(event, actor, fields)
    }

    /// The newest `n` records (at most 1,024 are kept in memory), oldest first.
    pub fn recent(&self, n: usize) -> Vec<Entry> {
        let inner = self.inner();
        inner.recent.iter().skip(inner.recent.len().saturating_sub(n)).cloned().collect()
    }

    /// The last record. Kept elsewhere, it shows later whether the end of the ledger is still there.
    pub fn head(&self) -> Head {
        self.inner().head()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves the chain whole: each record is complete before `head` moves.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("head", &self.head()).finish_non_exhaustive()
    }
}

impl Inner {
    fn head(&self) -> Head {
        // Every way to make a ledger writes its first record, so the zeros are never seen.
        self.head.unwrap_or(Head { seq: 0, hash: Digest::ZERO })
    }

    fn append(&mut self, event: &str, actor: &Actor, fields: Map<String, Value>) -> Result<Entry, LedgerError> {
        let (seq, prev) = self.head.map_or((0, Digest::ZERO), |head| (head.seq + 1, head.hash));
        let (entry, line) = record::seal(seq, prev, event, actor, fields)?;
        if let Some(file) = &mut self.file {
            file.write(&line, event)?;
        }
        self.head = Some(Head { seq, hash: entry.hash });
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(entry.clone());
        Ok(entry)
    }

    /// A file that cannot be rotated grows on: an event is worth more than a limit.
    fn rotate_if_full(&mut self) {
        if self.opening.is_some() {
            return;
        }
        let Some(file) = self.file.as_mut().filter(|file| file.is_full()) else { return };
        match file.rotate() {
            Ok(closed) => self.opening = Some(Opening::Continued(closed)),
            Err(error) => tracing::warn!(%error, "the ledger could not be rotated and grows on"),
        }
    }

    fn write_opening(&mut self) -> Result<(), LedgerError> {
        let Some(opening) = &self.opening else { return Ok(()) };
        let mut fields = Map::new();
        fields.insert("patchhost".into(), env!("CARGO_PKG_VERSION").into());
        let event = match opening {
            Opening::Genesis => {
                fields.insert("host".into(), host_id().into());
                GENESIS
            }
            Opening::Continued(previous) => {
                let name = previous.file_name().unwrap_or_default().to_string_lossy();
                fields.insert("previous".into(), crate::base::text::clean(&name, 255).into());
                CONTINUED
            }
        };
        self.append(event, &Actor::new("ledger"), fields)?;
        self.opening = None;
        Ok(())
    }
}

/// Names this ledger, not this machine: 128 random bits, so that two ledgers never share a genesis.
fn host_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}
