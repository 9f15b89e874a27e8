//! Lock and signatures of a component on one line.

use crate::base::Digest;
use crate::base::text::clean;
use serde::Serialize;

/// How the lock stands to a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum LockState {
    /// There is no lock.
    NoLock,
    /// It comes with the host, which pins it.
    Bundled,
    /// The lock has it.
    Locked {
        /// Name of the entry.
        name: String,
        /// What may run.
        generation: Digest,
    },
    /// The lock does not know it.
    NotInLock,
    /// The lock has other bytes, settings, limits or grants.
    Differs,
}

/// Lock and signatures of one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub lock: LockState,
    /// Signers whose signatures count.
    pub signers: Vec<String>,
    /// Signatures that were found.
    pub signatures: usize,
    /// How many signers must have signed, where signatures are required.
    pub threshold: usize,
    /// Whether the policy requires signatures of it.
    pub required: bool,
    /// Revoked, or badly signed.
    pub refused: bool,
}

impl Summary {
    /// `signed: infra ✓  lock ✓`.
    pub fn line(&self) -> String {
        let lock = match &self.lock {
            LockState::NoLock => "no lock",
            LockState::Bundled => "lock: bundled ✓",
            LockState::Locked { .. } => "lock ✓",
            LockState::NotInLock => "lock ✗ (not in it)",
            LockState::Differs => "lock ✗ (differs)",
        };
        let names = self.signers.iter().map(|name| clean(name, 60)).collect::<Vec<_>>().join(", ");
        let of =
            if self.threshold > 1 { format!(" ({} of {})", self.signers.len(), self.threshold) } else { String::new() };
        let enough = self.signers.len() >= self.threshold;
        let signed = match (self.signers.is_empty(), self.signatures, self.required) {
            (false, ..) => format!("signed: {names}{of} {}", if enough && !self.refused { '✓' } else { '✗' }),
            (true, 0, false) => "unsigned".to_owned(),
            (true, 0, true) => "unsigned ✗".to_owned(),
            (true, ..) => {
                format!("signed by none that counts{of}{}", if self.required || self.refused { " ✗" } else { "" })
            }
        };
        format!("{signed}  {lock}")
    }
}
