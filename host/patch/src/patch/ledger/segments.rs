//! The files of one ledger: `FILE.000001`, `FILE.000002`, …, and `FILE`, which is being written.

use super::LedgerError;
use super::file::{LOCK_SUFFIX, lock_lines};
use super::record::{self, CONTINUED, GENESIS};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Digits of a segment's number. Longer numbers are allowed, shorter ones are not ours.
const DIGITS: usize = 6;

/// The files of one ledger, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    /// The file that is being written; it may not be there.
    current: PathBuf,
    /// Number and path of the closed ones, in order.
    closed: Vec<(u64, PathBuf)>,
    /// Only this one closed segment is meant.
    single: bool,
}

impl Segments {
    /// The segments of the ledger that is written to `current`.
    pub(super) fn of(current: &Path) -> std::io::Result<Self> {
        let mut closed = Vec::new();
        let name = current.file_name().unwrap_or_default();
        for entry in std::fs::read_dir(folder(current))? {
            let entry = entry?;
            if let Some((base, number)) = numbered(&entry.file_name())
                && base == name
            {
                closed.push((number, entry.path()));
            }
        }
        closed.sort_unstable();
        Ok(Self { current: current.to_path_buf(), closed, single: false })
    }

    /// What a user means by a path: a ledger, one closed segment of it, or the folder of exactly one ledger.
    pub fn find(path: &Path) -> Result<Self, LedgerError> {
        let io = |source| LedgerError::Io { doing: "reading", path: path.to_path_buf(), source };
        let not = |why: String| LedgerError::NotALedger { path: path.to_path_buf(), why };
        if path.is_dir() {
            let bases = ledgers_in(path).map_err(io)?;
            let mut names = bases.iter();
            return match (names.next(), names.next()) {
                (Some(only), None) => Self::of(&path.join(only)).map_err(io),
                (None, _) => Err(not("no file in this folder begins as a ledger does".to_owned())),
                _ => {
                    let names: Vec<_> = bases.iter().take(4).map(|name| name.to_string_lossy().into_owned()).collect();
                    Err(not(format!("the folder holds {} ledgers: {}", bases.len(), names.join(", "))))
                }
            };
        }
        if let Some((_, number)) = path.file_name().and_then(numbered)
            && path.is_file()
        {
            return Ok(Self { current: path.to_path_buf(), closed: vec![(number, path.to_path_buf())], single: true });
        }
        let segments = Self::of(path).map_err(io)?;
        if !path.is_file() && segments.closed.is_empty() {
            let source = patchhost_runtime::files::open(path).err().unwrap_or(std::io::ErrorKind::NotFound.into());
            return Err(io(source));
        }
        Ok(segments)
    }

    /// The closed ones, oldest first.
    pub(super) fn closed(&self) -> impl Iterator<Item = &Path> {
        self.closed.iter().map(|(_, path)| path.as_path())
    }

    /// Whether one closed segment was asked for by name.
    pub(super) fn is_single(&self) -> bool {
        self.single
    }

    /// All files that are there, oldest first.
    pub(super) fn files(&self) -> Vec<&Path> {
        let current = (!self.single && self.current.is_file()).then_some(self.current.as_path());
        self.closed().chain(current).collect()
    }

    /// How many events the writer could not write and could not say so in the ledger yet.
    pub(super) fn unsaid(&self) -> Option<u64> {
        if self.single {
            return None;
        }
        let lock = std::fs::File::open(beside(&self.current, LOCK_SUFFIX)).ok()?;
        if !lock.metadata().is_ok_and(|meta| meta.is_file()) {
            return None;
        }
        lock_lines(&lock).ok()?.1.map(|gap| gap.lost())
    }

    /// Name of the file that the next closed segment gets.
    pub(super) fn next_closed(&self) -> PathBuf {
        let number = self.closed.last().map_or(1, |(number, _)| number + 1);
        beside(&self.current, &format!(".{number:0width$}", width = DIGITS))
    }
}

/// The path with something after its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

/// The folder of a file.
pub(super) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Base name and number of a closed segment.
fn numbered(name: &OsStr) -> Option<(OsString, u64)> {
    let (base, digits) = name.to_str()?.rsplit_once('.')?;
    let ours = digits.len() >= DIGITS && digits.bytes().all(|b| b.is_ascii_digit()) && !base.is_empty();
    ours.then(|| digits.parse().ok().map(|number| (base.into(), number))).flatten()
}

/// Names of the ledgers in a folder: files whose first line is the first record of one.
fn ledgers_in(folder: &Path) -> std::io::Result<BTreeSet<OsString>> {
    let mut bases = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().is_file() && begins_as_ledger(&entry.path()) {
            let name = entry.file_name();
            bases.insert(numbered(&name).map_or(name, |(base, _)| base));
        }
    }
    Ok(bases)
}

fn begins_as_ledger(path: &Path) -> bool {
    let Ok(file) = patchhost_runtime::files::open(path) else { return false };
    let mut line = String::new();
    let read = BufReader::new(file.take(record::LINE_BYTES as u64)).read_line(&mut line);
    read.is_ok() && record::parse(&line).is_some_and(|entry| [GENESIS, CONTINUED].contains(&entry.event.as_str()))
}
