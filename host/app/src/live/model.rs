//! The live model itself: what it holds, and what it says about itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwapOption;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::Engine;
use patchhost_runtime::error::Result as RuntimeResult;
use patchhost_runtime::weights::WeightSet;
use serde::Serialize;

use super::embedded::Embedded;
use super::policy::{LastRefit, Live, Staging};
use super::shadow::ShadowReport;
use crate::base::Digest;
use crate::patch::{
    Attachments, Board, BoardStatus, CanaryUnit, Head, Health, HookOptions, Ledger, Rules, Site, chosen,
};
use crate::trust::Gate;

/// How a live model is made.
#[derive(Debug, Clone, Default)]
pub struct LiveOptions {
    /// What refits take besides the patches.
    pub hooks: HookOptions,
    /// What a canary divides.
    pub canary: CanaryUnit,
    /// Where reports of shadow and canary are written; none: only the last one is kept in memory.
    pub reports: Option<PathBuf>,
    /// Write a digest of all weights to the ledger with every refit. Costs hashing them.
    pub hash_weights: bool,
    /// What every candidate goes through: policy, lock, signatures, revocations.
    pub gate: Arc<Gate>,
}

/// A model of the embedded engine whose patches can change while it runs.
pub type LiveModel = Live<Embedded>;

/// Everything about a live model.
#[derive(Debug, Clone, Serialize)]
pub struct LiveStatus {
    /// Architecture of config.json.
    pub architecture: String,
    /// What the trainer calls the weights that serve.
    pub weight_version: Option<String>,
    /// The set that made them.
    pub patch_set: Option<String>,
    /// Whether a refit is under way.
    pub refitting: bool,
    /// The patches.
    pub board: BoardStatus,
    /// The candidates that are going through their stages now.
    pub staging: Vec<Staging>,
    pub last_refit: Option<LastRefit>,
    /// Requests in percent that a canary gets, and its set.
    pub canary: Option<(u8, Digest)>,
    /// The last comparison of a candidate in shadow or canary, without its tensors.
    pub shadow: Option<ShadowReport>,
    /// The last event of the ledger, and whether events can be written.
    pub ledger: LedgerStatus,
}

/// A ledger, as the status shows it.
#[derive(Debug, Clone, Serialize)]
pub struct LedgerStatus {
    /// Sequence number and hash of the last event.
    #[serde(flatten)]
    pub head: Head,
    /// Whether the last event could be written, and how many could not.
    #[serde(flatten)]
    pub health: Health,
}

impl LiveModel {
    /// An engine, still without weights, and the patches that it starts with. Where text is sampled, `options.hooks` names the
    /// vocabulary, so that ids which the tokenizer does not have are masked.
    pub fn new(
        engine: Engine,
        start: &Attachments,
        site: impl Into<Site>,
        rules: Rules,
        ledger: Ledger,
        options: LiveOptions,
    ) -> Result<Self, rayon::ThreadPoolBuildError> {
        let LiveOptions { hooks, canary, reports, hash_weights, gate } = options;
        let pace = engine.pace().clone();
        let board = Arc::new(Board::new(start, rules, ledger));
        let target = Embedded {
            engine: Arc::new(engine),
            board: board.clone(),
            hooks,
            canary_unit: canary,
            reports,
            hash_weights,
            canary: ArcSwapOption::empty(),
            shadow: ArcSwapOption::empty(),
        };
        Self::over(target, board, site, gate, pace)
    }

    pub fn engine(&self) -> &Arc<Engine> {
        &self.target.engine
    }

    /// The weights for a request: those that serve, or for some requests a canary's. The same request gets the same.
    pub fn weights_for(&self, request_id: &str) -> RuntimeResult<Arc<WeightSet>> {
        if let Some(canary) = &*self.target.canary.load()
            && chosen(&canary.to, request_id, canary.percent)
        {
            return Ok(canary.weights.clone());
        }
        self.target.engine.live()
    }

    /// The tensors that the live weights were made of, as they came (what a delta builds on), and the name that they came
    /// with.
    pub fn source(&self) -> Option<(Checkpoint, Option<String>)> {
        self.source.load().as_ref().map(|source| (source.checkpoint().clone(), source.begin().version.clone()))
    }

    /// Whether an update is open or being published.
    pub fn is_updating(&self) -> bool {
        self.update_open.load(Ordering::Acquire)
    }

    /// Whether a refit or an update is under way.
    pub fn is_refitting(&self) -> bool {
        self.target.engine.is_refitting() || self.is_updating()
    }

    /// Everything, as it stands now.
    pub fn status(&self) -> LiveStatus {
        self.board().drain();
        let live = self.target.engine.live().ok();
        LiveStatus {
            architecture: self.target.engine.info().architecture.clone(),
            weight_version: live.as_ref().map(|w| w.label().to_string()),
            patch_set: live.as_ref().map(|w| w.patches().to_string()),
            refitting: self.is_refitting(),
            board: self.board().status(),
            staging: self.staging(),
            last_refit: self.last.load().as_deref().cloned(),
            canary: self.target.canary.load().as_ref().map(|c| (c.percent, c.to)),
            shadow: self.target.shadow.load().as_deref().map(ShadowReport::summary),
            ledger: LedgerStatus { head: self.ledger().head(), health: self.ledger().health() },
        }
    }
}
