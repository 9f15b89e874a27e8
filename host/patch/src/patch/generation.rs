//! A patch set that was activated, with the count of who still uses it.

use super::hooks::answer_natively;
use super::{HookOptions, Patch, PatchSet};
use crate::base::{Digest, Hook};
use patchhost_runtime::refit::{Origin, RefitHooks};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

/// One patch set in one life of the host. A refit holds it from its start to its end, and the weights that it makes hold
/// it until the last request that runs with them is done.
#[derive(Debug)]
pub struct Generation {
    number: u64,
    set: PatchSet,
    /// Hooks whose patch failed and whose place the host's own code takes.
    native: BTreeSet<Hook>,
    digest: Digest,
    /// Cloned into every set of weights: its count says who still uses the generation.
    pin: Arc<()>,
}

/// One patch of a generation, as reports show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Name that the patch gives itself.
    pub name: String,
    pub version: String,
    /// Digest of the component.
    pub sha256: Digest,
    /// Digest of component, settings, limits and grants.
    pub generation: Digest,
    pub hooks: Vec<Hook>,
}

impl Member {
    pub(crate) fn of(patch: &Patch) -> Self {
        Self {
            name: patch.info().name.clone(),
            version: patch.info().version.clone(),
            sha256: *patch.digest(),
            generation: patch.generation(),
            hooks: patch.hooks().to_vec(),
        }
    }
}

impl Generation {
    pub(crate) fn new(number: u64, set: PatchSet) -> Arc<Self> {
        let digest = set.digest();
        Arc::new(Self { number, set, native: BTreeSet::new(), digest, pin: Arc::new(()) })
    }

    /// A set that is tried and never activated.
    pub fn trial(set: PatchSet) -> Arc<Self> {
        Self::new(0, set)
    }

    /// The same set with the host's own code in the place of the patch of one hook. It has a digest of its own.
    pub fn with_native(&self, hook: Hook) -> Arc<Self> {
        let mut native = self.native.clone();
        // The rows are a part of block-quant.
        native.insert(if hook == Hook::BlockQuantRows { Hook::BlockQuant } else { hook });
        let names: String = native.iter().map(|hook| format!("native {hook};")).collect();
        let digest = Digest::of_parts([self.set.digest().as_bytes().as_slice(), names.as_bytes()]);
        let (number, set) = (self.number, self.set.clone());
        Arc::new(Self { number, set, native, digest, pin: Arc::new(()) })
    }

    /// Counts activations of this process, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The patches.
    pub fn set(&self) -> &PatchSet {
        &self.set
    }

    /// Identity of everything that is patched.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Sets of weights that were made by it and are still in use.
    pub fn users(&self) -> usize {
        Arc::strong_count(&self.pin) - 1
    }

    /// Whether the host's own code takes the place of the patch of a hook.
    pub fn is_native(&self, hook: Hook) -> bool {
        self.native.contains(&hook)
    }

    /// What the weights that it made hold.
    pub(crate) fn pin(&self) -> Weak<()> {
        Arc::downgrade(&self.pin)
    }

    /// The patches, as reports show them.
    pub fn members(&self) -> Vec<Member> {
        self.set.patches().iter().map(|patch| Member::of(patch)).collect()
    }

    /// The hooks of a refit through this generation. The weights keep it in use.
    pub fn hooks(&self, options: HookOptions) -> RefitHooks {
        let mut hooks = self.set.hooks(options);
        hooks.origin = Origin { patches: self.digest.to_string(), pin: Some(self.pin.clone()) };
        for hook in &self.native {
            answer_natively(&mut hooks, *hook, &self.set);
        }
        hooks
    }
}
