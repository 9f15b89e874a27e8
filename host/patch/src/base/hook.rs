//! What a patch can be asked: hooks, their functions, and what their interfaces are called in the WIT.

use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

/// Package of the interface.
pub(crate) const PACKAGE: &str = "patchhost:patch";

/// Version of the interface that this host speaks.
pub(crate) const VERSION: &str = "0.1.0";

/// Every patch exports it.
pub(crate) const IDENTITY: &str = "patchhost:patch/identity@0.1.0";

/// The one interface that a patch may import from this host.
pub(crate) const ROW_SOURCE: &str = "patchhost:patch/row-source@0.1.0";

/// Whether an exported name is `state`. It is no hook: nothing in a refit or a forward pass calls it.
pub(crate) fn is_state(full_name: &str) -> bool {
    full_name == interface("state")
}

macro_rules! wit {
    ($($file:literal)*) => {
        &[$(($file, include_str!(concat!("../../../../wit/patch/0.1.0/", $file)))),*]
    };
}

/// The interface itself: its files and their text.
pub(crate) const WIT: &[(&str, &str)] = wit!("types.wit" "identity.wit" "loader-map.wit" "block-quant.wit" "layout.wit"
    "lora.wit" "logits-mask.wit" "refit-observer.wit" "state.wit");

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

    /// The hook of a call as errors name it: of the function between the first backticks.
    pub fn of_call(call: &str) -> Option<Hook> {
        Function::named(call.split('`').nth(1)?)?.hook()
    }

    /// The hook behind an exported interface.
    pub(crate) fn of_interface(full_name: &str) -> Option<Hook> {
        Hook::ALL.into_iter().find(|hook| interface(hook.name()) == full_name)
    }
}

macro_rules! functions {
    ($($(#[$doc:meta])* $function:ident = $name:literal of $hook:expr;)*) => {
        /// What the host asks a patch: the functions of the WIT, and `instantiate`, which makes an instance. A variant is
        /// only ever added at the end: recordings hold its place.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        #[allow(missing_docs)] // the names are those of the WIT functions
        pub enum Function {
            $($function,)*
        }

        impl Function {
            /// All of them, in the order of their places.
            pub const ALL: &[Function] = &[$(Function::$function),*];

            /// Its name in the WIT.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Function::$function => $name,)*
                }
            }

            /// The hook that it belongs to; none: every patch is asked it, or it hands over state.
            pub const fn hook(self) -> Option<Hook> {
                match self {
                    $(Function::$function => $hook,)*
                }
            }
        }
    };
}

// The one table of what can be asked.
functions! {
    Instantiate = "instantiate" of None;
    Describe = "describe" of None;
    Configure = "configure" of None;
    Resolve = "resolve" of Some(Hook::LoaderMap);
    Decide = "decide" of Some(Hook::BlockQuant);
    Activation = "activation" of Some(Hook::BlockQuant);
    Scales = "scales" of Some(Hook::BlockQuant);
    ScalesWithMoments = "scales-with-moments" of Some(Hook::BlockQuant);
    PanelScales = "panel-scales" of Some(Hook::BlockQuantRows);
    ActivationScales = "activation-scales" of Some(Hook::BlockQuant);
    Passes = "passes" of Some(Hook::Layout);
    Admit = "admit" of Some(Hook::Lora);
    Masked = "masked" of Some(Hook::LogitsMask);
    Begin = "begin" of Some(Hook::RefitObserver);
    Tensors = "tensors" of Some(Hook::RefitObserver);
    Finish = "finish" of Some(Hook::RefitObserver);
    ExportState = "export-state" of None;
    ImportState = "import-state" of None;
}

impl Function {
    /// The function of this name in the WIT.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|function| function.name() == name)
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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
