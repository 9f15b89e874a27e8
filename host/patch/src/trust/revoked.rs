//! `patchhost.revoked`: what may not run any more. A file of its own, so that it holds with and without a lock.

use super::{Revocation, Revoked, TrustError};
use crate::base::explain;
use crate::base::file::{self, Guard};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Its name where nobody gives another.
pub const REVOKED_FILE: &str = "patchhost.revoked";
const VERSION: u32 = 1;
const HEAD: &str = "# What may not run any more. Written by `patchhost revoke`; see docs/trust.md.\n";

/// The file of revocations: components and keys that are refused everywhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocations {
    version: u32,
    /// In the order in which they came.
    #[serde(default, rename = "revoked", skip_serializing_if = "Vec::is_empty")]
    pub all: Vec<Revocation>,
}

impl Default for Revocations {
    fn default() -> Self {
        Self { version: VERSION, all: Vec::new() }
    }
}

impl Revocations {
    /// Reads the file; nothing is revoked where there is none.
    pub fn read(path: &Path) -> Result<Self, TrustError> {
        let what = || file::shown("revocations", path);
        let next = "restore it from your version control; until then nothing is loaded";
        let Some(text) = file::read(path, "revocations", next)? else { return Ok(Self::default()) };
        Self::parse(&text).map_err(|why| TrustError::usage(what(), why, next))
    }

    /// Reads the text of such a file; the error says why it cannot be understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let read: Self = toml::from_str(text).map_err(|e| explain(text, &e))?;
        if read.version != VERSION {
            return Err(format!("its version is {}, this host knows {VERSION}", read.version));
        }
        Ok(read)
    }

    /// Adds revocations; false: all were there before.
    pub fn add(path: &Path, new: &[Revocation]) -> Result<bool, TrustError> {
        let _guard = Guard::take(path, "revocations")?;
        let mut all = Self::read(path)?;
        let before = all.all.len();
        for one in new {
            if all.get(&one.what).is_none() {
                all.all.push(one.clone());
            }
        }
        if all.all.len() == before {
            return Ok(false);
        }
        let text = toml::to_string(&all).map_err(|e| {
            TrustError::refused(file::shown("revocations", path), e.to_string(), "give a plain --reason")
        })?;
        file::write(path, "revocations", &format!("{HEAD}{text}"))?;
        Ok(true)
    }

    /// The revocation of a digest or key.
    pub fn get(&self, what: &Revoked) -> Option<&Revocation> {
        self.all.iter().find(|revoked| revoked.what == *what)
    }
}
