//! What a patch does when it is asked: golden vectors of the profile that it declares, properties that its own contract
//! implies, and bounds. A probe cannot prove that a patch is right for every input: that is what the native cast does, on
//! every block, for ever. It finds what is wrong before anything depends on it, and says what it has not looked at.

mod ask;
mod bounded;
mod calls;
mod constants;
mod examine;
mod findings;
mod hidden;
mod matrix;
mod others;
mod quant;
mod report;
mod rows;
mod run;
mod scalar;
mod synthetic;
mod twin;
mod vectors;

pub use constants::{Constants, constants};
pub use examine::{before_activation, examine};
pub(crate) use findings::not_started;
pub use report::{Check, ProbeReport, Verdict};
pub use run::{LONGEST, ProbeOptions, Progress, run};
