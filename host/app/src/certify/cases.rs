//! One update of a plan: what is sent, what was done to it on the way, and what a right engine answers.

use patchhost_runtime::hooks::Role;
use serde::{Deserialize, Serialize};

/// What a case is about. The table of results has a row for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Right: a whole checkpoint.
    Full,
    /// Right: the checkpoint that is live already, once more.
    Twice,
    /// Right: a checkpoint in which one expert is scaled.
    ScaledExpert,
    /// Right: a checkpoint with another embedding, which a tied head must follow.
    StaleHead,
    /// Right: all tensors, in another order.
    OutOfOrder,
    /// Faulty: a tensor never comes.
    Lost,
    /// Faulty: a tensor comes twice.
    Doubled,
    /// Faulty: a tensor comes with rows missing.
    Truncated,
    /// Faulty: a tensor has as many values as it must, in another shape.
    Misshapen,
    /// Faulty: a tensor comes under a name that the model does not have.
    Renamed,
    /// Faulty: a value is NaN or infinity.
    NonFinite,
    /// Faulty: tensors of a second trainer come into the same update.
    Interleaved,
    /// Faulty: the sender dies in the middle.
    Killed,
}

impl Kind {
    /// As plans and tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Twice => "twice",
            Self::ScaledExpert => "scaled-expert",
            Self::StaleHead => "stale-head",
            Self::OutOfOrder => "out-of-order",
            Self::Lost => "lost",
            Self::Doubled => "doubled",
            Self::Truncated => "truncated",
            Self::Misshapen => "misshapen",
            Self::Renamed => "renamed",
            Self::NonFinite => "non-finite",
            Self::Interleaved => "interleaved",
            Self::Killed => "killed",
        }
    }
}

/// What a right engine does with an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// It takes it, and answers with the new weights.
    Accept,
    /// It refuses it, and answers with the old weights.
    Refuse,
}

/// A value that no weight may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Poison {
    /// Not a number.
    Nan,
    /// Infinity.
    Inf,
}

/// What is done to the stream of tensors before it is sent. Several are done in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Edit {
    /// A tensor is left out.
    Drop {
        /// Which.
        name: String,
    },
    /// A tensor is sent once more, at the end, or in the place of another one.
    Repeat {
        /// Which.
        name: String,
        /// The one that is left out for it.
        instead_of: Option<String>,
    },
    /// A tensor keeps only its first values, as many as this shape has.
    Truncate {
        /// Which.
        name: String,
        /// The smaller shape.
        shape: Vec<usize>,
    },
    /// A tensor has the same values in another shape.
    Reshape {
        /// Which.
        name: String,
        /// The other shape.
        shape: Vec<usize>,
    },
    /// A tensor is sent under another name.
    Rename {
        /// Which.
        name: String,
        /// Its other name.
        to: String,
    },
    /// One value is no finite number.
    Poison {
        /// Which tensor.
        name: String,
        /// The index of the value, counted over the whole tensor.
        index: usize,
        /// What it becomes.
        value: Poison,
    },
    /// The tensors are sent in a random order.
    Shuffle {
        /// Gives the order; each kit may have its own.
        seed: u64,
    },
    /// After all tensors were sent, these come again from another checkpoint, as from a second trainer.
    Interleave {
        /// The other checkpoint.
        with: String,
        /// The tensors.
        names: Vec<String>,
    },
    /// The sender dies after so many tensors: the update is never ended.
    Stop {
        /// So many tensors were sent.
        after: usize,
    },
}

/// One update of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// `0001`, `0002`, …
    pub id: String,
    /// What it is about.
    pub kind: Kind,
    /// What kind of tensor is hit; none where the whole model is.
    pub class: Option<Role>,
    /// The tensor that is hit, where it is one.
    pub tensor: Option<String>,
    /// What a right engine does.
    pub expect: Expect,
    /// The checkpoint that is sent.
    pub checkpoint: String,
    /// The checkpoint that is live afterwards; none after a refusal, which leaves what was live.
    pub then_holds: Option<String>,
    /// What is done to the stream.
    pub edits: Vec<Edit>,
    /// Why this is expected, as a sentence.
    pub why: String,
}

/// The name of a checkpoint by its number: `base`, `c1`, `c2`, …
pub fn name_of(number: usize) -> String {
    if number == 0 { "base".to_owned() } else { format!("c{number}") }
}

/// A kind of tensors as plans and tables name it; `all` where the whole model is meant.
pub fn class_name(class: Option<Role>) -> &'static str {
    match class {
        None => "all",
        Some(Role::Embedding) => "embedding",
        Some(Role::Norm) => "norm",
        Some(Role::Attention) => "attention",
        Some(Role::Mlp) => "mlp",
        Some(Role::Expert) => "expert",
        Some(Role::SharedExpert) => "shared-expert",
        Some(Role::Router) => "router",
        Some(Role::LmHead) => "lm-head",
        Some(Role::Buffer) => "buffer",
        Some(Role::Other) => "other",
    }
}
