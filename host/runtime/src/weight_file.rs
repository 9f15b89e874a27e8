//! A file that holds weights, read with `pread` and never mapped: whoever truncates it makes a read fail, and ends no
//! process.
//!
//! Its tensors may be read much later than it was opened, and more than once: a model that serves keeps the file of its
//! last refit. So each read proves that it is still the file that was opened. Size and modification time must be the same,
//! always. Bytes that were read before must have the digest of then. Bytes that were not may only be taken while nothing
//! about the file changed, the inode's change time included, which nobody can set back.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use xxhash_rust::xxh3::xxh3_128;

use crate::bytes::TensorBytes;
use crate::checkpoint::{refuse, unreadable};
use crate::error::{Result, RuntimeError};
use crate::files;

/// Bytes of a tensor that have one digest.
const BLOCK: usize = 1 << 20;
/// A file that changed less than this ago may change again without another time: clocks of file systems tick.
const SETTLED: Duration = Duration::from_millis(25);
/// How often it is looked at again until it has settled.
const LOOKS: usize = 20;

/// An open file of weights.
pub(crate) struct WeightFile {
    label: RwLock<String>,
    file: File,
    opened: Stamp,
}

/// What the file system says about a file, without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    /// When anything about the inode changed, seconds and nanoseconds since 1970.
    changed: (i64, i64),
}

impl Stamp {
    fn of(data: &Metadata) -> Self {
        #[cfg(unix)]
        let changed = {
            use std::os::unix::fs::MetadataExt;
            (data.ctime(), data.ctime_nsec())
        };
        #[cfg(not(unix))]
        let changed = (0, 0);
        Self { bytes: data.len(), modified: data.modified().ok(), changed }
    }

    /// Whether the last change is long enough ago. A time in the future says nothing, so it is not.
    fn is_settled(&self) -> bool {
        let (seconds, nanos) = self.changed;
        let since = Duration::new(seconds.max(0).unsigned_abs(), u32::try_from(nanos).unwrap_or(0));
        [self.modified, UNIX_EPOCH.checked_add(since)]
            .into_iter()
            .flatten()
            .all(|time| time.elapsed().is_ok_and(|age| age >= SETTLED))
    }
}

impl WeightFile {
    /// Opens a regular file that nobody is writing.
    pub fn open(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let bad = |e: std::io::Error| unreadable(path, &e);
        let file = files::open(path).map_err(bad)?;
        let data = file.metadata().map_err(bad)?;
        let mut opened = Stamp::of(&data);
        let mut quiet = opened.is_settled();
        for _ in 0..LOOKS {
            if quiet {
                break;
            }
            std::thread::sleep(SETTLED);
            let now = Stamp::of(&file.metadata().map_err(bad)?);
            quiet = now == opened || now.is_settled();
            opened = now;
        }
        if !quiet {
            return Err(refused(&label, "it is being written", AGAIN));
        }
        Ok(Self { label: RwLock::new(label), file, opened })
    }

    /// What messages call it.
    pub fn label(&self) -> String {
        self.label.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has messages call it otherwise.
    pub fn call(&self, label: String) {
        *self.label.write().unwrap_or_else(PoisonError::into_inner) = label;
    }

    /// Its size when it was opened.
    pub fn len(&self) -> u64 {
        self.opened.bytes
    }

    /// `len` bytes from `at` on, which may be fewer at the end of the file, as they are while the file is as it was.
    pub fn read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let within = self.len().saturating_sub(at);
        let mut bytes = vec![0; usize::try_from(within).map_or(len, |within| within.min(len))];
        self.fill(at, &mut bytes)?;
        match self.now()? == self.opened {
            true => Ok(bytes),
            false => Err(self.changed(MEANWHILE)),
        }
    }

    /// Reads exactly as many bytes.
    fn fill(&self, at: u64, mut into: &mut [u8]) -> Result<()> {
        let mut at = at;
        while !into.is_empty() {
            match read_at(&self.file, into, at) {
                Ok(0) => {
                    let why = format!("it ends at byte {at}; it had {} bytes when it was opened", self.len());
                    return Err(self.changed(why));
                }
                Ok(n) => {
                    at += n as u64;
                    into = &mut into[n..];
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(unreadable(Path::new(&self.label()), &e)),
            }
        }
        Ok(())
    }

    /// How it is now; refused where it is another file by size or modification time.
    fn now(&self) -> Result<Stamp> {
        let now = Stamp::of(&self.file.metadata().map_err(|e| unreadable(Path::new(&self.label()), &e))?);
        if now.bytes != self.opened.bytes {
            let why = format!("it has {} bytes now, and had {} when it was opened", now.bytes, self.opened.bytes);
            return Err(self.changed(why));
        }
        if now.modified != self.opened.modified {
            return Err(self.changed("it was written to after it was opened (its modification time changed)"));
        }
        Ok(now)
    }

    fn changed(&self, why: impl Into<String>) -> RuntimeError {
        refused(&self.label(), why, AGAIN)
    }
}

/// The bytes of one tensor in a file.
pub(crate) struct Extent {
    file: Arc<WeightFile>,
    start: u64,
    len: usize,
    /// The digest of each block, once it was read.
    digests: Box<[OnceLock<u128>]>,
}

impl Extent {
    /// `len` bytes from `start` on; `None` if they lie outside of the file.
    pub fn new(file: Arc<WeightFile>, start: u64, len: usize) -> Option<Self> {
        (start.checked_add(len as u64)? <= file.len()).then_some(())?;
        let digests = (0..len.div_ceil(BLOCK)).map(|_| OnceLock::new()).collect();
        Some(Self { file, start, len, digests })
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reads a range, which lies inside, in whole blocks: those that were read before must have the bytes of then.
    pub fn read(&self, range: Range<usize>) -> Result<TensorBytes> {
        let (first, last) = (range.start / BLOCK, range.end.min(self.len).div_ceil(BLOCK));
        let (from, to) = (first * BLOCK, self.len.min(last * BLOCK));
        let mut bytes = vec![0; to.saturating_sub(from)];
        self.file.fill(self.start + from as u64, &mut bytes)?;
        let untouched = self.file.now()? == self.file.opened;
        for (block, known) in bytes.chunks(BLOCK).zip(self.digests.iter().skip(first)) {
            let found = xxh3_128(block);
            // Its first bytes may only be those of the file that was opened.
            if known.get().is_none() && !untouched {
                return Err(self.file.changed(MEANWHILE));
            }
            if *known.get_or_init(|| found) != found {
                return Err(self
                    .file
                    .changed("its bytes are others than when they were read before (by their digest)"));
            }
        }
        let within = range.start - from..range.end - from;
        TensorBytes::new(Arc::new(bytes), within)
            .ok_or_else(|| refused(&self.file.label(), "a range lies outside of a tensor", "please report this"))
    }
}

const MEANWHILE: &str = "something about it changed while it was read (its inode's change time)";
const AGAIN: &str = "write files of weights under another name and rename them into place, then give the file again; what \
                     serves stays as it is";

#[cfg(unix)]
fn read_at(file: &File, into: &mut [u8], at: u64) -> std::io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, into, at)
}

#[cfg(windows)]
fn read_at(file: &File, into: &mut [u8], at: u64) -> std::io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, into, at)
}

fn refused(label: &str, why: impl Into<String>, next: &str) -> RuntimeError {
    refuse(format!("`{label}`"), why, next)
}

#[cfg(test)]
mod tests;
