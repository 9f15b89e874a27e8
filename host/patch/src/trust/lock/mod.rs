//! `patchhost.lock`: which patches may run, as which bytes, with which settings, limits and grants, and who said so.

mod diff;
mod entry;
mod lockfile;

pub(super) use diff::fields;
pub use diff::{Change, changes};
pub use entry::{AuditRecord, Entry, Review, Setting, config_digest};
pub use lockfile::{LOCK_FILE, LockFile};
