//! Between the WIT interface and the runtime's traits: one file per interface, so code is found by the WIT name.

#[allow(missing_docs, clippy::all, unreachable_pub)] // written by a macro
mod bindings;
mod block_quant;
pub mod diff;
mod guest;
mod hook;
mod identity;
mod loader_map;
mod model;
pub(crate) mod row_source;
mod scheme;
pub mod text;
mod typediff;

pub use hook::Hook;
pub use identity::{Info, Target};

pub(crate) use block_quant::QuantAdapter;
pub(crate) use guest::Guest;
pub(crate) use hook::{IDENTITY, PACKAGE, VERSION, interface};
pub(crate) use loader_map::LoaderAdapter;
