//! The patches of one run, in order. At most one claims each hook.

use super::Patch;
use crate::base::{Code, Digest, Exit, Hook};
use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::error::Refusal;
use patchhost_runtime::refit::RefitRules;
use std::sync::Arc;

/// An ordered set of patches without conflicts.
#[derive(Debug, Clone, Default)]
pub struct PatchSet {
    patches: Vec<Arc<Patch>>,
}

/// What a refit takes besides the patches.
#[derive(Debug, Clone, Copy, Default)]
pub struct HookOptions {
    /// Treatment of activations before FP8 matrices.
    pub activation: ActivationMode,
    /// One more than the tokenizer's largest id; none: nothing is sampled, and no mask is asked for.
    pub vocabulary: Option<u32>,
    /// What the operator allows, whatever the patches say.
    pub rules: RefitRules,
}

/// Two patches cannot be in one set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// Both claim one hook.
    #[error("refused: {}", self.parts())]
    Conflict {
        hook: Hook,
        /// The patch that is in the set.
        first: String,
        /// The patch that was to be added.
        second: String,
    },
}

impl Exit for SetError {
    fn exit(&self) -> Code {
        Code::Refused
    }

    fn parts(&self) -> Refusal {
        let Self::Conflict { hook, first, second } = self;
        Refusal {
            what: format!("patch `{second}`"),
            why: format!("hook {hook} is already claimed by patch `{first}`"),
            next: "leave one of the two out".to_owned(),
        }
    }
}

impl PatchSet {
    /// A set of these patches, in this order.
    pub fn new(patches: impl IntoIterator<Item = Arc<Patch>>) -> Result<Self, SetError> {
        let mut set = Self::default();
        for patch in patches {
            set.push(patch)?;
        }
        Ok(set)
    }

    /// Adds a patch, unless it claims a hook that another one has.
    pub fn push(&mut self, patch: Arc<Patch>) -> Result<(), SetError> {
        for hook in patch.hooks().iter().filter(|hook| !hook.shared()) {
            if let Some(first) = self.claims(*hook) {
                let (first, second) = (first.info().name.clone(), patch.info().name.clone());
                return Err(SetError::Conflict { hook: *hook, first, second });
            }
        }
        self.patches.push(patch);
        Ok(())
    }

    /// The patches, in order.
    pub fn patches(&self) -> &[Arc<Patch>] {
        &self.patches
    }

    /// The patch that claims a hook.
    pub fn claims(&self, hook: Hook) -> Option<&Arc<Patch>> {
        self.patches.iter().find(|patch| patch.hooks().contains(&hook))
    }

    /// Digest over the generations, in order: the identity of everything that is patched.
    pub fn digest(&self) -> Digest {
        let generations: Vec<Digest> = self.patches.iter().map(|patch| patch.generation()).collect();
        Digest::of_parts(generations.iter().map(|generation| generation.as_bytes().as_slice()))
    }
}
