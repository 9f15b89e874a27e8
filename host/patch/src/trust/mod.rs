//! Who said that these bytes may run: the lock file, grants, signatures, revocations.

mod command;
mod error;
mod gate;
mod judge;
mod key;
pub mod limits;
mod lock;
mod policy;
mod policy_file;
pub mod provenance;
mod record;
mod revoke;
mod revoked;
mod signature;
mod summary;
mod verdict;

pub use error::{TrustError, TrustErrorKind};
pub use gate::{Gate, Places};
pub use judge::Judgement;
pub use key::{PublicKey, SecretKey};
pub use lock::{AuditRecord, Change, Entry, LOCK_FILE, LockFile, Review, Setting, changes, config_digest};
pub use policy::{Revocation, Revoked, Signer, TrustPolicy};
pub use policy_file::{POLICY_FILE, Policy, PolicyError};
pub use record::{Decision, GrantChange, RecordError, Recorded};
pub use revoke::Revoking;
pub use revoked::{REVOKED_FILE, Revocations};
pub use signature::{Signature, Signatures};
pub use summary::{LockState, Summary};
pub use verdict::{Judge, Signed, Verdict};

use lock::fields as lock_fields;

#[cfg(test)]
mod tests;
