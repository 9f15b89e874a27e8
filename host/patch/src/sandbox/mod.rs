//! The sandbox: one engine, one way to make a store, limits with a reason each. Nothing here knows what a patch is for.

mod budget;
mod cache;
mod engine;
mod fault;
mod limiter;
mod limits;
mod pool;
mod space;
mod stats;
mod store;
pub mod trial;
mod wasi;

pub use cache::{CACHE_VARIABLE, Cache, CacheStats};
pub use engine::{Sandbox, TICK};
pub use fault::Fault;
pub use limits::Limits;
pub use space::AddressSpaceError;
pub use stats::{CallStats, FunctionStats};

pub(crate) use budget::Budget;
pub(crate) use fault::ImportRefused;
pub(crate) use pool::{Instances, Lease, Pool};
pub(crate) use stats::Stats;
pub use trial::{Trial, TrialError};

pub(crate) use store::{Lent, State, run};
pub(crate) use wasi::{Granted, add_to_linker as add_wasi_to_linker};
