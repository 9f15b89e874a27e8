//! The file of a ledger that is being written: its lock, its torn end, its size, its segments.

use super::LedgerError;
use super::chain::{Broken, Chain, Head};
use super::gap::Gap;
use super::read::{Lines, Piece};
use super::record::Entry;
use super::segments::{Segments, beside, folder};
use crate::base::text;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Suffix of the lock file.
pub(super) const LOCK_SUFFIX: &str = ".lock";
/// Bytes of its first line, which names the holder.
const HOLDER_BYTES: usize = 64;
/// Bytes of its second line, which says what could not be written.
const LOST_BYTES: usize = 128;

/// When a record is put on the disk before `append` returns. A record that was written and not synced survives the
/// death of the process, not that of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sync {
    /// Every record but those that only count: events whose name ends in `.counts` or `.calls`.
    #[default]
    StateChanges,
    /// Every record.
    Always,
    /// None: for tests and for file systems where it means nothing.
    Never,
}

/// How a ledger is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerOptions {
    /// A file that has reached this many bytes is closed, and another begun.
    pub rotate_bytes: u64,
    /// How many closed files are kept; none: all of them. What is removed is no longer verified.
    pub keep: Option<usize>,
    /// When records are put on the disk.
    pub sync: Sync,
}

impl Default for LedgerOptions {
    fn default() -> Self {
        Self { rotate_bytes: 16 << 20, keep: None, sync: Sync::default() }
    }
}

/// What was found when a ledger was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Records in the file that is being written, the one that opening may have added included.
    pub records: u64,
    /// Whether the ledger begins here. Else the chain of an older one goes on.
    pub genesis: bool,
    /// What a killed writer had left at the end.
    pub torn: Option<Torn>,
}

/// A last line that was never finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    pub bytes: u64,
    /// Where they are now.
    pub moved_to: PathBuf,
}

/// What is in a file when it is opened.
pub(super) struct Found {
    /// The last record of the chain, in this file or in the segment before.
    pub(super) head: Option<Head>,
    /// Records of this file.
    pub(super) records: u64,
    /// The newest of them.
    pub(super) recent: VecDeque<Entry>,
    /// What was cut off.
    pub(super) torn: Option<Torn>,
    /// The segment that an empty file goes on from.
    pub(super) previous: Option<PathBuf>,
    /// What an earlier process could not write.
    pub(super) gap: Option<Gap>,
}

/// The one writer of a ledger file.
pub(super) struct LedgerFile {
    path: PathBuf,
    file: File,
    /// Bytes of whole records. What is beyond was not written completely and is cut off before the next write.
    good: u64,
    /// A write failed: what is beyond `good` is ours.
    dirty: bool,
    options: LedgerOptions,
    /// Held as long as this writer lives; the kernel gives it back when the process dies. Has what could not be written.
    lock: File,
    /// How many bytes the disk still takes, in tests.
    #[cfg(test)]
    pub(super) room: Option<usize>,
}

impl LedgerFile {
    /// Locks the ledger, reads what is there, and moves a torn end out of the way.
    pub(super) fn open(path: &Path, options: LedgerOptions, keep_recent: usize) -> Result<(Self, Found), LedgerError> {
        let (lock, gap) = lock(path)?;
        let io = |doing, source| LedgerError::Io { doing, path: path.to_path_buf(), source };
        let segments = Segments::of(path).map_err(|e| io("opening the ledger", e))?;
        let file = append_to(path).map_err(|e| io("opening the ledger", e))?;
        if !file.metadata().is_ok_and(|meta| meta.is_file()) {
            return Err(LedgerError::NotALedger { path: path.to_path_buf(), why: "it is not a plain file".to_owned() });
        }
        let (mut found, good) = scan(path, keep_recent)?;
        found.gap = gap;
        let mut this = Self {
            path: path.to_path_buf(),
            file,
            good,
            dirty: false,
            options,
            lock,
            #[cfg(test)]
            room: None,
        };
        found.torn = this.cut_torn().map_err(|e| io("moving the torn end of", e))?;
        if found.records == 0
            && let Some(previous) = segments.closed().last()
        {
            let (older, _) = scan(previous, keep_recent)?;
            found.head = older.head;
            found.recent = older.recent;
            found.previous = Some(previous.to_path_buf());
        }
        sync_folder(path).map_err(|e| io("opening the ledger", e))?;
        Ok((this, found))
    }

