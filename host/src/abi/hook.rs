//! The hooks that a patch can claim, and what their interfaces are called.

use serde::{Serialize, Serializer};
use std::fmt;

/// Package of the interface.
pub(crate) const PACKAGE: &str = "patchhost:patch";

/// Version of the interface that this host speaks.
pub(crate) const VERSION: &str = "0.1.0";

/// Every patch exports it.
pub(crate) const IDENTITY: &str = "patchhost:patch/identity@0.1.0";

/// Full name of an interface of the package.
pub(crate) fn interface(name: &str) -> String {
    format!("{PACKAGE}/{name}@{VERSION}")
}

/// One decision that a patch can take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Where checkpoint tensors go.
    LoaderMap,
    /// What becomes FP8, and with which scale.
    BlockQuant,
    /// Scales from the rows themselves; part of the block-quant hook.
    BlockQuantRows,
    /// Which layout the published weights have.
    Layout,
    /// How an adapter is admitted.
    Lora,
    /// Which token ids are never sampled.
    LogitsMask,
    /// Watches refits and may veto them.
    RefitObserver,
}

impl Hook {
    /// All of them.
    pub const ALL: [Hook; 7] = [
        Hook::LoaderMap,
        Hook::BlockQuant,
        Hook::BlockQuantRows,
        Hook::Layout,
        Hook::Lora,
        Hook::LogitsMask,
        Hook::RefitObserver,
    ];

    /// Its name in the WIT.
    pub const fn name(self) -> &'static str {
        match self {
            Hook::LoaderMap => "loader-map",
            Hook::BlockQuant => "block-quant",
            Hook::BlockQuantRows => "block-quant-rows",
            Hook::Layout => "layout",
            Hook::Lora => "lora",
            Hook::LogitsMask => "logits-mask",
            Hook::RefitObserver => "refit-observer",
        }
    }

    /// Whether several patches may claim it: observers watch side by side, everything else has one answer.
    pub const fn shared(self) -> bool {
        matches!(self, Hook::RefitObserver)
    }

    /// The hook of a call as errors name it: the function between the first backticks.
    pub(crate) fn of_call(call: &str) -> Option<Hook> {
        Some(match call.split('`').nth(1)? {
            "resolve" => Hook::LoaderMap,
            "decide" | "activation" | "scales" | "scales-with-moments" | "activation-scales" => Hook::BlockQuant,
            "panel-scales" => Hook::BlockQuantRows,
            "passes" => Hook::Layout,
            "admit" => Hook::Lora,
            "masked" => Hook::LogitsMask,
            "begin" | "tensors" | "finish" => Hook::RefitObserver,
            _ => return None,
        })
    }

    /// The hook behind an exported interface.
    pub(crate) fn of_interface(full_name: &str) -> Option<Hook> {
        Hook::ALL.into_iter().find(|hook| interface(hook.name()) == full_name)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Hook {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
