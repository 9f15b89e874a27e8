//! Between the WIT interface and the runtime's traits: one file per interface, so code is found by the WIT name.

#[macro_use]
mod model;

#[allow(missing_docs, clippy::all, unreachable_pub)] // written by a macro
mod bindings;
pub(crate) mod block_quant;
mod guest;
mod hooks;
pub mod identity;
pub(crate) mod layout;
mod linker;
mod loader_map;
pub(crate) mod logits_mask;
pub(crate) mod lora;
mod refit_observer;
pub(crate) mod row_source;
pub(crate) mod scheme;
mod state;

pub use identity::{Info, Target};
pub use state::Snapshot;

pub(crate) use guest::Guest;
pub(crate) use hooks::{Hooks, Memory};
pub(crate) use linker::linker_for;
