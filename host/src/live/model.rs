//! The live model itself: what it holds, and what it says about itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::Engine;
use patchhost_runtime::error::Result as RuntimeResult;
use patchhost_runtime::refit::{RefitReport, Source};
use patchhost_runtime::tokenizer::Tokenizer;
use patchhost_runtime::weights::WeightSet;
use serde::Serialize;

use super::canary::{CanaryUnit, CanaryWeights, chosen};
use super::priority::Pools;
use super::shadow::ShadowReport;
use crate::base::Digest;
use crate::patch::{Attachments, Board, BoardStatus, HookOptions, Ledger, Rules, Sandbox};
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

/// A model whose patches can change while it runs.
pub struct LiveModel {
    pub(super) engine: Arc<Engine>,
    pub(super) tokenizer: Option<Arc<Tokenizer>>,
    pub(super) board: Arc<Board>,
    pub(super) sandbox: Sandbox,
    pub(super) options: LiveOptions,
    pub(super) pools: Pools,
    /// One refit, swap or staging of weights at a time.
    pub(super) turn: Mutex<Turn>,
    /// Where the weights came from: a swap `now` loads it again, and candidates are probed with it.
    pub(super) source: ArcSwapOption<Source>,
    pub(super) canary: ArcSwapOption<CanaryWeights>,
    pub(super) shadow: ArcSwapOption<ShadowReport>,
    pub(super) last: ArcSwapOption<LastRefit>,
    pub(super) update_open: AtomicBool,
}

/// What goes from refit to refit.
#[derive(Default)]
pub(super) struct Turn {
    /// Refits that were published.
    pub(super) refits: u64,
    /// Hook calls and fuel of each generation at the end of the last refit.
    pub(super) calls: BTreeMap<Digest, (u64, u64)>,
}

/// The last refit, as the status shows it.
#[derive(Debug, Clone, Serialize)]
pub struct LastRefit {
    /// Number of the refit, from 1.
    pub refit: u64,
    /// The set that made the weights.
    pub patch_set: Digest,
    /// Why another set than the active one made them, or a part of them.
    pub degraded: Option<String>,
    /// What was done.
    pub report: RefitReport,
}

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
    /// The last refit.
    pub last_refit: Option<LastRefit>,
    /// Requests in percent that a canary gets, and its set.
    pub canary: Option<(u8, Digest)>,
    /// The last comparison of a candidate in shadow or canary, without its tensors.
    pub shadow: Option<ShadowReport>,
    /// Sequence number and hash of the last event of the ledger.
    pub ledger: crate::patch::Head,
}

impl LiveModel {
    /// An engine, still without weights, and the patches that it starts with. `tokenizer`: none where no text is made.
    pub fn new(
        engine: Engine,
        tokenizer: Option<Tokenizer>,
        start: &Attachments,
        sandbox: Sandbox,
        rules: Rules,
        ledger: Ledger,
        mut options: LiveOptions,
    ) -> Result<Self, rayon::ThreadPoolBuildError> {
        if options.hooks.vocabulary.is_none() {
            options.hooks.vocabulary = tokenizer.as_ref().and_then(|t| u32::try_from(t.vocabulary()).ok());
        }
        let pace = engine.pace().clone();
        let board = Arc::new(Board::new(start, rules, ledger));
        Ok(Self {
            engine: Arc::new(engine),
            tokenizer: tokenizer.map(Arc::new),
            board,
            sandbox: sandbox.beside_decoding(),
            options,
            pools: Pools::new(pace)?,
            turn: Mutex::default(),
            source: ArcSwapOption::empty(),
            canary: ArcSwapOption::empty(),
            shadow: ArcSwapOption::empty(),
            last: ArcSwapOption::empty(),
            update_open: AtomicBool::new(false),
        })
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The tokenizer, where there is one.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// The board.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        self.board.ledger()
    }

    /// The weights for a request: those that serve, or for some requests a canary's. The same request gets the same.
    pub fn weights_for(&self, request_id: &str) -> RuntimeResult<Arc<WeightSet>> {
        if let Some(canary) = &*self.canary.load()
            && chosen(&canary.to, request_id, canary.percent)
        {
            return Ok(canary.weights.clone());
        }
        self.engine.live()
    }

    /// The tensors that the live weights were made of, as they came (what a delta builds on), and the name that they came
    /// with.
    pub fn source(&self) -> Option<(Checkpoint, Option<String>)> {
        self.source.load().as_ref().map(|source| (source.checkpoint().clone(), source.begin().version.clone()))
    }

    /// Whether a refit or an update is under way.
    pub fn is_refitting(&self) -> bool {
        self.engine.is_refitting() || self.update_open.load(Ordering::Acquire)
    }

    /// Everything, as it stands now.
    pub fn status(&self) -> LiveStatus {
        self.board.drain();
        let live = self.engine.live().ok();
        LiveStatus {
            architecture: self.engine.info().architecture.clone(),
            weight_version: live.as_ref().map(|w| w.label().to_string()),
            patch_set: live.as_ref().map(|w| w.patches().to_string()),
            refitting: self.is_refitting(),
            board: self.board.status(),
            last_refit: self.last.load().as_deref().cloned(),
            canary: self.canary.load().as_ref().map(|c| (c.percent, c.to)),
            shadow: self.shadow.load().as_deref().map(ShadowReport::summary),
            ledger: self.ledger().head(),
        }
    }

    pub(super) fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
