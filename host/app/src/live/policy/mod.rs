//! What is decided about patches while something runs, over any [`RefitTarget`]: candidates and their probe, swaps, refits
//! with the failure policy, shadow and canary, the hand-over of state. Nothing here knows of a model or of tokens.

mod beside;
mod error;
mod fallback;
mod priority;
mod refit;
mod stage;
mod staging;
mod state;
mod swap;
#[cfg(test)]
mod tests;
mod told;
mod update;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwapOption;
use patchhost_runtime::pace::Pace;
use patchhost_runtime::refit::{RefitReport, Source};
use serde::Serialize;

use crate::base::Digest;
use crate::patch::{Board, Ledger, Receipt, RefitTarget, Site};
use crate::trust::Gate;
pub use error::LiveError;
use priority::Pools;
pub use refit::{Prepared, Refitted, Swapped};
pub use stage::Staged;
pub use staging::{Staging, StagingStep};
pub use swap::SwapOutcome;
pub use told::{Deed, Fact, Listener, Step};
pub use update::Update;

/// A target whose patches can change while it runs.
pub struct Live<T: RefitTarget> {
    pub(in crate::live) target: T,
    board: Arc<Board>,
    site: Site,
    gate: Arc<Gate>,
    pools: Pools,
    /// The candidates that are going through their stages.
    staging: staging::UnderWay,
    /// One refit, swap or staging of weights at a time.
    turn: Mutex<Turn>,
    /// Where the weights came from: a swap `now` loads it again, and candidates are probed with it.
    pub(in crate::live) source: ArcSwapOption<Source>,
    pub(in crate::live) last: ArcSwapOption<LastRefit>,
    pub(in crate::live) update_open: AtomicBool,
    /// Who is told what is done.
    told: OnceLock<Listener>,
}

/// What goes from refit to refit.
#[derive(Default)]
struct Turn {
    /// Refits that were published.
    refits: u64,
    /// The last step that a trainer named.
    step: Option<u64>,
    /// Hook calls and fuel of each generation at the end of the last refit.
    calls: BTreeMap<Digest, (u64, u64)>,
}

/// The last refit, as the status shows it.
#[derive(Debug, Clone, Serialize)]
pub struct LastRefit {
    /// Number of the refit, from 1.
    pub refit: u64,
    /// The trainer's step, where it named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// The set that made the weights.
    pub patch_set: Digest,
    /// Why another set than the active one made them, or a part of them.
    pub degraded: Option<String>,
    /// What was done.
    pub report: RefitReport,
    /// Its receipt, without the list of tensors: counts, and digests of everything where they were made.
    pub receipt: Receipt,
}

impl<T: RefitTarget> Live<T> {
    /// A target, still without weights, and the board of its patches. `gate`: what every candidate goes through. `pace`:
    /// whom the threads of refits stand back behind.
    pub fn over(
        target: T,
        board: Arc<Board>,
        site: impl Into<Site>,
        gate: Arc<Gate>,
        pace: Pace,
    ) -> Result<Self, rayon::ThreadPoolBuildError> {
        debug_assert_eq!(board.to(), &target.describe(), "the board is for something else");
        Ok(Self {
            target,
            board,
            site: site.into().beside_decoding(),
            gate,
            pools: Pools::new(pace)?,
            staging: staging::UnderWay::default(),
            turn: Mutex::default(),
            source: ArcSwapOption::empty(),
            last: ArcSwapOption::empty(),
            update_open: AtomicBool::new(false),
            told: OnceLock::new(),
        })
    }

    /// What refits change.
    pub fn target(&self) -> &T {
        &self.target
    }

    /// Which patches are active, coming and retained.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Where everything is written down.
    pub fn ledger(&self) -> &Ledger {
        self.board.ledger()
    }

    /// The candidates that are going through their stages now, and how far each one is.
    pub fn staging(&self) -> Vec<Staging> {
        self.staging.list()
    }

    /// The last refit that was published.
    pub fn last_refit(&self) -> Option<Arc<LastRefit>> {
        self.last.load_full()
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
