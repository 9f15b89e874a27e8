//! Between the WIT interface and the runtime's traits: one file per interface, so code is found by the WIT name.

#[allow(missing_docs, clippy::all, unreachable_pub)] // written by a macro
mod bindings;
pub(crate) mod block_quant;
mod guest;
mod hooks;
pub(crate) mod identity;
pub(crate) mod layout;
mod linker;
mod loader_map;
pub(crate) mod logits_mask;
pub(crate) mod lora;
mod model;
mod refit_observer;
pub(crate) mod row_source;
pub(crate) mod scheme;
mod state;

pub use identity::{Info, Target};
pub use state::Snapshot;

pub(crate) use block_quant::QuantAdapter;
pub(crate) use guest::Guest;
pub(crate) use hooks::{Hooks, Memory};
pub(crate) use layout::LayoutAdapter;
pub(crate) use linker::linker_for;
pub(crate) use loader_map::LoaderAdapter;
pub(crate) use logits_mask::MaskAdapter;
pub(crate) use lora::LoraAdapter;
pub(crate) use refit_observer::ObserverAdapter;
