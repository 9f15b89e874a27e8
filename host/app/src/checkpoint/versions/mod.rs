//! Versions of weights in folders: how a trainer hands weights to rollout engines over a shared disk, whole or as the
//! difference to the version before.
//!
//! The form is that of slime's and miles' disk transport and of SGLang's `/pull_weights`, so that their folders can be
//! read here and ours there:
//!
//! ```text
//! SOURCE/weight_v000011/    full:  an ordinary checkpoint (index and shards, or one model.safetensors)
//! SOURCE/weight_v000012/    delta: model.safetensors.index.json and shards of compressed differences
//! ```
//!
//! Names have at least six digits. Version 0 is the checkpoint that the engine started with; it need not be there.
//!
//! **Delta.** The index is
//! `{"metadata": {"version": "000012", "base_version": "000011", "delta_encoding": "xor"|"overwrite",
//! "compression_format": "zstd", "checksum_format": …}, "weight_map": {tensor: file}}`; versions are strings of six digits
//! (numbers are read too). A folder is a delta exactly if `delta_encoding` is there. Each tensor that changed stands in its
//! shard under its own name as a one-dimensional `U8` tensor: one zstd frame. Tensors that did not change are absent;
//! an empty `weight_map` is a version equal to its base. `__metadata__` of each shard maps the name of a tensor to the
//! checksum of its **new** bytes. Inside the frame:
//! - `xor`: new bytes XOR old bytes, as many as the tensor has;
//! - `overwrite`: the number of changed bytes (u32, little endian), their positions in the tensor (u32 each, ascending),
//!   then the new bytes.
//!
//! Checksums are lower-case hex: `sha256` (what we write unless told otherwise), and slime's three, `xxh3-128` (its default),
//! `blake3` and `adler32`. SGLang computes those three only: a version that it shall pull must be written with one of them.
//!
//! **What we add**, where other readers do not look: `__metadata__` of a delta's shards also maps `TENSOR@base` to the
//! dtype, shape and checksum that the tensor has in the base (`BF16[64,32] 5e1f…`), so that a wrong base is found before
//! anything is computed; and a full version that we write has `version` and `checksum_format` in its index and
//! `TENSOR@full`, in the same form, in its shards.
//!
//! **Complete or not.** A folder without an index is complete only if its sole safetensors file is `model.safetensors`:
//! other writers put the index there last. (So no shard of a delta is called that.) We write under a hidden name and
//! rename the folder. Nothing is applied in place: a result is a new checkpoint, made after everything was verified.
//!
//! A checkpoint that SGLang patches in place says in `.weight_sync/state.json` which version it is; without that file in
//! `.weight_sync`, a pull was interrupted and the weights may be mixed, which is refused.
//!
//! Not read: verl's `__delta_spec__`, `__positions__` and `__values__`. They are messages between processes, never folders;
//! they name no version and no base, and their checksum (an XOR over the values) does not see values that change places.

mod apply;
mod checksum;
mod codec;
mod error;
mod index;
mod read;
mod source;
mod version;
mod write;

pub use apply::{Base, apply};
pub use checksum::Checksum;
pub use codec::Encoding;
pub use error::{Result, VersionError};
pub use read::{Delta, Full};
pub use source::{Loaded, Series, Skipped, Source, Step};
pub use version::{Version, applied_version};
pub use write::{Beside, WriteOptions, Written, write_delta, write_full};
