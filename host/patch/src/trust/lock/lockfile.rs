//! The lock as a file: read whole, checked, replaced whole by one writer at a time.

use super::Entry;
use crate::base::Digest;
use crate::base::explain;
use crate::base::file::{self, Guard};
use crate::base::text::clean;
use crate::trust::TrustError;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Its name where nobody gives another.
pub const LOCK_FILE: &str = "patchhost.lock";
const VERSION: u32 = 1;
const KIND: &str = "lock file";
/// Most patches of a lock.
const MOST: usize = 1_024;
const HEAD: &str = "\
# Which patches may run, with which settings, limits and grants. Written by `patchhost lock`, `grant` and `revoke`;
# `generation` is the digest over all four, so a change by hand is refused. See docs/trust.md.
";
const NEXT: &str =
    "restore it from your version control; or move it away and lock each patch anew with `patchhost lock`";

/// The lock file: the components that may be loaded, each with its settings, limits and grants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockFile {
    version: u32,
    /// The locked components, sorted by name.
    #[serde(default, rename = "patch", skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<Entry>,
}

impl Default for LockFile {
    fn default() -> Self {
        Self { version: VERSION, patches: Vec::new() }
    }
}

impl LockFile {
    /// Reads a lock and gives its digest with it; none where there is none. What cannot be understood is an error: a lock
    /// that is half read would be half a lock.
    pub fn read(path: &Path) -> Result<Option<(Self, Digest)>, TrustError> {
        let Some(text) = file::read(path, KIND, NEXT)? else { return Ok(None) };
        let lock = Self::parse(&text).map_err(|why| TrustError::usage(file::shown(KIND, path), why, NEXT))?;
        Ok(Some((lock, Digest::of(text.as_bytes()))))
    }

    /// Reads the text of a lock file; the error says why it cannot be understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lock: Self = toml::from_str(text).map_err(|e| explain(text, &e))?;
        if lock.version != VERSION {
            return Err(format!("its version is {}, this host knows {VERSION}", lock.version));
        }
        if lock.patches.len() > MOST {
            return Err(format!("{} patches, at most {MOST} are read", lock.patches.len()));
        }
        for (i, entry) in lock.patches.iter().enumerate() {
            if lock.patches[..i].iter().any(|other| other.name == entry.name) {
                return Err(format!("two entries are called `{}`", clean(&entry.name, 80)));
            }
        }
        Ok(lock)
    }

    /// Changes a lock, or begins one. No other writer comes between reading and writing; after an error the file is as it
    /// was. `change` may refuse.
    pub fn update<T>(path: &Path, change: impl FnOnce(&mut Self) -> Result<T, TrustError>) -> Result<T, TrustError> {
        let _guard = Guard::take(path, KIND)?;
        let before = Self::read(path)?.map(|(lock, _)| lock);
        let mut lock = before.clone().unwrap_or_default();
        let result = change(&mut lock)?;
        lock.patches.sort_by(|a, b| a.name.cmp(&b.name));
        if before.as_ref() != Some(&lock) {
            file::write(
                path,
                KIND,
                &lock.to_text().map_err(|why| TrustError::refused(file::shown(KIND, path), why, NEXT))?,
            )?;
        }
        Ok(result)
    }

    /// As it is written. What is written can be read again, or it is not written.
    pub fn to_text(&self) -> Result<String, String> {
        let body = toml::to_string(self).map_err(|e| clean(&e.to_string(), 300))?;
        let text = format!("{HEAD}{body}");
        let again = Self::parse(&text).map_err(|why| format!("it could not be read back: {why}"))?;
        if again != *self {
            return Err("it would not be read back as it is".to_owned());
        }
        Ok(text)
    }

    /// The entry of a name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.patches.iter().find(|entry| entry.name == name)
    }

    /// Puts an entry in the place of the one with its name.
    pub fn put(&mut self, entry: Entry) {
        self.patches.retain(|old| old.name != entry.name);
        self.patches.push(entry);
    }
}
