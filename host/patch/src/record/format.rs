//! The file: magic and version, then frames, each behind its length and a checksum. Frames are only ever added, in one
//! write each, so what a killed host leaves is a recording that ends early. A file is input like any other: nothing in it
//! is believed, and no length allocates.

use super::error::RecordingError;
use crate::base::Digest;
use crate::base::Function;
use crate::call::{Outcome, PatchEntry, Question};
use patchhost_runtime::files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What a recording begins with: magic, then the version as a little-endian u32.
pub(super) const MAGIC: &[u8; 8] = b"PHRECORD";
/// Of this host.
pub(super) const VERSION: u32 = 1;
/// Bytes before the first frame.
pub(super) const HEAD: u64 = 12;
/// Before each frame: length u32, checksum u64, little-endian.
pub(super) const FRAME_HEAD: usize = 12;

/// One frame.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// The first one: who recorded what.
    Host {
        /// Version of the host.
        version: String,
        /// Name or folder of the model, or the file that was quantized.
        model: String,
        /// Digest of its config.json.
        config: Digest,
    },
    /// A patch is ready.
    Patch(Box<PatchEntry>),
    /// It was called.
    Call(Box<Call>),
    /// The file reached the bound that was set for it; what came after is missing.
    Full {
        /// The bound.
        limit: u64,
    },
    /// The recording was closed.
    End(End),
}

/// How a recording was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Calls in it.
    pub calls: u64,
    /// Calls that are missing.
    pub left_out: u64,
}

/// A call of one patch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// Number of the patch in this recording.
    pub patch: u32,
    /// What was asked.
    pub question: Question,
    /// How it ended.
    pub outcome: Outcome,
}

/// What a file holds, read once from front to back.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    /// Version of the host that recorded.
    pub host: String,
    /// The model's name.
    pub model: String,
    /// Digest of its config.json.
    pub config: Digest,
    /// Patches, in the order in which they were started.
    #[serde(skip)]
    pub patches: Vec<PatchEntry>,
    pub calls: u64,
    /// Calls of each patch, by function.
    #[serde(skip)]
    pub functions: Vec<BTreeMap<Function, u64>>,
    /// Bytes of whole frames.
    pub bytes: u64,
    /// The bound that it reached.
    pub full: Option<u64>,
    /// How it was closed; none: the host was killed.
    #[serde(serialize_with = "end")]
    pub end: Option<End>,
    /// Bytes of a last frame that was not written to its end.
    pub torn: u64,
}

fn end<S: serde::Serializer>(end: &Option<End>, serializer: S) -> Result<S::Ok, S::Error> {
    end.map(|e| serde_json::json!({ "calls": e.calls, "left_out": e.left_out })).serialize(serializer)
}

/// A file, known to be whole.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    overview: Overview,
}

impl Recording {
    /// Reads all of it once: a damaged frame anywhere refuses the file before any of it is replayed.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let mut events = Events::open(path)?;
        let first = events.next().transpose()?;
        let Some(Event::Host { version, model, config }) = first else {
            let why = if events.torn > 0 { "it ends within its first frame" } else { "its first frame is another one" };
            return Err(RecordingError::not(path, why));
        };
        let mut overview = Overview {
            host: version,
            model,
            config,
            patches: Vec::new(),
            calls: 0,
            functions: Vec::new(),
            bytes: 0,
            full: None,
            end: None,
            torn: 0,
        };
        while let Some(event) = events.next() {
            let event = event?;
            if overview.end.is_some() {
                return Err(events.damaged("there is something after the end"));
            }
            match event {
                Event::Host { .. } => return Err(events.damaged("a second head")),
                Event::Patch(patch) if patch.number as usize != overview.patches.len() => {
                    return Err(events.damaged("a patch has another number than its place"));
                }
                Event::Patch(patch) => {
                    overview.patches.push(*patch);
                    overview.functions.push(BTreeMap::new());
                }
                Event::Call(call) => {
                    let Some(functions) = overview.functions.get_mut(call.patch as usize) else {
                        return Err(events.damaged("a call of a patch that was not started"));
                    };
                    if let Some(function) = call.question.function() {
                        *functions.entry(function).or_insert(0) += 1;
                        overview.calls += 1;
                    }
                }
                Event::Full { limit } => overview.full = Some(limit),
                Event::End(end) => overview.end = Some(end),
            }
        }
        (overview.bytes, overview.torn) = (events.at, events.torn);
        Ok(Self { path: path.to_owned(), overview })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it.
    pub fn overview(&self) -> &Overview {
        &self.overview
    }

