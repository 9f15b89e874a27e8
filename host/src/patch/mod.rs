//! The life of a patch: from bytes to something that answers, each step a type of its own.

mod attach;
pub mod bundled;
mod digest;
mod error;
mod live;
mod lock;
mod policy;
mod set;
mod stage;

pub use crate::abi::{Hook, Info, Target};
pub use crate::sandbox::{CallStats, Function, FunctionStats, Limits, Sandbox};
pub use attach::{AttachError, Attached, Attachments, Phase};
pub use bundled::resolve;
pub use digest::Digest;
pub use error::{Stage, StageError};
pub use live::{Applicability, Patch};
pub use lock::{GuestsLock, LockedGuest};
pub use policy::{FailurePolicy, HookPolicy, OnFailure, Policy, PolicyError, ShadowPolicy, SwapPolicy};
pub use set::{HookOptions, PatchSet, SetError};
pub use stage::{Audited, Candidate, Compiled, Origin, Verification, Verified};

#[cfg(test)]
mod tests;