    /// Writes whole lines, of these events. Where that fails, nothing of them stays in the file.
    pub(super) fn write(&mut self, lines: &[u8], events: &[&str]) -> Result<(), LedgerError> {
        self.still_ours()?;
        let io = |source| LedgerError::Io { doing: "writing the ledger", path: self.path.clone(), source };
        let written = self.put(lines).and_then(|()| match events.iter().any(|event| self.syncs(event)) {
            true => self.file.sync_data(),
            false => Ok(()),
        });
        if let Err(error) = written {
            // If this fails too, the next write tries again before it writes.
            self.dirty = self.file.set_len(self.good).is_err();
            return Err(io(error));
        }
        self.good += lines.len() as u64;
        Ok(())
    }

    fn put(&self, lines: &[u8]) -> std::io::Result<()> {
        #[cfg(test)]
        if let Some(room) = self.room.filter(|room| *room < lines.len()) {
            (&self.file).write_all(&lines[..room])?;
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        (&self.file).write_all(lines)
    }

    /// Keeps a line about what could not be written, or forgets it. The bytes are there since the ledger was opened, so a full
    /// disk takes them.
    pub(super) fn keep_beside(&self, line: &str) -> std::io::Result<()> {
        let mut place = vec![b' '; LOST_BYTES - 1];
        place.push(b'\n');
        line.bytes().zip(&mut place).for_each(|(byte, at)| *at = byte);
        (&self.lock).seek(SeekFrom::Start(HOLDER_BYTES as u64))?;
        (&self.lock).write_all(&place)?;
        self.lock.sync_data()
    }

    /// Whether the file has grown to its limit.
    pub(super) fn is_full(&self) -> bool {
        self.good >= self.options.rotate_bytes.max(1)
    }

    /// Closes the file under the next number and begins an empty one. Gives the name of the closed one.
    pub(super) fn rotate(&mut self) -> Result<PathBuf, LedgerError> {
        let io = |source| LedgerError::Io { doing: "rotating the ledger", path: self.path.clone(), source };
        self.file.sync_data().map_err(io)?;
        let segments = Segments::of(&self.path).map_err(io)?;
        let closed = segments.next_closed();
        std::fs::rename(&self.path, &closed).map_err(io)?;
        match append_to(&self.path) {
            Ok(file) => (self.file, self.good) = (file, 0),
            Err(error) => {
                // Without the new file the old one goes on under its old name.
                std::fs::rename(&closed, &self.path).map_err(io)?;
                return Err(io(error));
            }
        }
        // From here on the new file is the one that is written: what fails now must not look as if it were not.
        if let Err(error) = sync_folder(&self.path).and_then(|()| self.remove_old()) {
            tracing::warn!(ledger = %self.path.display(), %error, "the ledger was rotated, but not tidied up");
        }
        Ok(closed)
    }

    /// Removes what is older than the closed files that are kept.
    fn remove_old(&self) -> std::io::Result<()> {
        let Some(keep) = self.options.keep else { return Ok(()) };
        let segments = Segments::of(&self.path)?;
        let all: Vec<_> = segments.closed().collect();
        all[..all.len().saturating_sub(keep)].iter().try_for_each(std::fs::remove_file)
    }

    fn syncs(&self, event: &str) -> bool {
        match self.options.sync {
            Sync::Always => true,
            Sync::Never => false,
            Sync::StateChanges => !event.ends_with(".counts") && !event.ends_with(".calls"),
        }
    }

    /// The file must still be the one at its path, and as long as we left it: an event written to a file that was moved
    /// away would be lost without a word.
    fn still_ours(&mut self) -> Result<(), LedgerError> {
        let io = |source| LedgerError::Io { doing: "writing the ledger", path: self.path.clone(), source };
        let changed = |why: String| LedgerError::Changed { path: self.path.clone(), why };
        if self.dirty {
            self.file.set_len(self.good).map_err(io)?;
        }
        let length = self.file.metadata().map_err(io)?.len();
        if length != self.good {
            return Err(changed(format!("it has {length} bytes, we left it with {}", self.good)));
        }
        match same_file(&self.file, &self.path) {
            true => {
                self.dirty = false;
                Ok(())
            }
            false => Err(changed("the file was moved, removed or replaced while it was open".to_owned())),
        }
    }

    /// Moves what follows the last whole line into a file of its own.
    fn cut_torn(&mut self) -> std::io::Result<Option<Torn>> {
        let length = self.file.metadata()?.len();
        if length <= self.good {
            return Ok(None);
        }
        let mut number = 1;
        let (mut to, moved_to) = loop {
            let candidate = beside(&self.path, &format!(".torn.{number}"));
            match OpenOptions::new().write(true).create_new(true).open(&candidate) {
                Ok(file) => break (file, candidate),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(error),
            }
        };
        let copied = File::open(&self.path).and_then(|mut from| {
            from.seek(SeekFrom::Start(self.good))?;
            let bytes = std::io::copy(&mut from, &mut to)?;
            to.sync_all().map(|()| bytes)
        });
        let bytes = copied.inspect_err(|_| {
            // A full disk: an empty file for each try would be no help.
            let _ = std::fs::remove_file(&moved_to);
        })?;
        self.file.set_len(self.good)?;
        self.file.sync_data()?;
        Ok(Some(Torn { bytes, moved_to }))
    }
}

/// Reads a file and checks its chain, up to a torn last line. Gives the bytes of whole lines too.
fn scan(path: &Path, keep_recent: usize) -> Result<(Found, u64), LedgerError> {
    let io = |source| LedgerError::Io { doing: "reading the ledger", path: path.to_path_buf(), source };
    let mut lines = Lines::new(patchhost_runtime::files::open(path).map_err(io)?);
    let (mut chain, mut recent, mut good) = (Chain::after(None), VecDeque::new(), 0);
    while let Some(piece) = lines.next().map_err(io)? {
        let judged = match piece {
            Piece::Whole(line) => {
                good += line.len() as u64 + 1;
                chain.accept(&line)
            }
            Piece::Torn(_) => break,
            Piece::TooLong => Err("the line is longer than any record".to_owned()),
        };
        let entry = judged.map_err(|why| {
            let file = text::clean(&path.display().to_string(), 200);
            let at = Broken { file, line: chain.records() + 1, seq: chain.next(), why };
            LedgerError::Broken { doing: "continuing the ledger", at }
        })?;
        recent.push_back(entry);
        if recent.len() > keep_recent {
            recent.pop_front();
        }
    }
    let (head, records) = (chain.head(), chain.records());
    Ok((Found { head, records, recent, torn: None, previous: None, gap: None }, good))
}

/// Takes the lock of a ledger, or says who has it. Gives what an earlier holder could not write, too.
fn lock(path: &Path) -> Result<(File, Option<Gap>), LedgerError> {
    let lock_path = beside(path, LOCK_SUFFIX);
    let io = |source| LedgerError::Io { doing: "locking the ledger", path: lock_path.clone(), source };
    // Not truncated: until the lock is ours, what stands in it is the holder's.
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path).map_err(io)?;
    let (holder, lost) = lock_lines(&file).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = match text::clean(holder.trim(), 64) {
                empty if empty.is_empty() => "another process".to_owned(),
                holder => holder,
            };
            return Err(LedgerError::Busy { path: path.to_path_buf(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    let holder = format!("{:<width$}\n", format!("process {}", std::process::id()), width = HOLDER_BYTES - 1);
    let mut place = holder.into_bytes();
    if lost.is_none() {
        place.extend([b' '; LOST_BYTES - 1]);
        place.push(b'\n');
    }
    // Synced, so that the bytes have their place on the disk before it is full.
    (&file).seek(SeekFrom::Start(0)).and_then(|_| (&file).write_all(&place)).map_err(io)?;
    file.sync_data().map_err(io)?;
    Ok((file, lost))
}

/// What stands in the lock file of a ledger: its holder, and what that could not write.
pub(super) fn lock_lines(file: &File) -> std::io::Result<(String, Option<Gap>)> {
    let mut text = String::new();
    let mut from = file;
    from.seek(SeekFrom::Start(0))?;
    // Only for messages: a lock file that says nothing, or no text, is no reason for another error.
    if from.take((HOLDER_BYTES + LOST_BYTES) as u64).read_to_string(&mut text).is_err() {
        text.clear();
    }
    let (holder, lost) = text.split_once('\n').unwrap_or((&text, ""));
    Ok((holder.to_owned(), Gap::of_line(lost)))
}

fn append_to(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Who did what and why is for the operator; others get to read it when the operator says so.
        options.mode(0o640);
    }
    patchhost_runtime::files::open_with(&mut options, path)
}

/// A new or renamed file is only there for good when its folder is on the disk.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    match cfg!(unix) {
        true => File::open(folder(path))?.sync_all(),
        false => Ok(()),
    }
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_: &File, path: &Path) -> bool {
    path.is_file()
}
