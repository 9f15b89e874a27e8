//! The live model as the trainer sees it.

use std::sync::Arc;

use indicatif::ProgressBar;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::Engine;
use patchhost_runtime::refit::{Begin, Progress};

use super::signals::Signals;
use crate::cmd::live::Started;
use crate::live::{Seen, Watcher};
use crate::patch::{Actor, Patch};
use crate::train::metrics::PatchId;
use crate::train::{Refitted, Rollout};

/// The live model as the trainer sees it.
pub(super) struct LiveRollout<'a> {
    pub(super) started: &'a Started,
    pub(super) signals: &'a Signals,
    pub(super) bar: ProgressBar,
    /// Every patch that made weights, in the order of their first use.
    pub(super) used: Vec<Arc<Patch>>,
}

impl Rollout for LiveRollout<'_> {
    fn engine(&self) -> &Engine {
        self.started.live.engine()
    }

    fn refit(&mut self, weights: &Checkpoint, label: &str, progress: Progress<'_>) -> crate::train::Result<Refitted> {
        // Whatever changed on disk until now is staged now, so that it takes effect with this step and not a later one.
        let mut seen: Vec<Seen> = self.started.watcher.iter().flat_map(Watcher::sync).collect();
        if self.signals.hangup() {
            seen.extend(self.started.files.reload(&Actor::new("sighup")));
        }
        for seen in seen {
            if let Err(error) = &seen.outcome {
                self.bar.suspend(|| errln!("note: {} is not used\n{error}", seen.path.display()));
            }
        }
        let live = &self.started.live;
        let begin = Begin { version: Some(label.to_string()), ..Begin::default() };
        let done = live.refit(weights.clone(), begin, &Actor::new("train"), progress)?;
        for patch in done.generation.set().patches() {
            if !self.used.iter().any(|p| p.generation() == patch.generation()) {
                self.used.push(patch.clone());
            }
        }
        let members = done.generation.members();
        Ok(Refitted {
            weights: done.weights,
            report: done.report,
            patch_set: done.patch_set.to_string(),
            patches: members
                .into_iter()
                .map(|m| PatchId { name: m.name, generation: m.generation.to_string() })
                .collect(),
            note: done.reversed.or(done.degraded),
        })
    }
}
