//! Bytes that somebody wants to run, read once: what is looked at is what is compiled.

use super::StageError;
use super::lock::GuestsLock;
use crate::audit;
use crate::base::{Digest, text};
use patchhost_runtime::files;
use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where the bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Inside this binary.
    Bundled,
    /// A file of the user, or bytes from elsewhere.
    User,
}

/// Bytes, read once.
#[derive(Debug, Clone)]
pub struct Candidate {
    name: String,
    bytes: Cow<'static, [u8]>,
    digest: Digest,
    origin: Origin,
    path: Option<PathBuf>,
}

impl Candidate {
    /// Reads a file, once and bounded.
    pub fn from_file(path: &Path) -> Result<Self, StageError> {
        let name = text::clean(&path.display().to_string(), 200);
        let limit = audit::Caps::default().bytes as u64;
        let mut bytes = Vec::new();
        let read = files::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
        if let Err(error) = read {
            return Err(StageError::Unreadable { name, error });
        }
        if bytes.len() as u64 > limit {
            let size = std::fs::metadata(path).map_or(bytes.len() as u64, |meta| meta.len());
            return Err(StageError::TooLarge { name, size, limit });
        }
        Ok(Self { path: Some(path.to_path_buf()), ..Self::new(name, bytes.into(), Origin::User) })
    }

    /// Takes bytes from elsewhere.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, StageError> {
        let (name, bytes) = (text::clean(name, 200), bytes.into());
        let (size, limit) = (bytes.len() as u64, audit::Caps::default().bytes as u64);
        if size > limit {
            return Err(StageError::TooLarge { name, size, limit });
        }
        Ok(Self::new(name, bytes, Origin::User))
    }

    pub(super) fn bundled(name: &str, bytes: &'static [u8]) -> Self {
        Self::new(name.to_owned(), Cow::Borrowed(bytes), Origin::Bundled)
    }

    fn new(name: String, bytes: Cow<'static, [u8]>, origin: Origin) -> Self {
        let digest = Digest::of(&bytes);
        Self { name, bytes, digest, origin, path: None }
    }

    /// Name or path, as messages show it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Digest of the bytes.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Where the bytes came from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The file that it was read from; none: it came in another way.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The name without folders and `.wasm`: how settings and the lock call it.
    pub fn stem(&self) -> String {
        let stem = Path::new(&self.name).file_stem();
        stem.map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Whether the bytes end where a section ends: what is still being written mostly does not.
    pub fn is_whole(&self) -> bool {
        wasmparser::Parser::new(0).parse_all(&self.bytes).all(|section| section.is_ok())
    }

    /// Makes sure that the bytes are the ones meant: those that `expected` names; without it, a bundled candidate's must be
    /// those of the lock inside this binary.
    pub(crate) fn verify(self, expected: Option<Digest>) -> Result<Verified, StageError> {
        let lock = GuestsLock::embedded();
        let found = self.digest;
        let pinned = match (expected, self.origin) {
            (Some(expected), _) => Some((expected, "`--sha256`")),
            (None, Origin::User) => None,
            (None, Origin::Bundled) => {
                let not_locked = |why: String| StageError::NotLocked { name: self.name.clone(), why };
                let lock = lock.as_ref().map_err(|error| not_locked(format!("guests.lock: {error}")))?;
                let entry = lock.get(&self.name);
                let entry = entry.ok_or_else(|| not_locked(format!("guests.lock has no entry `{}`", self.name)))?;
                Some((entry.sha256, "guests.lock"))
            }
        };
        if let Some((expected, pinned_by)) = pinned
            && expected != found
        {
            return Err(StageError::DigestMismatch { name: self.name, pinned_by, expected, found });
        }
        let stem = Path::new(&self.name).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let bundled = lock.ok().and_then(|lock| lock.get(stem).cloned());
        let note = bundled.filter(|entry| entry.sha256 != found).map(|entry| {
            format!("`{}` has the name of a bundled patch but other bytes (bundled: {})", self.name, entry.sha256)
        });
        Ok(Verified { candidate: self, note })
    }
}

/// Bytes that are the ones meant. Only who admits a candidate makes one.
#[derive(Debug)]
pub(crate) struct Verified {
    candidate: Candidate,
    note: Option<String>,
}

impl Verified {
    /// The bytes.
    pub(crate) fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    pub(super) fn into_parts(self) -> (Candidate, Option<String>) {
        (self.candidate, self.note)
    }
}
