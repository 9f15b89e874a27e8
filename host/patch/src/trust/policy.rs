//! What a policy file says about trust: `[trust]`.

use super::PublicKey;
use crate::base::Day;
use crate::base::nearest;
use crate::base::text::clean;
use crate::base::{Digest, Hook};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The `[trust]` table. Paths are relative to the folder of the policy file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrustPolicy {
    /// Path of the lock file; none: `patchhost.lock` beside the policy file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<PathBuf>,
    /// Without a lock file nothing is loaded.
    pub require_lock: bool,
    /// Components must be signed, bundled ones excepted: the host's own binary pins those.
    pub require_signature: bool,
    /// Entries of the lock must carry a review note.
    pub require_review: bool,
    /// A review counts for so many days; none: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub review_days: Option<u64>,
    /// So many different signers must have signed.
    pub threshold: usize,
    /// A folder of further signature files, `DIGEST.sig` or `NAME.wasm.sig`: for components that do not come as files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signatures: Option<PathBuf>,
    /// The file of revocations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocations: Option<PathBuf>,
    /// The signers whose signatures count.
    pub signers: Vec<Signer>,
    /// What may not run, whatever else says that it may.
    pub revoked: Vec<Revocation>,
}

impl Default for TrustPolicy {
    fn default() -> Self {
        Self {
            lock: None,
            require_lock: false,
            require_signature: false,
            require_review: false,
            review_days: None,
            threshold: 1,
            signatures: None,
            revocations: None,
            signers: Vec::new(),
            revoked: Vec::new(),
        }
    }
}

/// Somebody whose signatures count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signer {
    /// How reports call him.
    pub name: String,
    /// Public key of this signer.
    pub key: PublicKey,
    /// Hooks for which his signature counts; `*`: all.
    #[serde(default = "every")]
    pub hooks: Vec<String>,
    /// His signatures count until this day ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Day>,
}

fn every() -> Vec<String> {
    vec!["*".to_owned()]
}

impl Signer {
    /// Whether his signature counts for every hook.
    pub fn for_all_hooks(&self) -> bool {
        self.hooks.iter().any(|hook| hook == "*")
    }

    /// The first of these hooks for which his signature does not count.
    pub fn not_for(&self, hooks: &[Hook]) -> Option<Hook> {
        let allowed = |hook: Hook| {
            // The rows are a part of the block-quant hook.
            let hook = if hook == Hook::BlockQuantRows { Hook::BlockQuant } else { hook };
            self.hooks.iter().any(|name| name == hook.name())
        };
        hooks.iter().copied().find(|hook| !self.for_all_hooks() && !allowed(*hook))
    }
}

/// What may not run any more. In a file it has `digest = "…"` or `key = "…"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RevocationTable", into = "RevocationTable")]
pub struct Revocation {
    /// A component, or everything that a key signed.
    pub what: Revoked,
    /// Why it was revoked: shown wherever it is refused.
    pub reason: String,
    /// Since when, as it was written down.
    pub date: Option<Day>,
}

/// A digest or a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// These bytes, or this generation.
    Digest(Digest),
    /// Everything that this key signed.
    Key(PublicKey),
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => digest.fmt(f),
            Self::Key(key) => key.fmt(f),
        }
    }
}

impl FromStr for Revoked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.starts_with("ed25519:") {
            true => text.parse().map(Self::Key),
            false => text.parse().map(Self::Digest).map_err(|e: crate::base::NotADigest| e.to_string()),
        }
    }
}

impl TrustPolicy {
    /// What the types do not say.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=super::signature::MOST).contains(&self.threshold) {
            let most = super::signature::MOST;
            return Err(format!("trust.threshold is {}; it must be from 1 to {most}", self.threshold));
        }
        let hooks: Vec<&str> = Hook::ALL.iter().map(|hook| hook.name()).collect();
        for (i, signer) in self.signers.iter().enumerate() {
            let name = clean(&signer.name, 60);
            let before = &self.signers[..i];
            if signer.name.trim().is_empty() {
                return Err(format!("the signer with key {} has no name", signer.key));
            }
            if before.iter().any(|other| other.name == signer.name) {
                return Err(format!("two signers are called `{name}`"));
            }
            if before.iter().any(|other| other.key == signer.key) {
                return Err(format!("signer `{name}` has a key that another one has too: he would count twice"));
            }
            let unknown = |hook: &&String| *hook != "*" && !hooks.contains(&hook.as_str());
            if let Some(hook) = signer.hooks.iter().find(unknown) {
                let hint = nearest(hook, hooks.iter().copied()).map(|k| format!(" (did you mean `{k}`?)"));
                let (hook, hint) = (clean(hook, 60), hint.unwrap_or_default());
                return Err(format!(
                    "signer `{name}` is for `{hook}`, which is no hook{hint}; hooks are {}",
                    hooks.join(", ")
                ));
            }
        }
        if self.require_signature && self.signers.len() < self.threshold {
            return Err(format!(
                "trust.require_signature asks for {} of {} signers: nothing could ever run",
                self.threshold,
                self.signers.len()
            ));
        }
        let without = self.revoked.iter().find(|revoked| revoked.reason.trim().is_empty());
        without.map_or(Ok(()), |revoked| Err(format!("{} is revoked without a reason", revoked.what)))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RevocationTable {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<PublicKey>,
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    date: Option<Day>,
}

impl From<Revocation> for RevocationTable {
    fn from(revocation: Revocation) -> Self {
        let Revocation { what, reason, date } = revocation;
        match what {
            Revoked::Digest(digest) => Self { digest: Some(digest), key: None, reason, date },
            Revoked::Key(key) => Self { digest: None, key: Some(key), reason, date },
        }
    }
}

impl TryFrom<RevocationTable> for Revocation {
    type Error = &'static str;

    fn try_from(table: RevocationTable) -> Result<Self, Self::Error> {
        let what = match (table.digest, table.key) {
            (Some(digest), None) => Revoked::Digest(digest),
            (None, Some(key)) => Revoked::Key(key),
            _ => return Err("a revocation has exactly one of `digest` and `key`"),
        };
        Ok(Self { what, reason: table.reason, date: table.date })
    }
}
