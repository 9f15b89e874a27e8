//! Version skew: how the interfaces of a component differ from those of this host.

mod types;
mod worlds;

pub(super) use worlds::{Skew, compare};
