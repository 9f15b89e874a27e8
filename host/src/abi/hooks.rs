//! The hooks of one patch, each where the patch claims it: what the rest of the host asks, wherever the patch runs.

use super::{Guest, LayoutAdapter, LoaderAdapter, LoraAdapter, MaskAdapter, ObserverAdapter, QuantAdapter, Snapshot};
use crate::base::Hook;
use patchhost_runtime::hooks::{BlockQuant, HookError, Layout, LoaderMap, LogitsMask, Lora, RefitObserver};
use std::sync::Arc;

/// What a patch remembers, given to its successor and taken from its predecessor.
pub(crate) trait Memory: Send + Sync {
    /// What it remembers now; none: it has no state.
    fn export_state(&self) -> Result<Option<Snapshot>, HookError>;
    /// Starts it anew with what another one remembered. After an error it has no state.
    fn import_state(&self, snapshot: Snapshot) -> Result<(), HookError>;
}

/// The hooks that a patch claims.
#[derive(Clone)]
pub(crate) struct Hooks {
    /// The name that the patch gives itself.
    pub(crate) name: String,
    pub(crate) loader_map: Option<Arc<dyn LoaderMap>>,
    pub(crate) block_quant: Option<Arc<dyn BlockQuant>>,
    pub(crate) layout: Option<Arc<dyn Layout>>,
    pub(crate) lora: Option<Arc<dyn Lora>>,
    pub(crate) logits_mask: Option<Arc<dyn LogitsMask>>,
    pub(crate) refit_observer: Option<Arc<dyn RefitObserver>>,
    pub(crate) memory: Arc<dyn Memory>,
}

impl Hooks {
    /// Of a patch in this process: each call goes straight to the guest, with nothing copied.
    pub(crate) fn of_guest(guest: &Arc<Guest>, claimed: &[Hook]) -> Self {
        let has = |hook: Hook| claimed.contains(&hook).then(|| Arc::clone(guest));
        let quant = |guest| QuantAdapter { guest, hooks: claimed.to_vec() };
        Self {
            name: guest.info().name.clone(),
            loader_map: has(Hook::LoaderMap).map(|guest| Arc::new(LoaderAdapter(guest)) as _),
            block_quant: has(Hook::BlockQuant).map(|guest| Arc::new(quant(guest)) as _),
            layout: has(Hook::Layout).map(|guest| Arc::new(LayoutAdapter(guest)) as _),
            lora: has(Hook::Lora).map(|guest| Arc::new(LoraAdapter(guest)) as _),
            logits_mask: has(Hook::LogitsMask).map(|guest| Arc::new(MaskAdapter(guest)) as _),
            refit_observer: has(Hook::RefitObserver).map(|guest| Arc::new(ObserverAdapter(guest)) as _),
            memory: Arc::clone(guest) as _,
        }
    }
}
