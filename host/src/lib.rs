//! patchhost: patches for inference engines as sandboxed, audited, digest-pinned components.

pub mod abi;
pub mod audit;
pub mod base;
pub mod checkpoint;
pub mod cmd;
pub mod compare;
pub mod isolate;
pub mod live;
pub mod native;
pub mod patch;
pub mod probe;
pub mod record;
pub mod sandbox;
pub mod serve;
pub mod train;
pub mod trust;
