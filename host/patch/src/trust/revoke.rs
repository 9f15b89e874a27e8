//! Taking trust back: a revocation is written first, then what it makes void leaves the lock.

use super::gate::not_lifted;
use super::{Gate, LockFile, REVOKED_FILE, Revocation, Revocations, Revoked, TrustError};
use crate::base::Day;
use crate::base::Digest;
use crate::base::text::clean;
use crate::patch::Candidate;
use std::path::{Path, PathBuf};

/// What a revocation did.
#[derive(Debug)]
pub struct Revoking {
    /// The file of revocations.
    pub file: String,
    /// It was not revoked before.
    pub fresh: bool,
    /// Entries that left the lock.
    pub removed: Vec<String>,
}

impl Gate {
    /// What a word on the command line means: a digest, a key, an entry of the lock, or a file.
    pub fn revocable(&self, word: &str) -> Result<Vec<Revoked>, TrustError> {
        let shown = clean(word, 100);
        if word.starts_with("sha256:") || word.starts_with("ed25519:") || word.parse::<Digest>().is_ok() {
            let next = "give a digest sha256:…, a key ed25519:…, the name of a lock entry, or a file";
            return word
                .parse()
                .map(|one| vec![one])
                .map_err(|why| TrustError::usage(format!("revoke {shown}"), why, next));
        }
        let lock = LockFile::read(self.lock_path())?.map(|(lock, _)| lock).unwrap_or_default();
        if let Some(entry) = lock.get(word) {
            return Ok(vec![Revoked::Digest(entry.digest)]);
        }
        if Path::new(word).is_file() {
            let candidate = Candidate::from_file(Path::new(word))
                .map_err(|e| TrustError::usage(format!("revoke {shown}"), e.why(), e.next()))?;
            return Ok(vec![Revoked::Digest(*candidate.digest())]);
        }
        let why = "it is no digest, no key, no entry of the lock and no file";
        Err(TrustError::usage(format!("revoke {shown}"), why, "give one of these"))
    }

    /// Where revocations are written.
    pub fn revocations_path(&self) -> PathBuf {
        self.places.revocations.clone().unwrap_or_else(|| REVOKED_FILE.into())
    }

    /// Revokes, and takes out of the lock what may not run any more: entries of these bytes; entries that only a revoked
    /// key vouches for.
    pub fn revoke(&self, what: &[Revoked], reason: &str) -> Result<Revoking, TrustError> {
        let path = self.revocations_path();
        let date = Some(Day::of(self.now()));
        let new: Vec<Revocation> =
            what.iter().map(|what| Revocation { what: *what, reason: clean(reason, 1_000), date }).collect();
        // Before anything is added: to a file that lost some, one more would hide it.
        let lock = LockFile::read(self.lock_path())?;
        if let Some((lock, _)) = &lock {
            not_lifted(lock, &Revocations::read(&path)?.all, &path)?;
        }
        let fresh = Revocations::add(&path, &new)?;
        let mut removed = Vec::new();
        if lock.is_some() {
            self.update_lock(|lock| {
                lock.patches.retain_mut(|entry| {
                    let digests = [Revoked::Digest(entry.digest), Revoked::Digest(entry.generation)];
                    let (signed, untouched) = (entry.signatures.len(), entry.is_untouched());
                    entry.signatures.retain(|signature| !what.contains(&Revoked::Key(signature.key)));
                    // What somebody changed by hand stays as wrong as it was.
                    if entry.signatures.len() < signed && untouched && entry.seal.is_some() {
                        *entry = entry.clone().sealed();
                    }
                    let signed = signed > 0;
                    let void =
                        digests.iter().any(|digest| what.contains(digest)) || signed && entry.signatures.is_empty();
                    if void {
                        removed.push(entry.name.clone());
                    }
                    !void
                });
                Ok(())
            })?;
        }
        Ok(Revoking { file: path.display().to_string(), fresh, removed })
    }

    /// Why bytes or a generation are revoked, if they are, as the files stand now. Files that cannot be read revoke
    /// nothing here: what is loaded anew is refused then.
    pub fn revoked(&self, digest: &Digest) -> Option<String> {
        let listed = self.policy.revoked.iter().cloned();
        let file = self.places.revocations.as_deref().and_then(|path| Revocations::read(path).ok()).unwrap_or_default();
        let mut all = listed.chain(file.all);
        all.find(|one| one.what == Revoked::Digest(*digest)).map(|one| one.reason)
    }
}
