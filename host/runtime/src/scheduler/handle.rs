//! What callers hold of a scheduler.

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::job::{Job, SubmitError};
use super::load::Load;
use super::pause::{PauseMode, Paused};
use super::sequence::Queued;
use super::state::{Inner, Pause};
use super::worker::Worker;
use crate::engine::Engine;
use crate::error::{Refusal, Result, RuntimeError};
use crate::tokenizer::Tokenizer;
use crate::weights::WeightSet;

/// The weights that a request (by its id) is to run with; asked when the first of its samples is admitted.
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
    handle: Arc<Handle>,
}

struct Handle {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts the decode thread.
    pub fn start(
        engine: Arc<Engine>,
        tokenizer: Arc<Tokenizer>,
        weights: WeightsFor,
        options: SchedulerOptions,
    ) -> std::io::Result<Self> {
        let inner = Arc::new(Inner::new(engine, tokenizer, weights, options));
        let mut worker = Worker::new(inner.clone());
        let thread = std::thread::Builder::new().name("patchhost-decode".to_string()).spawn(move || worker.run())?;
        Ok(Self { handle: Arc::new(Handle { inner, thread: Some(thread) }) })
    }

    /// A scheduler whose worker the caller drives, turn by turn: nothing of what it does depends on time.
    #[cfg(test)]
    pub(super) fn by_hand(
        engine: Arc<Engine>,
        tokenizer: Arc<Tokenizer>,
        weights: WeightsFor,
        options: SchedulerOptions,
    ) -> (Self, Worker) {
        let inner = Arc::new(Inner::new(engine, tokenizer, weights, options));
        let worker = Worker::new(inner.clone());
        (Self { handle: Arc::new(Handle { inner, thread: None }) }, worker)
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.handle.inner
    }

    /// A caller on the decode thread (a sink) must not wait for it.
    fn on_decode_thread(&self) -> bool {
        self.handle.is_current()
    }

    /// Queues a job. It is checked before this returns.
    pub fn submit(&self, job: Job) -> std::result::Result<(), SubmitError> {
        self.submit_all(vec![job])
    }

    /// Queues all samples of a request, or none of them. Those of one id run with the same weights.
    pub fn submit_all(&self, jobs: Vec<Job>) -> std::result::Result<(), SubmitError> {
        let inner = self.inner();
        for job in &jobs {
            check(&inner.engine, &inner.options, job)?;
        }
        let mut state = inner.state();
        if state.stop {
            return Err(SubmitError::Stopped);
        }
        let (waiting, limit) = (state.waiting.len(), inner.options.max_waiting.max(1));
        if waiting + jobs.len() > limit {
            return Err(SubmitError::Full { waiting, limit });
        }
        let queued_at = Instant::now();
        let together = state.ticket();
        for job in jobs {
            let request = (together, job.id.clone());
            *state.jobs.entry(request.clone()).or_default() += 1;
            let ticket = state.ticket();
            state.waiting.push_back(Queued { ticket, request, job, queued_at });
        }
        inner.work.notify_one();
        Ok(())
    }

    /// Ends the jobs of these requests with what they have so far; how many jobs that were.
    pub fn abort(&self, ids: &[String]) -> usize {
        self.abort_where(|id| ids.iter().any(|i| i == id))
    }

    /// Ends all jobs.
    pub fn abort_all(&self) -> usize {
        self.abort_where(|_| true)
    }

    fn abort_where(&self, which: impl Fn(&str) -> bool) -> usize {
        let aborted = self.inner().state().abort(which);
        self.inner().work.notify_one();
        aborted
    }

