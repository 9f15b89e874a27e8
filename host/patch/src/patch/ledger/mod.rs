//! The ledger: what happened to patches, in order, in a file that shows when it was changed.
//!
//! One record is one line of JSON:
//! `{"actor":"cli","event":"patch.staged",…,"prev":"sha256:…","seq":17,"ts":"2026-11-25T10:00:00.000Z","hash":"sha256:…"}`.
//!
//! **The rule of the hash.** The *body* of a record is its line without the member `hash`: keys sorted by the bytes of
//! their UTF-8, at every depth; no whitespace; in strings only `"`, `\` and the controls below U+0020 are escaped
//! (`\b \t \n \f \r`, else `\u00xx` in lowercase), everything else is UTF-8 as it is; floats that are whole numbers below
//! 2^53 are written as integers. The line is the body with `,"hash":"sha256:HEX"` put before its last brace, and a line
//! feed. HEX is the SHA-256 of the body. A verifier hashes the bytes that stand in the line and never formats a number
//! again, so it needs no agreement about the text of floats.
//!
//! **The chain.** `prev` is the `hash` of the record before, `seq` counts from 0. Record 0 is the genesis
//! (`ledger.genesis`: a random host id, the version of patchhost, when it began; its `prev` is all zeros), so the `prev`
//! of the first event is the digest of the genesis.
//!
//! **Segments.** A file that has grown past its limit is renamed to `FILE.000001` and so on, and the new `FILE` begins
//! with `ledger.continued`, whose `prev` is the last hash of the old file and which names it.
//!
//! **What it shows and what not.** A changed, removed, moved or inserted line is found, with its sequence number. Whoever
//! may write the file can write a whole new chain, or cut the end off at a line: against this, keep the head (sequence
//! number and hash) elsewhere and give it to `patchhost log verify --head`.
//!
//! **A crash.** A record is one `write`, and is on the disk (`fdatasync`) before the call returns. What a killed process
//! leaves is at most a last line without its line feed. The next writer moves it to `FILE.torn.N` and goes on.
//!
//! **A full disk.** A record that cannot be written whole is cut off again, and what it was about does not happen: a refit is not
//! published, a patch is not staged. Events about what happened all the same (a refusal, a failure of a patch) are counted;
//! the next record that can be written comes after a `ledger.gap`, which says how many are missing, of which kinds, since when and why.
//! Until then `FILE.lock` has the count, for a process that dies meanwhile. `verify` reports both.

mod actor;
mod chain;
mod error;
mod file;
mod gap;
mod handle;
mod read;
mod record;
mod segments;

pub use actor::Actor;
pub use chain::{Broken, Head};
pub use error::LedgerError;
pub use file::{LedgerOptions, Opened, Sync, Torn};
pub use gap::Health;
pub use handle::{Event, Ledger};
pub use read::{Shown, Verified, show, verify};
pub(in crate::patch) use record::canonical;
pub use record::{Entry, RESERVED};
pub use segments::Segments;

#[cfg(test)]
mod tests;
