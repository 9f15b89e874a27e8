//! Writing. A frame is made by the thread that made the call; only its checksum and one `write` are behind the lock, so
//! the threads of a refit wait for each other no longer than for the page cache.

use super::error::RecordingError;
use super::format::{self, Call, End, Event, HEAD, MAGIC, VERSION};
use crate::base::Digest;
use crate::call::{Outcome, PatchEntry, Question, Witness};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Kept free for the frames `Full` and `End`.
const RESERVE: u64 = 128;
/// The head of a recording must fit.
const LEAST: u64 = 4 << 10;

/// What is told when a recording stops before its time.
type Notice = Box<dyn Fn(&str) + Send + Sync>;

/// A recording that is being made. Closed by [`Recorder::finish`], or when it is dropped.
pub struct Recorder {
    path: PathBuf,
    limit: u64,
    /// Nothing more is written: looked at before anything is copied.
    stopped: AtomicBool,
    left_out: AtomicU64,
    file: Mutex<Out>,
    notice: Notice,
}

struct Out {
    /// None: closed.
    file: Option<File>,
    frames: u64,
    bytes: u64,
    calls: u64,
    patches: u32,
    stopped: Option<String>,
}

/// How a recording stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecordStatus {
    /// The file.
    pub path: PathBuf,
    /// Calls in it.
    pub calls: u64,
    /// Its size.
    pub bytes: u64,
    /// Calls that are missing.
    pub left_out: u64,
    /// Why it stopped before its time.
    pub stopped: Option<String>,
}

impl Recorder {
    /// A bound that is large enough for an afternoon and too small to fill a disk.
    pub const MAX_BYTES: u64 = 256 << 20;

    /// Makes the file, which must not exist: a recording is never written over. Readable by its owner only, since weights
    /// may be in it. `config` is the text of the model's config.json; `notice` is told if the recording stops before its
    /// time.
    pub fn create(
        path: &Path,
        limit: u64,
        model: &str,
        config: &str,
        notice: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Arc<Self>, RecordingError> {
        if limit < LEAST {
            return Err(RecordingError::Limit { path: path.to_owned(), limit, least: LEAST });
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let failed = |source| RecordingError::Create { path: path.to_owned(), source };
        let mut file = options.open(path).map_err(failed)?;
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        let mut model = model.to_owned();
        model.truncate(model.floor_char_boundary(1024));
        let host =
            Event::Host { version: env!("CARGO_PKG_VERSION").to_owned(), model, config: Digest::of(config.as_bytes()) };
        let mut frame = format::encode(&host).map_err(failed)?;
        format::seal(&mut frame, 0);
        head.append(&mut frame);
        if let Err(error) = file.write_all(&head) {
            // Made a moment ago, and no recording.
            let _ = std::fs::remove_file(path);
            return Err(failed(error));
        }
        let out = Out { file: Some(file), frames: 1, bytes: head.len() as u64, calls: 0, patches: 0, stopped: None };
        debug_assert!(out.bytes > HEAD);
        Ok(Arc::new(Self {
            path: path.to_owned(),
            limit,
            stopped: AtomicBool::new(false),
            left_out: AtomicU64::new(0),
            file: Mutex::new(out),
            notice: Box::new(notice),
        }))
    }

    fn write(&self, out: &mut Out, event: &Event) {
        match format::encode(event) {
            Ok(frame) => self.write_frame(out, frame),
            Err(error) => self.stop(out, error.to_string()),
        };
    }

    fn write_frame(&self, out: &mut Out, mut frame: Vec<u8>) -> bool {
        if out.stopped.is_some() || out.file.is_none() {
            return false;
        }
        if out.bytes + frame.len() as u64 + RESERVE > self.limit {
            let full = format::encode(&Event::Full { limit: self.limit });
            if let Ok(mut full) = full
                && let Err(error) = out.append(&mut full)
            {
                return self.stop(out, error.to_string());
            }
            return self.stop(out, format!("the next call would not fit the {} bytes that it may have", self.limit));
        }
        match out.append(&mut frame) {
            Ok(()) => true,
            Err(error) => self.stop(out, error.to_string()),
        }
    }

    fn stop(&self, out: &mut Out, why: String) -> bool {
        self.stopped.store(true, Ordering::Relaxed);
        if out.stopped.is_none() {
            let (path, calls) = (self.path.display(), out.calls);
            (self.notice)(&format!("the recording `{path}` stops after {calls} calls: {why}"));
            out.stopped = Some(why);
        }
        false
    }

    /// Closes the file. What is called afterwards counts as left out. Again: nothing is done.
    pub fn finish(&self) -> RecordStatus {
        let mut out = self.lock();
        self.stopped.store(true, Ordering::Relaxed);
        let left_out = self.left_out.load(Ordering::Relaxed);
        if out.file.is_some() {
            let end = format::encode(&Event::End(End { calls: out.calls, left_out }));
            if let Err(error) = end.and_then(|mut frame| out.append(&mut frame)) {
                self.stop(&mut out, error.to_string());
            }
            out.file = None;
        }
        let Out { calls, bytes, ref stopped, .. } = *out;
        RecordStatus { path: self.path.clone(), calls, bytes, left_out, stopped: stopped.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Out> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Witness for Recorder {
    fn started(&self, patch: PatchEntry) -> u32 {
        let mut out = self.lock();
        let number = out.patches;
        out.patches += 1;
        self.write(&mut out, &Event::Patch(Box::new(PatchEntry { number, ..patch })));
        number
    }

    fn saw(&self, patch: u32, question: Question, outcome: Outcome) {
        let counts = u64::from(question.function().is_some());
        if self.stopped.load(Ordering::Relaxed) {
            self.left_out.fetch_add(counts, Ordering::Relaxed);
            return;
        }
        let event = Event::Call(Box::new(Call { patch, question, outcome }));
        let frame = format::encode(&event);
        let mut out = self.lock();
        let written = match frame {
            Ok(frame) => self.write_frame(&mut out, frame),
            Err(error) => self.stop(&mut out, error.to_string()),
        };
        if written {
            out.calls += counts;
        } else {
            self.left_out.fetch_add(counts, Ordering::Relaxed);
        }
    }
}

impl Out {
    /// One `write`; if it fails, the file ends where it did before.
    fn append(&mut self, frame: &mut [u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        format::seal(frame, self.frames);
        if let Err(error) = file.write_all(frame) {
            // If even that fails, the reader finds a torn frame.
            let _ = format::cut(file, self.bytes);
            return Err(error);
        }
        self.frames += 1;
        self.bytes += frame.len() as u64;
        Ok(())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.finish();
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("path", &self.path).field("limit", &self.limit).finish_non_exhaustive()
    }
}
