//! `guests/guests.lock`: the digests of the patches that come with the host.

use crate::base::Digest;
use serde::Deserialize;

/// The lock that this binary was built with.
const TEXT: &str = include_str!("../../../../guests/guests.lock");

/// Digests of the bundled patches.
#[derive(Debug, Clone, Deserialize)]
pub struct GuestsLock {
    /// One per patch.
    #[serde(default, rename = "guest")]
    pub guests: Vec<LockedGuest>,
}

/// One bundled patch.
#[derive(Debug, Clone, Deserialize)]
pub struct LockedGuest {
    /// Name, as in `--component NAME`.
    pub name: String,
    /// File below `guests/`.
    pub file: String,
    /// Digest of the file.
    pub sha256: Digest,
    /// Bytes of the file.
    pub size: u64,
}

impl GuestsLock {
    /// The lock inside this binary.
    pub fn embedded() -> Result<Self, toml::de::Error> {
        toml::from_str(TEXT)
    }

    /// The entry of a patch.
    pub fn get(&self, name: &str) -> Option<&LockedGuest> {
        self.guests.iter().find(|guest| guest.name == name)
    }
}
