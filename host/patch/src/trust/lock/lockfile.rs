//! The lock as a file: read whole, checked, replaced whole by one writer at a time.

use super::Entry;
use crate::base::Digest;
use crate::base::explain;
use crate::base::file::{self, Guard};
use crate::base::text::clean;
use crate::trust::{Revocation, TrustError};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Its name where nobody gives another.
pub const LOCK_FILE: &str = "patchhost.lock";
const VERSION: u32 = 2;
/// Of locks without seals, which are still read: patchhost 0.1 wrote them.
const UNSEALED: u32 = 1;
const KIND: &str = "lock file";
/// Most patches of a lock.
const MOST: usize = 1_024;
const HEAD: &str = "\
# Which patches may run, with which settings, limits and grants. Written by `patchhost lock`, `grant` and `revoke`;
# `generation` is the digest over all four and `seal` that of the whole entry, so a change by hand is refused. See docs/trust.md.
";
const NEXT: &str =
    "restore it from your version control; or move it away and lock each patch anew with `patchhost lock`";

/// The lock file: the components that may be loaded, each with its settings, limits and grants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockFile {
    version: u32,
    /// The revocations that were there when the lock was written last; none in locks of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revocations: Option<Known>,
    /// The locked components, sorted by name.
    #[serde(default, rename = "patch", skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<Entry>,
}

/// So many revocations are known, and this is the digest of them in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    count: usize,
    digest: Digest,
}

impl Known {
    /// The first `count` of these.
    fn of(all: &[Revocation], count: usize) -> Option<Self> {
        let first = all.get(..count)?;
        Some(Self { count, digest: Digest::of(serde_json::json!(first).to_string().as_bytes()) })
    }
}

impl Default for LockFile {
    fn default() -> Self {
        Self { version: VERSION, revocations: Known::of(&[], 0), patches: Vec::new() }
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
        if ![UNSEALED, VERSION].contains(&lock.version) {
            return Err(format!("its version is {}, this host knows {UNSEALED} and {VERSION}", lock.version));
        }
        if lock.version == VERSION && lock.revocations.is_none() {
            return Err(
                "it does not say which revocations it knows (`[revocations]`): that was taken out by hand".to_owned()
            );
        }
        if let Some(entry) = lock.patches.iter().find(|entry| lock.version == VERSION && entry.seal.is_none()) {
            return Err(format!("entry `{}` has no `seal`: that was taken out by hand", clean(&entry.name, 80)));
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
        lock.seal_old();
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

    /// Puts an entry in the place of the one with its name, sealed.
    pub fn put(&mut self, entry: Entry) {
        self.patches.retain(|old| old.name != entry.name);
        self.patches.push(entry.sealed());
    }

    /// Whether it has no seals: patchhost 0.1 wrote it, and changes by hand of what does not run are not seen.
    pub fn is_unsealed(&self) -> bool {
        self.version == UNSEALED
    }

    /// Takes note of the revocations that there are.
    pub(crate) fn knows(&mut self, all: &[Revocation]) {
        self.revocations = Known::of(all, all.len());
    }

    /// Why revocations are not those that the lock knows, if they are not: some are gone, or were changed. More may have come.
    pub(crate) fn lifted(&self, all: &[Revocation]) -> Option<String> {
        let known = self.revocations.as_ref()?;
        match Known::of(all, known.count) {
            Some(now) if now == *known => None,
            Some(_) => {
                Some(format!("the first {} are not those that the lock knows: they were changed by hand", known.count))
            }
            None => Some(format!("the lock knows {}, and there are {}", known.count, all.len())),
        }
    }

    /// From version 1 to 2: what was not changed by hand is sealed as it stands.
    fn seal_old(&mut self) {
        if self.is_unsealed() {
            self.version = VERSION;
            for entry in &mut self.patches {
                // One that does not fit its generation gets a seal that does not fit either: it stays refused.
                entry.seal = Some(if entry.fits() { entry.seal_now() } else { Digest::ZERO });
            }
            self.revocations = self.revocations.take().or_else(|| Known::of(&[], 0));
        }
    }
}
