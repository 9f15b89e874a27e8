//! What patchhost does with a model: refits while it runs, server, trainer, comparisons, command line. `public` means here:
//! for the package `patchhost`, which lists what is for everybody.
#![allow(missing_docs)]

// The floors below, so that a path reads the same in both packages.
pub(crate) use patchhost_patch::{audit, base, isolate, native, patch, record, sandbox, trust};

pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cmd;
pub mod compare;
pub mod live;
pub mod probe;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "train")]
pub mod train;