    /// Pauses, and returns when that is done: when all has been aborted, has ended, is frozen. During a pause another
    /// one may be asked for, which takes its place.
    pub fn pause(&self, mode: PauseMode) -> Paused {
        let (ticket, mut did) = self.begin_pause(mode);
        let inner = self.inner();
        let mut state = inner.state();
        while !self.on_decode_thread() && !state.stop {
            match state.pause.as_ref().filter(|p| p.ticket == ticket) {
                Some(pause) => did = pause.did,
                None => break,
            }
            if state.pause.as_ref().is_some_and(|p| p.reached) {
                break;
            }
            state = inner.reached.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        did
    }

    /// Asks for a pause: its ticket, and what it did at once.
    pub(super) fn begin_pause(&self, mode: PauseMode) -> (u64, Paused) {
        let inner = self.inner();
        let mut state = inner.state();
        let aborted = if mode == PauseMode::Abort { state.abort(|_| true) } else { 0 };
        let did = Paused { aborted, ..Paused::default() };
        let ticket = state.ticket();
        state.pause = Some(Pause { mode, ticket, reached: false, did });
        inner.work.notify_one();
        (ticket, did)
    }

    /// Ends a pause. Sequences that it froze go on with the newest weights.
    pub fn resume(&self) {
        self.inner().state().pause = None;
        self.inner().work.notify_one();
        self.inner().reached.notify_all();
    }

    /// The mode of the pause that lasts.
    pub fn is_paused(&self) -> Option<PauseMode> {
        self.inner().state().pause.as_ref().map(|p| p.mode)
    }

    /// Forgets all prefixes. There is no need to after a publish: prefixes belong to one set of weights.
    pub fn reset_prefix_cache(&self) {
        self.inner().prefix().clear();
    }

    /// Releases the memory of keys, values and prefixes (the levels of vLLM differ in what happens to weights, which the
    /// scheduler does not own). Refused while sequences hold some: pause first. Jobs wait until [`Scheduler::wake`].
    pub fn sleep(&self, level: u8) -> Result<()> {
        let inner = self.inner();
        let refuse = |why: String, next: &str| Err(RuntimeError::Request(Refusal::new("sleep", why, next)));
        if level > 2 {
            return refuse(format!("there is no level {level}"), "give 1 (keep the weights) or 2 (discard them), or 0");
        }
        {
            let mut state = inner.state();
            let retracted = state.pause.as_ref().is_some_and(|p| p.mode == PauseMode::Retract && p.reached);
            if !state.running.is_empty() && !retracted {
                let why = format!("{} sequences hold keys and values", state.running.len());
                return refuse(why, "pause first with mode abort, wait or retract");
            }
            state.asleep = Some(level);
        }
        inner.prefix().clear();
        Ok(())
    }

    /// Ends the sleep.
    pub fn wake(&self) {
        self.inner().state().asleep = None;
        self.inner().work.notify_one();
    }

    /// The level of the sleep that lasts.
    pub fn is_sleeping(&self) -> Option<u8> {
        self.inner().state().asleep
    }

    /// What a metrics endpoint reads.
    pub fn load(&self) -> Load {
        self.inner().load()
    }
}

impl Handle {
    fn is_current(&self) -> bool {
        self.thread.as_ref().is_some_and(|t| t.thread().id() == std::thread::current().id())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.state().stop = true;
        self.inner.work.notify_one();
        self.inner.reached.notify_all();
        // The last handle may go inside of a sink: then the thread ends by itself, after this step.
        if !self.is_current()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the decode thread panicked");
        }
    }
}

/// Refuses a job that could not run.
fn check(engine: &Engine, options: &SchedulerOptions, job: &Job) -> Result<()> {
    let refuse = |what: &str, why: String, next: &str| Err(RuntimeError::Request(Refusal::new(what, why, next)));
    let model = engine.model();
    job.params.check(model.vocab())?;
    if job.prompt.is_empty() {
        return refuse("the prompt", "it has no tokens".to_string(), "give a prompt of at least one character");
    }
    if let Some(t) = job.prompt.iter().find(|t| **t as usize >= model.vocab()) {
        let why = format!("token id {t} is not below the vocabulary size {}", model.vocab());
        return refuse("the prompt", why, "tokenize with the model's own tokenizer");
    }
    let most = model.max_positions();
    if job.prompt.len() > most {
        let why = format!("it has {} tokens, and the model has {most} positions", job.prompt.len());
        return refuse("the prompt", why, "shorten the prompt");
    }
    let bytes = model.cache_bytes(job.prompt.len());
    if bytes > options.kv_cache_bytes {
        let why = format!(
            "keys and values of its {} tokens take {bytes} bytes, and the limit is {}",
            job.prompt.len(),
            options.kv_cache_bytes
        );
        return refuse("the prompt", why, "shorten the prompt, or give the server a greater KV cache");
    }
    if let Some(a) = job.adapter.as_ref().filter(|a| !a.fits(engine.registry())) {
        let why = "it was made for another model".to_string();
        return refuse(&format!("adapter {}", a.name()), why, "load the adapter into this engine");
    }
    Ok(())
}
