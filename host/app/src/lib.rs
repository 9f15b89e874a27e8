//! What patchhost does with a model: refits while it runs, server, trainer, comparisons, command line. `public` means here:
//! for the package `patchhost`, which lists what is for everybody.
#![allow(missing_docs)]
// What only a verb uses that is left out is not worth a condition of its own.
#![cfg_attr(not(all(feature = "cli", feature = "serve", feature = "train")), allow(dead_code, unused_imports))]

// The floors below, so that a path reads the same in both packages.
pub(crate) use patchhost_patch::{audit, base, native, patch, trust};
#[cfg(feature = "cli")]
pub(crate) use patchhost_patch::{isolate, record, sandbox};

#[cfg(feature = "cli")]
pub mod certify;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cmd;
pub mod compare;
pub mod live;
pub mod probe;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "text")]
pub mod text;
#[cfg(feature = "train")]
pub mod train;
