//! A patch that answers.

use super::firsts::Firsts;
use super::stage::With;
use super::{CallStats, Site};
use crate::abi::{Guest, Hooks, Info, Snapshot};
use crate::audit::Report;
use crate::base::{Digest, Grants, Hook};
use crate::call::{Asked, PatchEntry, Put, Witness, Witnessed};
use crate::isolate::Remote;
use crate::sandbox::Limits;
use patchhost_runtime::hooks::HookError;
use std::fmt;
use std::sync::Arc;

/// A patch that was described and configured, with its instances.
pub struct Patch {
    home: Home,
    /// What it is asked through: its guest, or who answers for it.
    asked: Hooks,
    /// What its generation said first.
    firsts: Arc<Firsts>,
    digest: Digest,
    generation: Digest,
    hooks: Vec<Hook>,
    settings: Vec<(String, String)>,
    grants: Grants,
}

/// Where a patch runs.
pub(super) enum Home {
    /// In this process.
    Here(Arc<Guest>),
    /// In child processes.
    Child(Arc<Remote>),
}

/// The same question to whichever it is.
macro_rules! home {
    ($home:expr, $guest:ident => $answer:expr) => {
        match $home {
            Home::Here($guest) => $answer,
            Home::Child($guest) => $answer,
        }
    };
}

impl Home {
    /// The hooks that are claimed, and told to a witness where there is one.
    fn hooks(&self, claimed: &[Hook], witness: Option<(&Arc<dyn Witness>, PatchEntry)>) -> Hooks {
        match (self, witness) {
            (Home::Here(guest), None) => Hooks::of_guest(guest, claimed),
            (Home::Child(remote), None) => Asked::hooks(Arc::clone(remote), claimed),
            (Home::Here(guest), Some((witness, entry))) => {
                let put = Put::new(Hooks::of_guest(guest, claimed));
                Asked::hooks(Witnessed::new(put, Arc::clone(witness), entry), claimed)
            }
            (Home::Child(remote), Some((witness, entry))) => {
                Asked::hooks(Witnessed::new(Arc::clone(remote), Arc::clone(witness), entry), claimed)
            }
        }
    }
}

impl Patch {
    pub(super) fn new(home: Home, digest: Digest, report: &Report, with: With, site: &Site) -> Self {
        let With { settings, limits, grants } = with;
        let generation = generation(&digest, &settings, &limits, &super::stage::granted(&report.imports, &grants));
        let hooks = report.hooks.clone();
        let info = home!(&home, guest => guest.info());
        let entry = || PatchEntry {
            number: 0,
            name: info.name.clone(),
            version: info.version.clone(),
            sha256: digest,
            generation,
            hooks: hooks.iter().map(|hook| hook.name().to_owned()).collect(),
            settings: settings.clone(),
            limits: serde_json::json!(limits).to_string(),
            grants: grants.lines(),
            state: report.has_state(),
        };
        let asked = home.hooks(&hooks, site.witness().map(|witness| (witness, entry())));
        let firsts = site.firsts().of(generation);
        Self { home, asked, firsts, digest, generation, hooks, settings, grants }
    }

    /// What it says about itself.
    pub fn info(&self) -> &Info {
        home!(&self.home, guest => guest.info())
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

    pub fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    /// What it may reach.
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    pub fn limits(&self) -> &Limits {
        home!(&self.home, guest => guest.limits())
    }

    /// Processes that it runs in; none: it runs in this one.
    pub fn processes(&self) -> Vec<u32> {
        match &self.home {
            Home::Here(_) => Vec::new(),
            Home::Child(remote) => remote.pids(),
        }
    }

    /// Its counters.
    pub fn stats(&self) -> CallStats {
        home!(&self.home, guest => guest.stats())
    }

    /// Whether it exports `state`: it remembers something, has one instance at a time, and can hand over what it knows.
    pub fn has_state(&self) -> bool {
        home!(&self.home, guest => guest.has_state())
    }

    /// What it remembers now, for its successor. None: it has no state. Ends by its limits (`wall_state_ms`, fuel).
    pub fn export_state(&self) -> Result<Option<Snapshot>, HookError> {
        if self.has_state() { self.asked.memory.export_state() } else { Ok(None) }
    }

    /// Starts it anew with what its predecessor remembered; instances made later get the same. After an error it has no
    /// state, and should not be swapped in.
    pub fn import_state(&self, snapshot: Snapshot) -> Result<(), HookError> {
        self.asked.memory.import_state(snapshot)
    }

    /// What its generation said first.
    pub(super) fn firsts(&self) -> &Arc<Firsts> {
        &self.firsts
    }

    /// The hooks that it is asked through.
    pub(crate) fn asked(&self) -> &Hooks {
        &self.asked
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
pub fn identity(
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
