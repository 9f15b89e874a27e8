//! Machine code that was compiled before. A component compiles in some 50 ms; reading its code back takes well under one.
//!
//! The cache skips the compiler and nothing else: verification and audit come before it, always.
//!
//! **Where.** `$XDG_CACHE_HOME/patchhost/aot`, else `~/.cache/patchhost/aot`; `PATCHHOST_CACHE=DIR` names another folder,
//! `PATCHHOST_CACHE=off` turns it off. The folder is the user's alone (mode 0700), each file too (0600).
//!
//! **Key.** Digest of the component, wasmtime's compatibility hash (its full version, the target, every setting of the
//! engine), the CPU's features, and the build of this binary (version, and size, time and inode of the executable). The
//! build part is for stale entries, not against tampering: an executable can be changed without changing these.
//!
//! **Authentication.** Loading machine code is running it. Each entry carries an HMAC-SHA256 under a random key that is in
//! the same folder, and is checked before a byte of it is looked at. This stops entries that were damaged, copied from
//! another machine or written through a wrong mode. It does not stop whoever may read the user's files: he has the key,
//! and could replace this binary as well.
//!
//! Whatever is wrong with the folder or an entry is a miss, never an error: the component is compiled again.

mod key;
mod private;

use crate::base::file::{Access, TEMPORARY, write_whole_unsynced};
use hmac::{Hmac, KeyInit, Mac};
use key::Key;
use private::{private_folder, read_private, secret};
use sha2::Sha256;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;
use wasmtime::Engine;
use wasmtime::component::Component;

/// Names the folder, or turns the cache off.
pub const CACHE_VARIABLE: &str = "PATCHHOST_CACHE";

/// How every entry begins. The authentication code covers it too.
const MAGIC: &[u8; 16] = b"patchhost-aot 1\n";
/// Bytes of the authentication code.
const TAG_BYTES: usize = 32;
/// Ending of the names of entries.
const EXTENSION: &str = "aot";
/// Largest entry that is read or written. The bundled patches have 0.1 to 0.6 MB.
const ENTRY_BYTES: u64 = 64 << 20;
/// Bytes of all entries together. When there are more, those that were not used for longest are removed.
const TOTAL_BYTES: u64 = 256 << 20;

/// A folder of compiled components. Clones share it.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    secret: [u8; private::SECRET_BYTES],
    total_bytes: u64,
    hits: AtomicU64,
    misses: AtomicU64,
    stored: AtomicU64,
}

/// What a cache did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct CacheStats {
    /// Components whose code was read.
    pub hits: u64,
    /// Components that had to be compiled.
    pub misses: u64,
    /// How many entries this process wrote.
    pub stored: u64,
}

