//! The threads of refits and candidates: they stand back behind those that decode.

use patchhost_runtime::pace::Pace;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use rustix::process::setpriority_process;
use rustix::thread::gettid;

/// As `nice -n 10`: whoever wants the core beside gets nine tenths of it. Nothing that somebody waits for stands back
/// further: on a machine that is busy with other things it would never end.
const NICE: i32 = 10;
/// The same while tokens are being decoded. A share of a hundredth, which comes in slices that few tokens see; what a refit
/// needs it gets in the moments that the decode thread leaves it ([`Pace`]).
const NICEST: i32 = 19;

/// Pools of their own, so that decoding never waits in a queue behind a refit, nor a refit behind a compiler.
pub(super) struct Pools {
    pace: Pace,
    refit: ThreadPool,
    beside: ThreadPool,
    stage: ThreadPool,
}

impl Pools {
    pub(super) fn new(pace: Pace) -> Result<Self, ThreadPoolBuildError> {
        let nice = |name: &str, or: i32| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(or);
        Ok(Self { pace, refit: pool("refit", NICE)?, beside: pool("beside", nice("XNICE", NICEST))?, stage: pool("stage", nice("XSTAGE", NICE))? })
    }

    /// A refit, and what is done with weights beside it.
    pub(super) fn refit<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let pool = if self.pace.is_decoding() { &self.beside } else { &self.refit };
        self.run(pool, work)
    }

    /// What a candidate goes through: audit, compiler, start, probe. A child that it starts has its priority.
    pub(super) fn stage<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.run(&self.stage, work)
    }

    fn run<R: Send>(&self, pool: &ThreadPool, work: impl FnOnce() -> R + Send) -> R {
        let _background = std::env::var_os("XNONAP").is_none().then(|| self.pace.background());
        pool.install(work)
    }
}

fn pool(what: &'static str, nice: i32) -> Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new()
        .num_threads(rayon::current_num_threads())
        .thread_name(move |i| format!("patchhost-{what}-{i}"))
        .start_handler(move |_| stand_back(nice))
        .build()
}

/// On Linux a thread has a priority of its own. Where it cannot be set the thread is merely less polite.
fn stand_back(nice: i32) {
    if let Err(error) = setpriority_process(Some(gettid()), nice) {
        tracing::debug!(%error, "the priority of a background thread could not be lowered");
    }
}
