//! Reading a ledger: is its chain whole, and what does it say. Needs no lock: a record that is just being written looks
//! like a torn last line.

use super::chain::{Broken, Chain, Head};
use super::record::{self, Entry, GAP, LINE_BYTES};
use super::{LedgerError, Segments};
use crate::base::{Digest, text};
use patchhost_runtime::files;
use serde::Serialize;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// How often a reading is begun anew because the writer closed a segment meanwhile.
const ATTEMPTS: usize = 4;

/// A ledger whose chain holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Files read.
    pub files: usize,
    pub records: u64,
    /// Sequence number of the first record.
    pub first_seq: Option<u64>,
    /// The last record.
    pub head: Option<Head>,
    /// Events that could not be written, as gap records (and a writer that cannot write now) say.
    pub lost: u64,
    /// What is worth knowing and not wrong with the chain: gaps, a torn last line, older segments that are not here.
    pub notes: Vec<String>,
}

/// Records of a ledger, believed or not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// The records, oldest first.
    pub records: Vec<Entry>,
    /// Lines that are no records, and the like.
    pub notes: Vec<String>,
}

/// One line of a file.
pub(super) enum Piece {
    /// A whole line, without its line feed.
    Whole(Vec<u8>),
    /// The end of the file, without a line feed.
    Torn(Vec<u8>),
    /// More bytes than a line may have.
    TooLong,
}

/// Reads a file line by line, bounded.
pub(super) struct Lines(BufReader<File>);

impl Lines {
    pub(super) fn new(file: File) -> Self {
        Self(BufReader::with_capacity(1 << 16, file))
    }

