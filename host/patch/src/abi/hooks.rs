//! The hooks of one patch, each where the patch claims it: what its instances export, and what the rest of the host asks,
//! wherever the patch runs.

use super::bindings::{
    block_quant, block_quant_rows, identity, layout, loader_map, logits_mask, lora, refit_observer, state,
};
use super::block_quant::QuantAdapter;
use super::layout::LayoutAdapter;
use super::loader_map::LoaderAdapter;
use super::logits_mask::MaskAdapter;
use super::lora::LoraAdapter;
use super::refit_observer::ObserverAdapter;
use super::{Guest, Snapshot};
use crate::base::Hook;
use crate::sandbox::State;
use patchhost_runtime::hooks::{BlockQuant, HookError, Layout, LoaderMap, LogitsMask, Lora, RefitObserver};
use std::sync::Arc;
use wasmtime::Store;
use wasmtime::component::{Instance, InstancePre};

/// The hooks: field, module of the bindings, hook.
macro_rules! hooks {
    ($($field:ident: $module:ident = $hook:ident),* $(,)?) => {
        /// What one instance exports, looked up and type-checked.
        pub(crate) struct Exports {
            pub(super) identity: identity::Guest,
            pub(super) state: Option<state::Guest>,
            $(pub(super) $field: Option<$module::Guest>,)*
        }

        /// Where the exports of a component are; found once, before there is an instance.
        pub(super) struct Indices {
            identity: identity::GuestIndices,
            state: Option<state::GuestIndices>,
            $($field: Option<$module::GuestIndices>,)*
        }

        impl Indices {
            pub(super) fn new(pre: &InstancePre<State>, hooks: &[Hook], state: bool) -> wasmtime::Result<Self> {
                Ok(Self {
                    identity: identity::GuestIndices::new(pre)?,
                    state: state.then(|| state::GuestIndices::new(pre)).transpose()?,
                    $($field: hooks.contains(&Hook::$hook).then(|| $module::GuestIndices::new(pre)).transpose()?,)*
                })
            }

            pub(super) fn load(&self, store: &mut Store<State>, instance: &Instance) -> wasmtime::Result<Exports> {
                Ok(Exports {
                    identity: self.identity.load(&mut *store, instance)?,
                    state: self.state.as_ref().map(|i| i.load(&mut *store, instance)).transpose()?,
                    $($field: self.$field.as_ref().map(|i| i.load(&mut *store, instance)).transpose()?,)*
                })
            }
        }
    };
}

hooks! {
    loader_map: loader_map = LoaderMap,
    block_quant: block_quant = BlockQuant,
    rows: block_quant_rows = BlockQuantRows,
    layout: layout = Layout,
    lora: lora = Lora,
    logits_mask: logits_mask = LogitsMask,
    refit_observer: refit_observer = RefitObserver,
}

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
