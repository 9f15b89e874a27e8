//! A patch that answers.

use super::CallStats;
use crate::abi::{
    Guest, Info, LayoutAdapter, LoaderAdapter, LoraAdapter, MaskAdapter, ObserverAdapter, QuantAdapter, Snapshot,
};
use crate::audit::Report;
use crate::base::Digest;
use crate::base::Grants;
use crate::base::Hook;
use crate::isolate::{Hooked, Remote};
use crate::record::{PatchEntry, Recorder, Tape};
use crate::sandbox::Limits;
use patchhost_runtime::hooks::{BlockQuant, HookError, Layout, LoaderMap, LogitsMask, Lora, RefitObserver};
use std::fmt;
use std::sync::Arc;

/// A patch that was described and configured, with its instances.
pub struct Patch {
    guest: Home,
    digest: Digest,
    generation: Digest,
    hooks: Vec<Hook>,
    settings: Vec<(String, String)>,
    grants: Grants,
    /// Where its calls are written down, if they are.
    tape: Option<Arc<Tape>>,
}

/// Where a patch runs.
pub(super) enum Home {
    /// In this process.
    Here(Arc<Guest>),
    /// In child processes.
    Child(Arc<Remote>),
}

/// The same question to whichever it is.
macro_rules! ask {
    ($home:expr, $guest:ident => $answer:expr) => {
        match $home {
            Home::Here($guest) => $answer,
            Home::Child($guest) => $answer,
        }
    };
}

/// A hook, written down where that is wanted.
macro_rules! recorded {
    ($tape:expr, $hook:expr, $trait:ident) => {
        match &$tape {
            Some(tape) => $hook.map(|hook| Arc::new(tape.over(hook)) as Arc<dyn $trait>),
            None => $hook,
        }
    };
}

impl Patch {
    pub(super) fn new(
        guest: Home,
        digest: Digest,
        report: &Report,
        grants: Grants,
        settings: &[(String, String)],
        limits: &Limits,
        recorder: Option<&Arc<Recorder>>,
    ) -> Self {
        let mut patch = Self {
            guest,
            digest,
            generation: generation(&digest, settings, limits, &super::stage::granted(&report.imports, &grants)),
            hooks: report.hooks.clone(),
            settings: settings.to_vec(),
            grants,
            tape: None,
        };
        patch.tape = recorder.map(|recorder| recorder.patch(patch.entry()));
        patch
    }

    /// It, as a recording knows it.
    fn entry(&self) -> PatchEntry {
        PatchEntry {
            number: 0,
            name: self.info().name.clone(),
            version: self.info().version.clone(),
            sha256: self.digest,
            generation: self.generation,
            hooks: self.hooks.iter().map(|hook| hook.name().to_owned()).collect(),
            settings: self.settings.clone(),
            limits: serde_json::json!(self.limits()).to_string(),
            grants: self.grants.lines(),
            state: self.has_state(),
        }
    }

    /// What it says about itself.
    pub fn info(&self) -> &Info {
        ask!(&self.guest, guest => guest.info())
    }

    /// Digest of the component.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Digest of component, settings, limits and grants: what runs.
    pub fn generation(&self) -> Digest {
        self.generation
    }

    /// The hooks it claims.
    pub fn hooks(&self) -> &[Hook] {
        &self.hooks
    }

    /// Its settings.
    pub fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    /// What it may reach.
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// Its limits.
    pub fn limits(&self) -> &Limits {
        ask!(&self.guest, guest => guest.limits())
    }

    /// Processes that it runs in; none: it runs in this one.
    pub fn processes(&self) -> Vec<u32> {
        match &self.guest {
            Home::Here(_) => Vec::new(),
            Home::Child(remote) => remote.pids(),
        }
    }

    /// Its counters.
    pub fn stats(&self) -> CallStats {
        ask!(&self.guest, guest => guest.stats())
    }

    /// Whether it exports `state`: it remembers something, has one instance at a time, and can hand over what it knows.
    pub fn has_state(&self) -> bool {
        ask!(&self.guest, guest => guest.has_state())
    }

    /// What it remembers now, for its successor. None: it has no state. Ends by its limits (`wall_state_ms`, fuel).
    pub fn export_state(&self) -> Result<Option<Snapshot>, HookError> {
        let ask = || ask!(&self.guest, guest => guest.export_state());
        match &self.tape {
            Some(tape) if self.has_state() => tape.export_state(ask),
            _ => ask(),
        }
    }

    /// Starts it anew with what its predecessor remembered; instances made later get the same. After an error it has no
    /// state, and should not be swapped in.
    pub fn import_state(&self, snapshot: Snapshot) -> Result<(), HookError> {
        let ask = |snapshot| ask!(&self.guest, guest => guest.import_state(snapshot));
        match &self.tape {
            Some(tape) => tape.import_state(snapshot, ask),
            None => ask(snapshot),
        }
    }

