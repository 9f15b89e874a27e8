//! Words that every room says: names, digests, grants, text of others as it may be shown, files that are written whole.
//! Nothing here knows of WebAssembly, of a model or of the network.

pub mod child;
mod day;
mod digest;
mod exit;
mod explain;
pub mod file;
pub mod fold;
mod grants;
mod hook;
mod shell;
pub mod text;

pub use day::{Day, stamp};
pub use digest::{Digest, NotADigest};
pub use exit::{Code, Exit};
pub use grants::{Dir, DirMode, Grants, Wasi};
pub use hook::{Function, Hook};
pub use patchhost_runtime::words::{hex, nearest};
pub use shell::quoted;

pub(crate) use explain::explain;
pub(crate) use hook::{IDENTITY, PACKAGE, ROW_SOURCE, VERSION, WIT, interface, is_state};
