//! How weights come in, whatever the dialect calls it: bodies and files are taken apart into [`Piece`]s, and [`RlState`]
//! takes them into one update at a time. Nothing in here knows a dialect, or the server around it.
//!
//! | file | what |
//! |---|---|
//! | `update` | the open update: begin, send, finish, abort |
//! | `open` | whose update that is: which requests belong to it |
//! | `held` | what the live weights are called and hold |
//! | `body` | the body of a request, with what the URL and the headers say about it |
//! | `meta` | what a trainer says about bytes: `update_info`, `bucket_meta` |
//! | `piece`, `dtype` | bytes taken apart into tensors and parts of tensors |
//! | `pickle` | pickles are recognized and refused, never read |
//! | `narrowing` | whether less precise tensors are wanted |
//! | `terms` | whether all tensors come, and what their names become |
//! | `published` | what an update did, as answers tell it |
//! | `roots` | files and folders that a request may name |
//! | `inspect` | checksums and values of the live weights |
//! | `refused` | why weights were not taken, as answers over HTTP |
//!
//! Tensors come in four forms, all little endian and row-major:
//! - **safetensors** bytes. A tensor that is sent in parts comes as a one-dimensional `U8` tensor under its own name, and
//!   `__metadata__` says where the part belongs: `"NAME@range": "BF16[64,32] 4096"` (dtype, shape, first byte).
//! - **packed**: raw bytes, one tensor after the other, and a list of names, dtypes and shapes (vLLM's `update_info`).
//! - **bucket**: raw bytes, and for each tensor name, dtype, shape and offset (verl's `bucket_meta`).
//! - **framed**: eight bytes of length, a JSON text with either list, then the raw bytes.

mod body;
mod dtype;
mod held;
mod inspect;
mod meta;
mod narrowing;
mod open;
pub mod pickle;
mod piece;
mod published;
mod pull;
mod refused;
mod roots;
mod terms;
mod update;

pub use body::{Content, Payload};
pub use held::{begin_of, version_name, version_text};
pub use inspect::{Action, Checked};
pub use meta::{BucketEntry, BucketMeta, UpdateInfo};
pub use narrowing::{FIELD as ALLOW_NARROWING, Narrowing};
pub use open::{Claim, Dialect};
pub use piece::{Piece, base64_bytes, bucket, framed, packed, safetensors};
pub use published::{Published, Stayed};
pub use pull::target as pull_target;
pub use roots::Roots;
pub use terms::{OfUpdate, Terms};
pub use update::{Begun, Received, RlState, Updated};

use patchhost_runtime::error::{Refusal, RuntimeError};

/// Why the tensors of a body were not taken. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// A pickle, or a transport that needs one.
    #[error("refused: {0}")]
    Pickle(Refusal),
    /// The bytes and what is said about them do not fit.
    #[error("refused: {0}")]
    Malformed(Refusal),
    /// Not a safetensors file.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

fn malformed(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> BodyError {
    BodyError::Malformed(Refusal::new(what, why, next))
}
