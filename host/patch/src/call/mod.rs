//! One call of a patch, as a value: [`Question`] and what comes of it, [`Outcome`]. A child process is asked by it, a
//! recording holds it, a replay asks it again.
//!
//! Two directions: [`Asked`] is a patch's hooks made of somebody who answers questions ([`Ask`]); [`Put`] answers
//! questions with a patch's hooks. Patches in this process that nobody records are called without either: nothing of
//! their calls is copied.

mod ask;
mod put;
mod question;
mod witness;

pub use question::{Answer, Blocks, Outcome, Question, Rows};
pub use witness::PatchEntry;

pub(crate) use ask::{Ask, Asked};
pub(crate) use put::Put;
pub use witness::Witness;
pub(crate) use witness::Witnessed;
