//! What the host answers itself, without a sandbox, in the place of a patch or beside one. "Native" is said of two different
//! things, so each has a name of its own here:
//!
//! | name | whose code it is | where it is used |
//! |---|---|---|
//! | [`OwnSource`] | the source that the bundled `fp8_block` is made of (`guests/kit`), compiled natively | the failure policy `native`: it answers for a patch that failed |
//! | [`Formulas`] | the kernels' formulas of the published profiles, which share no code with any patch | `compare --against native`: it shows what a patch does otherwise than its profile says |
//! | `Reference` | the same formulas; for the profile `mse` the source of `fp8_block_mse`, compiled natively | the probe: it asks the patch and the reference the same questions |
//!
//! So agreement with [`Formulas`] means that a patch computes what its profile says, and agreement with [`OwnSource`] or
//! the search only that the component does what its source says.

mod formula;
mod own_source;
mod search;

pub use formula::Formulas;
pub use formula::{expected, profile_of};
pub use own_source::OwnSource;
pub use search::Reference;
