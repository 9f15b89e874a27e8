//! The handle that everything writes to.

use super::chain::Head;
use super::file::{LedgerFile, LedgerOptions, Opened};
use super::gap::{Gap, Health};
use super::record::{self, CONTINUED, Entry, GAP, GENESIS};
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
    /// Events that are missing since the last record.
    gap: Option<Gap>,
    health: Health,
}

/// One event, as it is to be written.
#[derive(Debug, Clone)]
pub struct Event {
    /// What happened: `patch.staged`, `refit`, …
    pub name: &'static str,
    /// Who or what caused it.
    pub actor: Actor,
    /// What belongs to it.
    pub fields: Map<String, Value>,
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
        let health = Health { ok: true, ..Health::default() };
        let (head, recent, gap) = (found.head, found.recent, found.gap);
        let mut inner = Inner { file: Some(file), opening, head, recent, gap, health };
        inner.write_opening()?;
        if let Some(torn) = &found.torn {
            let moved_to = torn.moved_to.display();
            tracing::warn!(ledger = %path.display(), bytes = torn.bytes, %moved_to, "a torn last line was cut off");
        }
        Ok((Self(Arc::new(Mutex::new(inner))), Opened { records, genesis, torn: found.torn }))
    }

    /// The same chain without a file: the newest records are kept, the older ones forgotten.
    pub fn in_memory() -> Self {
        let mut inner = Inner {
            file: None,
            opening: Some(Opening::Genesis),
            head: None,
            recent: VecDeque::new(),
            gap: None,
            health: Health { ok: true, ..Health::default() },
        };
        // Without a file nothing can fail but a record that is too long, and this one is not.
        if let Err(error) = inner.write_opening() {
            tracing::error!(%error, "the genesis of a ledger in memory");
        }
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Adds a record. When this returns, it is in the file, and on the disk as [`super::Sync`] says. After an error the
    /// record is not in the ledger, and the chain is whole: the next one goes on from the last good one. What the event is
    /// about must not happen then; where it has happened already, use [`Ledger::note`].
    pub fn append(&self, event: &str, actor: &Actor, fields: Map<String, Value>) -> Result<Entry, LedgerError> {
        let mut added = self.inner().add(&[(event, actor, fields)])?;
        // One event in, one record out.
        added.pop().ok_or_else(|| LedgerError::Reserved { event: event.to_owned(), name: "none".to_owned() })
    }

    /// The same with several records: all of them are written, or none.
    pub fn append_all(&self, events: &[Event]) -> Result<Vec<Entry>, LedgerError> {
        let events: Vec<_> = events.iter().map(|e| (e.name, &e.actor, e.fields.clone())).collect();
        self.inner().add(&events)
    }

    /// Adds a record about what cannot be stopped any more. One that cannot be written is counted, and the next record that can
    /// be comes after one that says so.
    pub fn note(&self, event: &str, actor: &Actor, fields: Map<String, Value>) -> Result<(), LedgerError> {
        let mut inner = self.inner();
        inner.add(&[(event, actor, fields)]).map(drop).inspect_err(|error| inner.missed(event, error))
    }

    /// Whether records can be written, and how many could not be.
    pub fn health(&self) -> Health {
        self.inner().health.clone()
    }

    /// How many bytes the disk still takes.
    #[cfg(test)]
    pub(super) fn disk_takes(&self, room: Option<usize>) {
        if let Some(file) = &mut self.inner().file {
            file.room = room;
        }
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

    /// Writes records after what must stand before them.
    fn add(&mut self, events: &[(&str, &Actor, Map<String, Value>)]) -> Result<Vec<Entry>, LedgerError> {
        self.rotate_if_full();
        let gap = |this: &Self| this.gap.as_ref().map(Gap::fields);
        let added = self.write_opening().and_then(|()| self.write(gap(self), events));
        self.health.ok = added.is_ok();
        self.health.why = added.as_ref().err().map(|error| crate::base::text::clean(&error.why(), 300));
        added
    }

    /// Writes records, all of them or none; before them the one about those that are missing, where there are any.
    fn write(
        &mut self,
        gap: Option<Map<String, Value>>,
        events: &[(&str, &Actor, Map<String, Value>)],
    ) -> Result<Vec<Entry>, LedgerError> {
        let ledger = Actor::new("ledger");
        let gap = gap.map(|fields| (GAP, &ledger, fields));
        let (mut entries, mut lines, mut head) = (Vec::new(), Vec::new(), self.head);
        for (event, actor, fields) in gap.iter().chain(events) {
            let (seq, prev) = head.map_or((0, Digest::ZERO), |head| (head.seq + 1, head.hash));
            let (entry, line) = record::seal(seq, prev, event, actor, fields.clone())?;
            head = Some(Head { seq, hash: entry.hash });
            lines.extend(line);
            entries.push(entry);
        }
        if let Some(file) = &mut self.file {
            let names: Vec<&str> = entries.iter().map(|entry| entry.event.as_str()).collect();
            file.write(&lines, &names)?;
        }
        self.head = head;
        for entry in &entries {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(entry.clone());
        }
        if gap.is_some() {
            entries.remove(0);
            self.gap = None;
            self.keep_beside();
        }
        Ok(entries)
    }

    /// An event that happened is not in the ledger.
    fn missed(&mut self, event: &str, error: &LedgerError) {
        self.health.lost += 1;
        self.gap.get_or_insert_with(|| Gap::begin(&error.why())).add(event);
        self.keep_beside();
    }

    /// Keeps beside the ledger what is missing in it, for a process that dies before it can be said.
    fn keep_beside(&self) {
        let line = self.gap.as_ref().map(Gap::line).unwrap_or_default();
        if let Some(Err(error)) = self.file.as_ref().map(|file| file.keep_beside(&line)) {
            tracing::warn!(%error, "what is missing in the ledger could not be kept beside it");
        }
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
        // A file begins with this record: what is missing before it is said after it.
        self.write(None, &[(event, &Actor::new("ledger"), fields)])?;
        self.opening = None;
        Ok(())
    }
}

impl Drop for Inner {
    /// What is missing is said at the end, if it can be by then.
    fn drop(&mut self) {
        if self.gap.is_some()
            && let Err(error) = self.add(&[])
        {
            tracing::error!(%error, "the ledger ends without saying that events are missing in it");
        }
    }
}

/// Names this ledger, not this machine: 128 random bits, so that two ledgers never share a genesis.
fn host_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}
