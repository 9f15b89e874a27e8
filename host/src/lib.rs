//! patchhost: patches for inference engines as sandboxed, audited, digest-pinned components.

pub mod abi;
pub mod audit;
pub mod base;
pub mod call;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cmd;
pub mod compare;
pub mod isolate;
pub mod live;
pub mod native;
pub mod patch;
pub mod probe;
pub mod record;
pub mod sandbox;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "train")]
pub mod train;
pub mod trust;
