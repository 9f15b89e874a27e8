//! A model whose patches change while it runs: generations, swaps, rollbacks, failures, candidates beside.

mod candidates;
mod failures;
mod isolated;
mod receipts;
mod state;
mod swaps;
mod update;
mod watch;

use std::path::Path;
use std::sync::Arc;

use patchhost::live::{LiveModel, LiveOptions, Refitted};
use patchhost::patch::{
    Actor, Attached, Attachments, Candidate, Description, Digest, Ledger, Phase, Reviewing, Sandbox, Site, SwapRequest,
    Terms, When, resolve,
};
use patchhost::trust::Policy;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::refit::Begin;

use crate::support::{data, evil, repo};

const QUIET: &(dyn Fn(usize, usize, &str) + Sync) = &|_, _, _| {};

/// An oracle model, `moe_loader`, and patches with settings.
pub struct Rig {
    pub live: Arc<LiveModel>,
    pub checkpoint: Checkpoint,
}

pub fn me() -> Actor {
    Actor::new("test")
}

pub fn settings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

/// A component by bundled name or as a guest that misbehaves, as a file of a user.
pub fn candidate(name: &str) -> Candidate {
    let path = repo().join("guests").join(format!("{name}.wasm"));
    Candidate::from_file(if path.exists() { &path } else { Path::new(&evil(name)).to_owned().leak() }).unwrap()
}

impl Rig {
    pub fn new(model: &str, components: &[(&str, &[(&str, &str)])]) -> Self {
        Self::with(model, components, Policy::default(), LiveOptions::default())
    }

    pub fn with(model: &str, components: &[(&str, &[(&str, &str)])], policy: Policy, options: LiveOptions) -> Self {
        Self::inside(Sandbox::new(2).unwrap(), model, components, policy, options)
    }

    /// The same in a given sandbox.
    pub fn inside(
        site: impl Into<Site>,
        model: &str,
        components: &[(&str, &[(&str, &str)])],
        policy: Policy,
        options: LiveOptions,
    ) -> Self {
        let folder = data("oracle").join(model);
        let engine = Engine::open(&folder, EngineOptions::default()).unwrap();
        let site = site.into();
        let mut start = Attachments::new(Description::patchhost(&engine.info().architecture));
        for (name, pairs) in [("moe_loader", [].as_slice())].iter().chain(components) {
            let candidate = if *name == "moe_loader" { resolve(name).unwrap() } else { candidate(name) };
            let patch = Reviewing::default().start(candidate, &Terms::settings(settings(pairs)), &site).unwrap();
            let attached = start.attach(patch, Phase::EngineUp).unwrap();
            assert_eq!(attached, Attached::Now);
        }
        let live = LiveModel::new(engine, &start, site, policy.rules(), Ledger::in_memory(), options).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        live.load(checkpoint.clone(), &me(), QUIET).unwrap();
        Self { live: Arc::new(live), checkpoint }
    }

    pub fn refit(&self) -> Refitted {
        self.live.refit(self.checkpoint.clone(), Begin::default(), &me(), QUIET).unwrap()
    }

    /// Digest of the weights that serve, as they lie in memory.
    pub fn bits(&self) -> String {
        self.live.engine().live().unwrap().digest(self.live.engine().registry())
    }

    pub fn active(&self) -> Digest {
        self.live.board().active().digest()
    }

    pub fn stage(&self, name: &str, pairs: &[(&str, &str)]) -> Digest {
        self.live.stage(candidate(name), None, &settings(pairs), &me()).unwrap().generation
    }

    pub fn swap(&self, to: Digest, when: When) -> patchhost::live::SwapOutcome {
        self.live.swap(&SwapRequest { when, ..SwapRequest::to(to) }, &me()).unwrap()
    }

    /// The events of the ledger, oldest first, without those of staging.
    pub fn events(&self) -> Vec<String> {
        self.live.ledger().recent(1000).iter().map(|e| e.event.to_string()).collect()
    }

    /// How often a patch has failed.
    pub fn failures(&self) -> usize {
        self.events().iter().filter(|event| *event == "patch.failure").count()
    }

    /// The last event of a kind.
    pub fn last(&self, event: &str) -> serde_json::Value {
        let all = self.live.ledger().recent(1000);
        let entry = all.iter().rev().find(|e| e.event == event).unwrap_or_else(|| panic!("no {event}"));
        serde_json::to_value(&entry.fields).unwrap()
    }
}
