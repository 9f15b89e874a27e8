//! Hook by hook: how a patch and a set are asked, what a refit takes from a set, and what the host answers itself.

use super::{HookOptions, Patch, PatchSet};
use crate::base::Hook;
use crate::native::OwnSource;
use patchhost_runtime::hooks::{BlockQuant, Layout, LoaderMap, LogitsMask, Lora, RefitObserver};
use patchhost_runtime::refit::{MaskHook, Origin, RefitHooks};
use std::sync::Arc;

/// How the hooks that one patch of a set claims are asked.
macro_rules! asked {
    ($($(#[$doc:meta])* $name:ident: $trait:ident;)*) => {
        impl Patch {
            $(
                $(#[$doc])*
                /// None: this patch does not claim the hook.
                pub fn $name(&self) -> Option<Arc<dyn $trait>> {
                    self.asked().$name.clone()
                }
            )*
        }

        impl PatchSet {
            $(
                $(#[$doc])*
                /// None: no patch of the set claims the hook.
                pub fn $name(&self) -> Option<Arc<dyn $trait>> {
                    self.claims(Hook::$trait)?.$name()
                }
            )*
        }
    };
}

asked! {
    /// Where checkpoint tensors go.
    loader_map: LoaderMap;
    /// What becomes FP8, and with which scales.
    block_quant: BlockQuant;
    /// Which layout the published weights have.
    layout: Layout;
    /// How adapters are admitted.
    lora: Lora;
    /// Which token ids are never sampled.
    logits_mask: LogitsMask;
}

impl Patch {
    /// What watches refits and may veto them. None: this patch does not claim the hook.
    pub fn refit_observer(&self) -> Option<Arc<dyn RefitObserver>> {
        self.asked().refit_observer.clone()
    }
}

impl PatchSet {
    /// What watches refits and may veto them, in the order of the set.
    pub fn observers(&self) -> Vec<Arc<dyn RefitObserver>> {
        self.patches().iter().filter_map(|patch| patch.refit_observer()).collect()
    }

    /// The hooks of a refit through this set: what must not change from one refit to the next is held against what each patch
    /// said first.
    pub fn hooks(&self, options: HookOptions) -> RefitHooks {
        let HookOptions { activation, vocabulary, rules } = options;
        let of = |hook| self.claims(hook);
        let mask = |vocabulary| Some(MaskHook { patch: of(Hook::LogitsMask)?.steady_logits_mask()?, vocabulary });
        RefitHooks {
            loader: of(Hook::LoaderMap).and_then(|patch| patch.steady_loader_map()),
            quant: of(Hook::BlockQuant).and_then(|patch| patch.steady_block_quant()),
            activation,
            layout: of(Hook::Layout).and_then(|patch| patch.steady_layout()),
            observers: self.observers(),
            mask: vocabulary.and_then(mask),
            rules,
            origin: Origin { patches: self.digest().to_string(), pin: None },
        }
    }
}

/// Puts the host's own code in the place of the patch of one hook.
pub(super) fn answer_natively(hooks: &mut RefitHooks, hook: Hook, set: &PatchSet) {
    match hook {
        Hook::BlockQuant | Hook::BlockQuantRows => {
            let settings = set.claims(Hook::BlockQuant).map(|patch| patch.settings()).unwrap_or_default();
            hooks.quant = Some(Arc::new(OwnSource::in_place_of(settings)));
        }
        Hook::Layout => hooks.layout = None,
        Hook::LogitsMask => hooks.mask = None,
        Hook::LoaderMap | Hook::Lora | Hook::RefitObserver => {}
    }
}

/// Whether the host has code of its own for a hook. Without a layout patch weights lie plainly, and nothing is masked
/// that the tokenizer has; a loader map and an adapter's names are what patches are for; an observer that fails must not
/// become one that accepts.
pub fn has_native(hook: Hook) -> bool {
    matches!(hook, Hook::BlockQuant | Hook::BlockQuantRows | Hook::Layout | Hook::LogitsMask)
}