    /// It as the runtime's loader map, if it claims that hook.
    pub fn loader_map(self: &Arc<Self>) -> Option<Arc<dyn LoaderMap>> {
        let has = self.hooks.contains(&Hook::LoaderMap);
        let hook = has.then(|| match &self.guest {
            Home::Here(guest) => Arc::new(LoaderAdapter(guest.clone())) as Arc<dyn LoaderMap>,
            Home::Child(remote) => Arc::new(Hooked(remote.clone())),
        });
        recorded!(self.tape, hook, LoaderMap)
    }

    /// It as the runtime's layout, if it claims that hook.
    pub fn layout(self: &Arc<Self>) -> Option<Arc<dyn Layout>> {
        let has = self.hooks.contains(&Hook::Layout);
        let hook = has.then(|| match &self.guest {
            Home::Here(guest) => Arc::new(LayoutAdapter(guest.clone())) as Arc<dyn Layout>,
            Home::Child(remote) => Arc::new(Hooked(remote.clone())),
        });
        recorded!(self.tape, hook, Layout)
    }

    /// It as the runtime's admission of adapters, if it claims that hook.
    pub fn lora(self: &Arc<Self>) -> Option<Arc<dyn Lora>> {
        let has = self.hooks.contains(&Hook::Lora);
        let hook = has.then(|| match &self.guest {
            Home::Here(guest) => Arc::new(LoraAdapter(guest.clone())) as Arc<dyn Lora>,
            Home::Child(remote) => Arc::new(Hooked(remote.clone())),
        });
        recorded!(self.tape, hook, Lora)
    }

    /// It as the runtime's mask of token ids, if it claims that hook.
    pub fn logits_mask(self: &Arc<Self>) -> Option<Arc<dyn LogitsMask>> {
        let has = self.hooks.contains(&Hook::LogitsMask);
        let hook = has.then(|| match &self.guest {
            Home::Here(guest) => Arc::new(MaskAdapter(guest.clone())) as Arc<dyn LogitsMask>,
            Home::Child(remote) => Arc::new(Hooked(remote.clone())),
        });
        recorded!(self.tape, hook, LogitsMask)
    }

    /// It as an observer of refits, if it claims that hook.
    pub fn refit_observer(self: &Arc<Self>) -> Option<Arc<dyn RefitObserver>> {
        let has = self.hooks.contains(&Hook::RefitObserver);
        let hook = has.then(|| match &self.guest {
            Home::Here(guest) => Arc::new(ObserverAdapter(guest.clone())) as Arc<dyn RefitObserver>,
            Home::Child(remote) => Arc::new(Hooked(remote.clone())),
        });
        recorded!(self.tape, hook, RefitObserver)
    }

    /// It as the runtime's block quantizer, if it claims that hook.
    pub fn block_quant(self: &Arc<Self>) -> Option<Arc<dyn BlockQuant>> {
        let has = self.hooks.contains(&Hook::BlockQuant);
        let hook = has.then(|| match &self.guest {
            Home::Here(guest) => {
                Arc::new(QuantAdapter { guest: guest.clone(), hooks: self.hooks.clone() }) as Arc<dyn BlockQuant>
            }
            Home::Child(remote) => Arc::new(Hooked(remote.clone())),
        });
        recorded!(self.tape, hook, BlockQuant)
    }
}

impl fmt::Debug for Patch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patch")
            .field("name", &self.info().name)
            .field("digest", &self.digest)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// The same from what a lock says.
pub(crate) fn identity(
    digest: &Digest,
    settings: &[(String, String)],
    limits: &Limits,
    imports: &[String],
    grants: &Grants,
) -> Digest {
    generation(digest, settings, limits, &super::stage::granted(imports, grants))
}

/// One JSON text, so that no part can pass for another.
pub(super) fn generation(digest: &Digest, settings: &[(String, String)], limits: &Limits, grants: &[String]) -> Digest {
    let parts = serde_json::json!({
        "patchhost": "generation 1",
        "wasm": digest,
        "settings": settings,
        "limits": limits,
        "grants": grants,
    });
    Digest::of(parts.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_wasm_settings_limits_and_grants() {
        let digest = Digest::of(b"x");
        let base = generation(&digest, &[], &Limits::default(), &[]);
        let set = [("a".to_owned(), "b".to_owned())];
        let limits = Limits { fuel_base: 1, ..Limits::default() };
        let others = [
            generation(&Digest::of(b"y"), &[], &Limits::default(), &[]),
            generation(&digest, &set, &Limits::default(), &[]),
            generation(&digest, &[], &limits, &[]),
            generation(&digest, &[], &Limits::default(), &["row-source".to_owned()]),
        ];
        assert!(others.iter().all(|other| *other != base));
        assert_eq!(generation(&digest, &[], &Limits::default(), &[]), base);
    }
}