    pub(super) fn next(&mut self) -> std::io::Result<Option<Piece>> {
        let mut line = Vec::new();
        self.0.by_ref().take(LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
        Ok(match line.pop() {
            None => None,
            Some(b'\n') => Some(Piece::Whole(line)),
            Some(_) if line.len() >= LINE_BYTES => Some(Piece::TooLong),
            Some(last) => {
                line.push(last);
                Some(Piece::Torn(line))
            }
        })
    }
}

/// Checks every record of every segment. `head`: the hash of a record that must be in it, kept from before.
pub fn verify(path: &Path, head: Option<&Digest>) -> Result<Verified, LedgerError> {
    let mut attempt = 1;
    loop {
        let segments = Segments::find(path)?;
        let result = check(&segments, head);
        // The writer may have closed a segment between the listing and the reading: then the listing is another now.
        let moved = Segments::find(path).is_ok_and(|now| now != segments);
        if result.is_ok() || !moved || attempt == ATTEMPTS {
            return result;
        }
        attempt += 1;
    }
}

fn check(segments: &Segments, expected: Option<&Digest>) -> Result<Verified, LedgerError> {
    let files = segments.files();
    let (mut chain, mut notes, mut head_seen, mut lost) = (Chain::default(), Vec::new(), false, 0);
    for (at, path) in files.iter().enumerate() {
        let io = |source| LedgerError::Io { doing: "reading", path: path.to_path_buf(), source };
        let mut lines = Lines::new(files::open(path).map_err(io)?);
        let mut number = 0;
        while let Some(piece) = lines.next().map_err(io)? {
            number += 1;
            let last = at + 1 == files.len() && !segments.is_single();
            let judged = match piece {
                Piece::Whole(line) => chain.accept(&line).map(Some),
                Piece::TooLong => Err(format!("the line has more than {LINE_BYTES} bytes")),
                Piece::Torn(line) => match last {
                    true => torn(&line).map(|()| {
                        let bytes = line.len();
                        let after = chain.head().map_or("at the start".into(), |head| format!("after seq {}", head.seq));
                        notes.push(format!(
                            "torn last line {after}: {bytes} bytes without a line feed, left by a writer that was killed or is just writing"
                        ));
                        None
                    }),
                    false => Err("the line has no line feed, and this is not the newest file".to_owned()),
                },
            };
            let entry = judged.map_err(|why| LedgerError::Broken {
                doing: "verifying the ledger",
                at: Broken { file: name(path), line: number, seq: chain.next(), why },
            })?;
            head_seen |= entry.as_ref().is_some_and(|entry| Some(&entry.hash) == expected);
            if let Some(gap) = entry.filter(|entry| entry.event == GAP) {
                let count = gap.fields.get("lost").and_then(serde_json::Value::as_u64).unwrap_or(1);
                lost += count;
                notes.push(of_gap(&gap, count));
            }
        }
    }
    if let Some(first) = chain.first().filter(|first| *first > 0) {
        notes.insert(0, format!("starts at seq {first}, older segments are not here"));
    }
    if let Some(count) = segments.unsaid() {
        lost += count;
        notes.push(format!("gap at the end: {count} events could not be written, and the ledger does not say so yet"));
    }
    if chain.records() == 0 {
        notes.push("there is no record in it".to_owned());
    }
    if let (Some(expected), false) = (expected, head_seen) {
        let found = chain.head().map_or("nothing".to_owned(), |head| head.hash.to_string());
        return Err(LedgerError::Head { expected: expected.to_string(), found });
    }
    let (records, first_seq, head) = (chain.records(), chain.first(), chain.head());
    Ok(Verified { files: files.len(), records, first_seq, head, lost, notes })
}

/// A gap record in words.
fn of_gap(gap: &Entry, count: u64) -> String {
    let field = |name: &str| match gap.fields.get(name) {
        Some(serde_json::Value::String(text)) => text.clone(),
        other => other.map(ToString::to_string).unwrap_or_default(),
    };
    let said = |name: &str| text::clean(&field(name), 400);
    format!(
        "gap at seq {}: {count} events could not be written ({}), since {}: {}",
        gap.seq,
        said("events"),
        said("since"),
        said("why")
    )
}

/// A torn line is the beginning of a record. A whole record with something other than a line feed after it is an edit.
fn torn(line: &[u8]) -> Result<(), String> {
    match line.split_last() {
        Some((_, record)) if record::open(record).is_ok() => {
            Err("a whole record is followed by something other than a line feed".to_owned())
        }
        _ => Ok(()),
    }
}

/// Reads the records, also of a ledger whose chain is broken or whose end is torn. `event` keeps those of this name, or
/// of this family (`patch` keeps `patch.staged`); `last` keeps the newest of them.
pub fn show(path: &Path, event: Option<&str>, last: Option<usize>) -> Result<Shown, LedgerError> {
    let segments = Segments::find(path)?;
    let (mut records, mut notes) = (VecDeque::new(), Vec::new());
    let mut chain = Chain::default();
    let mut broken = None;
    for path in segments.files() {
        let io = |source| LedgerError::Io { doing: "reading", path: path.to_path_buf(), source };
        let mut lines = Lines::new(files::open(path).map_err(io)?);
        let mut number = 0;
        while let Some(piece) = lines.next().map_err(io)? {
            number += 1;
            let line = match piece {
                Piece::Whole(line) => line,
                Piece::Torn(line) => {
                    notes.push(format!(
                        "`{}`, line {number}: {} bytes without a line feed (torn)",
                        name(path),
                        line.len()
                    ));
                    continue;
                }
                Piece::TooLong => {
                    notes.push(format!("`{}`, line {number}: more than {LINE_BYTES} bytes", name(path)));
                    break;
                }
            };
            if broken.is_none()
                && let Err(why) = chain.accept(&line)
            {
                broken = Some(Broken { file: name(path), line: number, seq: chain.next(), why });
            }
            match std::str::from_utf8(&line).ok().and_then(record::parse) {
                Some(entry) if event.is_none_or(|event| of_event(&entry.event, event)) => {
                    records.push_back(entry);
                    if last.is_some_and(|last| records.len() > last) {
                        records.pop_front();
                    }
                }
                Some(_) => {}
                None => notes.push(format!("`{}`, line {number} is no record", name(path))),
            }
        }
    }
    if let Some(at) = broken {
        notes.insert(0, format!("the chain is broken, what follows may be forged: {at}"));
    }
    Ok(Shown { records: records.into(), notes })
}

fn of_event(event: &str, wanted: &str) -> bool {
    event.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    text::clean(&name.to_string_lossy(), 200)
}