impl Cache {
    /// The cache that the environment names. None: it is off, there is no home, or the folder cannot be used.
    pub fn from_env() -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = match variable(CACHE_VARIABLE) {
            Some(off) if off.as_os_str() == "off" => return None,
            Some(folder) => folder,
            None => {
                let home = || variable("HOME").map(|home| home.join(".cache"));
                // The XDG specification: a relative path is to be ignored.
                let base = variable("XDG_CACHE_HOME").filter(|base| base.is_absolute()).or_else(home)?;
                base.join("patchhost").join("aot")
            }
        };
        Self::open(&folder)
    }

    /// The cache in this folder, which is made if it is not there. None: it is not the user's alone, or not writable.
    pub fn open(folder: &Path) -> Option<Self> {
        Self::with_total(folder, TOTAL_BYTES)
    }

    fn with_total(folder: &Path, total_bytes: u64) -> Option<Self> {
        match private_folder(folder).and_then(|()| secret(folder)) {
            Ok(secret) => Some(Self(Arc::new(Inner {
                folder: folder.to_path_buf(),
                secret,
                total_bytes,
                hits: AtomicU64::new(0),
                misses: AtomicU64::new(0),
                stored: AtomicU64::new(0),
            }))),
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "no cache of compiled components");
                None
            }
        }
    }

    /// What it did so far.
    pub fn stats(&self) -> CacheStats {
        let Inner { hits, misses, stored, .. } = &*self.0;
        CacheStats { hits: hits.load(Relaxed), misses: misses.load(Relaxed), stored: stored.load(Relaxed) }
    }

    /// The compiled component with this digest, read from its entry; else what `compile` makes, which becomes an entry.
    pub(crate) fn component(
        &self,
        engine: &Engine,
        digest: &[u8; 32],
        compile: impl FnOnce() -> wasmtime::Result<Component>,
    ) -> wasmtime::Result<Component> {
        let key = Key::new(engine, digest);
        let path = self.0.folder.join(format!("{}.{EXTENSION}", key.name()));
        if let Some(component) = self.load(engine, &key, &path) {
            self.0.hits.fetch_add(1, Relaxed);
            return Ok(component);
        }
        self.0.misses.fetch_add(1, Relaxed);
        let component = compile()?;
        match self.store(&key, &path, &component) {
            Ok(()) => drop(self.0.stored.fetch_add(1, Relaxed)),
            Err(error) => tracing::warn!(entry = %path.display(), %error, "a compiled component was not kept"),
        }
        Ok(component)
    }

    fn load(&self, engine: &Engine, key: &Key, path: &Path) -> Option<Component> {
        let entry = match private_folder(&self.0.folder).and_then(|()| read_private(path, ENTRY_BYTES)) {
            Ok(entry) => entry,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(entry = %path.display(), %error, "a compiled component is not used");
                return None;
            }
        };
        let Some(code) = self.authentic(key, &entry) else {
            tracing::warn!(entry = %path.display(), "a compiled component is not what was written here; it is compiled again");
            return None;
        };
        // SAFETY: `code` is what `Component::serialize` gave to `store` in a process of this user: the HMAC over the key
        // and all of `code` was checked just now, its secret is in a file that only this user may read or write, and
        // `code` is our own copy in memory, which nobody else can change any more. The key binds it to this component, this
        // build of patchhost, this version and configuration of wasmtime and this CPU's features.
        match unsafe { Component::deserialize(engine, code) } {
            Ok(component) => {
                // The time of the last use decides what is evicted. Without it the entry looks old, no more.
                let _ = File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
                Some(component)
            }
            Err(error) => {
                tracing::warn!(entry = %path.display(), %error, "a compiled component is not for this engine");
                None
            }
        }
    }

    /// The code in an entry, if the entry is whole and ours.
    fn authentic<'a>(&self, key: &Key, entry: &'a [u8]) -> Option<&'a [u8]> {
        let rest = entry.strip_prefix(MAGIC)?;
        let (tag, code) = rest.split_at_checked(TAG_BYTES)?;
        // Compares in constant time.
        self.mac(key, code)?.verify_slice(tag).ok().map(|()| code)
    }

    fn mac(&self, key: &Key, code: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0.secret).ok()?;
        mac.update(MAGIC);
        mac.update(key.as_bytes());
        mac.update(code);
        Some(mac)
    }

    fn store(&self, key: &Key, path: &Path, component: &Component) -> io::Result<()> {
        private_folder(&self.0.folder)?;
        let code = component.serialize().map_err(io::Error::other)?;
        if code.len() as u64 > ENTRY_BYTES - (MAGIC.len() + TAG_BYTES) as u64 {
            return Err(io::Error::other(format!("{} bytes; an entry has at most {ENTRY_BYTES}", code.len())));
        }
        let mac = self.mac(key, &code).ok_or_else(|| io::Error::other("no authentication code"))?;
        // A file of mode 0600 beside it, then a rename: a reader sees the old entry or the new one.
        write_whole_unsynced(path, Access::Private, |file| {
            file.write_all(MAGIC)?;
            file.write_all(&mac.finalize().into_bytes())?;
            file.write_all(&code)
        })?;
        self.evict()
    }

    /// Removes what was not used for longest until the rest is small enough, and what a killed writer left.
    fn evict(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&self.0.folder)? {
            let entry = entry?;
            // Another process may remove it meanwhile.
            let Ok(meta) = entry.metadata() else { continue };
            let path = entry.path();
            let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                entries.push((modified, meta.len(), path));
            } else if entry.file_name().to_string_lossy().starts_with(TEMPORARY)
                && modified.elapsed().is_ok_and(|age| age.as_secs() > 3_600)
            {
                std::fs::remove_file(path)?;
            }
        }
        entries.sort_unstable();
        let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in entries {
            if total <= self.0.total_bytes {
                break;
            }
            std::fs::remove_file(path)?;
            total -= bytes;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Cache {
    /// Shows where the cache is, and never its secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("folder", &self.0.folder).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
