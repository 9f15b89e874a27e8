//! The threads of refits and candidates: they stand back behind those that decode.

use patchhost_runtime::pace::Pace;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use rustix::process::setpriority_process;
use rustix::thread::gettid;

/// As `nice -n 10`: whoever wants the core beside gets nine tenths of it. What somebody waits for stands back no further:
/// on a machine that is busy with other things it would never end.
const NICE: i32 = 10;
/// The same for candidates while tokens are being decoded: a compiler cannot be cut into short pieces, so its slices have
/// to be rare. Nobody waits for it but the candidate.
const NICEST: i32 = 19;

/// Pools of their own, so that decoding never waits in a queue behind a refit, nor a refit behind a compiler.
pub(super) struct Pools {
    pace: Pace,
    refit: ThreadPool,
    stage: ThreadPool,
    stage_beside: ThreadPool,
}

impl Pools {
    /// `pace` says whether tokens are being decoded.
    pub(super) fn new(pace: Pace) -> Result<Self, ThreadPoolBuildError> {
        let pool = |what: &'static str, nice: i32| {
            let pace = pace.clone();
            ThreadPoolBuilder::new()
                .num_threads(rayon::current_num_threads())
                .thread_name(move |i| format!("patchhost-{what}-{i}"))
                .start_handler(move |_| stand_back(nice, &pace))
                .build()
        };
        let (refit, stage, stage_beside) = (pool("refit", NICE)?, pool("stage", NICE)?, pool("beside", NICEST)?);
        Ok(Self { pace, refit, stage, stage_beside })
    }

    /// A refit, and what is done with weights beside it.
    pub(super) fn refit<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.refit.install(work)
    }

    /// What a candidate goes through: audit, compiler, probe. A child that is started here has the priority of these
    /// threads for ever: one that answers while tokens are decoded must be started elsewhere.
    pub(super) fn stage<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let pool = if self.pace.is_decoding() { &self.stage_beside } else { &self.stage };
        pool.install(work)
    }
}

/// On Linux a thread has a priority of its own. Where it cannot be set the thread is merely less polite.
fn stand_back(nice: i32, pace: &Pace) {
    pace.stand_back();
    if let Err(error) = setpriority_process(Some(gettid()), nice) {
        tracing::debug!(%error, "the priority of a background thread could not be lowered");
    }
}
