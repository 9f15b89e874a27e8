//! The life of a patch: from bytes to something that answers, each step a type of its own.

mod admission;
mod applies;
mod attach;
mod board;
pub mod bundled;
pub(crate) mod candidate;
mod error;
mod facts;
mod firsts;
mod generation;
mod hooks;
pub mod ledger;
mod live;
mod lock;
mod mixed;
mod policy;
mod receipt;
mod set;
mod site;
mod stage;
mod target;

pub use crate::abi::{Info, Snapshot, Target};
pub use crate::base::{Digest, Function, Grants, Hook, NotADigest};
pub use crate::sandbox::{AddressSpaceError, Cache, CacheStats, CallStats, FunctionStats, Limits, Sandbox, Trial};
pub use admission::{Admission, Admitted, Reviewing, Terms};
pub use applies::{Applicability, Description, HostIdentity};
pub use attach::{AttachError, Attached, Attachments, Phase};
pub use board::{
    Beside, Board, BoardStatus, DrainingStatus, Failure, Landing, Mode, QuarantineStatus, Reaction, RefitAt, RefitPlan,
    Requested, StagedStatus, SwapError, SwapErrorKind, SwapRequest, TransitionStatus, When,
};
pub use bundled::resolve;
pub use candidate::{Candidate, Origin};
pub use error::{Stage, StageError};
pub use facts::Facts;
pub use generation::{Generation, Member};
pub use ledger::{Actor, Entry, Event, Head, Health, Ledger, LedgerError, LedgerOptions};
pub use live::Patch;
pub use lock::{GuestsLock, LockedGuest};
pub use policy::{FailurePolicy, HookPolicy, OnFailure, Rules, ShadowPolicy, SwapPolicy};
pub use receipt::{Counts, Digests, Handed, Receipt, ReceiptError, TensorReceipt};
pub use set::{HookOptions, PatchSet, SetError};
pub use site::Site;
pub use stage::{Audited, Compiled};
pub use target::{Attempt, CanaryUnit, Compared, Proved, RefitTarget, TargetError, TensorFinding, Verdict};

pub use board::probe_set;
pub use hooks::has_native;
pub use live::identity;
pub use mixed::chosen;

#[cfg(test)]
mod tests;