    /// The frames, read again one at a time.
    pub(super) fn events(&self) -> Result<Events, RecordingError> {
        Events::open(&self.path)
    }
}

/// Frames of a file, in order. Ends after the last whole one, and before the first that is not what was written.
pub(super) struct Events {
    path: PathBuf,
    file: BufReader<File>,
    number: u64,
    at: u64,
    torn: u64,
    over: bool,
}

impl Events {
    fn open(path: &Path) -> Result<Self, RecordingError> {
        let unreadable = |source| RecordingError::Unreadable { path: path.to_owned(), source };
        let file = files::open(path).map_err(unreadable)?;
        let mut file = BufReader::new(file);
        let mut head = [0; HEAD as usize];
        let read = fill(&mut file, &mut head).map_err(unreadable)?;
        let (magic, version) = head.split_at(MAGIC.len());
        if read < head.len() || magic != MAGIC {
            return Err(RecordingError::not(path, "it does not begin as a recording does"));
        }
        let version = version.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte));
        if version != VERSION {
            return Err(RecordingError::not(path, format!("its version is {version}; this host reads {VERSION}")));
        }
        Ok(Self { path: path.to_owned(), file, number: 0, at: HEAD, torn: 0, over: false })
    }

    /// An error about the frame that was read last.
    pub(super) fn damaged(&self, why: &str) -> RecordingError {
        let frame = self.number.saturating_sub(1);
        RecordingError::Damaged { path: self.path.clone(), frame, at: self.at, why: why.to_owned() }
    }

    fn read(&mut self) -> Result<Option<Event>, RecordingError> {
        let unreadable = |path: &Path, source| RecordingError::Unreadable { path: path.to_owned(), source };
        let mut head = [0; FRAME_HEAD];
        let read = fill(&mut self.file, &mut head).map_err(|e| unreadable(&self.path, e))?;
        if read < head.len() {
            self.torn = read as u64;
            return Ok(None);
        }
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        let (length, sum) = (number(&head[..4]), number(&head[4..]));
        let mut payload = Vec::new();
        // Grows as the bytes come: a length alone allocates nothing.
        let read = (&mut self.file).take(length).read_to_end(&mut payload);
        let read = read.map_err(|e| unreadable(&self.path, e))? as u64;
        if read < length {
            self.torn = FRAME_HEAD as u64 + read;
            return Ok(None);
        }
        self.number += 1;
        if checksum(&payload, self.number - 1) != sum {
            return Err(self.damaged("its checksum is another one"));
        }
        let event = match postcard::take_from_bytes(&payload) {
            Ok((event, [])) => event,
            Ok((_, rest)) => return Err(self.damaged(&format!("{} bytes too many", rest.len()))),
            Err(error) => return Err(self.damaged(&error.to_string())),
        };
        self.at += FRAME_HEAD as u64 + length;
        Ok(Some(event))
    }
}

impl Iterator for Events {
    type Item = Result<Event, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let event = self.read().transpose();
        self.over = !matches!(event, Some(Ok(_)));
        event
    }
}

/// Reads as much as there is, at most `to.len()`.
fn fill(from: &mut impl Read, to: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < to.len() {
        match from.read(&mut to[read..]) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Of frame `number`, so that frames that changed places, or were taken out, show.
fn checksum(payload: &[u8], number: u64) -> u64 {
    xxh3_64_with_seed(payload, number)
}

/// Room for the head of a frame, and the frame. [`seal`] fills the head in.
pub(super) fn encode(event: &Event) -> io::Result<Vec<u8>> {
    let bytes = postcard::to_extend(event, vec![0; FRAME_HEAD]).map_err(io::Error::other)?;
    match u32::try_from(bytes.len() - FRAME_HEAD) {
        Ok(_) => Ok(bytes),
        Err(_) => Err(io::Error::other("a frame of 4 GiB")),
    }
}

/// Makes an encoded frame the one of this number.
pub(super) fn seal(frame: &mut [u8], number: u64) {
    let (head, payload) = frame.split_at_mut(FRAME_HEAD);
    head[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    head[4..].copy_from_slice(&checksum(payload, number).to_le_bytes());
}

/// Takes back what was written of a frame that did not get to its end.
pub(super) fn cut(file: &mut File, length: u64) -> io::Result<()> {
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length)).map(|_| ())
}
