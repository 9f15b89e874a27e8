//! `--isolate`: guests run in child processes. A bug of the engine that a guest reaches, or a call that nothing else ends,
//! then costs a child, which is started again, and the call counts as failed: what happens next is the failure policy's.

mod child;
mod confine;
mod process;
mod protocol;
mod remote;

pub use child::child;
pub use process::Isolation;

pub(crate) use remote::{NotStarted, Remote};
