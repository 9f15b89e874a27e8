//! Tensors in the body of a request: what a trainer sends, taken apart into pieces that a refit can take. Nothing here
//! runs code of the sender: pickles are recognized and refused, never read.
//!
//! Four forms, all little endian and row-major:
//! - **safetensors** bytes. A tensor that is sent in parts comes as a one-dimensional `U8` tensor under its own name, and
//!   `__metadata__` says where the part belongs: `"NAME@range": "BF16[64,32] 4096"` (dtype, shape, first byte).
//! - **packed**: raw bytes, one tensor after the other, and a list of names, dtypes and shapes (vLLM's `update_info`).
//! - **bucket**: raw bytes, and for each tensor name, dtype, shape and offset (verl's `bucket_meta`).
//! - **framed**: eight bytes of length, a JSON text with either list, then the raw bytes.

pub mod dtype;
pub mod meta;
pub mod pickle;
mod piece;

pub use meta::{BucketEntry, BucketMeta, UpdateInfo};
pub use piece::{Piece, base64_bytes, bucket, framed, packed, safetensors};

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
