//! The threads of refits: they stand back behind those that decode.

use rustix::process::{Pid, setpriority_process};
use rustix::thread::gettid;

/// As `nice -n 10`: a decoding thread that wants the core gets nine tenths of it.
const NICE: i32 = 10;

/// A pool of its own, so that decoding never waits in a queue behind a refit.
pub(super) fn refit_pool() -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(rayon::current_num_threads())
        .thread_name(|i| format!("patchhost-refit-{i}"))
        .start_handler(|_| stand_back(gettid()))
        .build()
}

/// On Linux a thread has a priority of its own. Where it cannot be set the refit is merely less polite.
fn stand_back(thread: Pid) {
    if let Err(error) = setpriority_process(Some(thread), NICE) {
        tracing::debug!(%error, "the priority of a refit thread could not be lowered");
    }
}
