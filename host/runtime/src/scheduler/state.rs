//! What callers and the decode thread share. No lock is held while a forward pass, a sink or a weights function runs.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::handle::{SchedulerOptions, WeightsFor};
use super::load::Load;
use super::pause::{PauseMode, Paused};
use super::prefix::PrefixCache;
use super::sequence::Queued;
use crate::engine::Engine;
use crate::tokenizer::Tokenizer;

pub(super) struct Inner {
    pub(super) engine: Arc<Engine>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) weights: WeightsFor,
    pub(super) options: SchedulerOptions,
    state: Mutex<State>,
    /// The decode thread waits here for work.
    pub(super) work: Condvar,
    /// Callers of `pause` wait here.
    pub(super) reached: Condvar,
    prefix: Mutex<PrefixCache>,
    pub(super) counters: Counters,
}

/// What is counted outside of the lock.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) kv_bytes: AtomicUsize,
    pub(super) prefix_hits: AtomicU64,
    pub(super) prefix_queries: AtomicU64,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) generation_tokens: AtomicU64,
    pub(super) finished: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) aborted: AtomicU64,
    pub(super) preempted: AtomicU64,
    pub(super) steps: AtomicU64,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// Jobs that were submitted together under one id. Not the id alone: clients choose ids, and two that choose the same are
/// two requests.
pub(super) type Request = (u64, String);

#[derive(Default)]
pub(super) struct State {
    /// First come, first served.
    pub(super) waiting: VecDeque<Queued>,
    /// Aborted in the queue; the decode thread tells their receivers.
    pub(super) dying: Vec<Queued>,
    /// The sequences of the decode thread.
    pub(super) running: Vec<Registered>,
    /// Jobs by request, queued or running.
    pub(super) jobs: HashMap<Request, usize>,
    pub(super) pause: Option<Pause>,
    pub(super) asleep: Option<u8>,
    pub(super) stop: bool,
    tickets: u64,
}

/// A running sequence, as callers see it.
pub(super) struct Registered {
    pub(super) ticket: u64,
    pub(super) request: Request,
    pub(super) abort: bool,
}

/// A pause that lasts.
pub(super) struct Pause {
    pub(super) mode: PauseMode,
    /// Unlike that of any other pause.
    pub(super) ticket: u64,
    pub(super) reached: bool,
    pub(super) did: Paused,
}

impl Inner {
    pub(super) fn new(
        engine: Arc<Engine>,
        tokenizer: Arc<Tokenizer>,
        weights: WeightsFor,
        options: SchedulerOptions,
    ) -> Self {
        Self {
            engine,
            tokenizer,
            weights,
            options,
            state: Mutex::default(),
            work: Condvar::new(),
            reached: Condvar::new(),
            prefix: Mutex::new(PrefixCache::new(options.prefix_cache_bytes)),
            counters: Counters::default(),
        }
    }

    /// A thread that panicked with the lock left whole values behind: every change under it is one step.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn prefix(&self) -> MutexGuard<'_, PrefixCache> {
        self.prefix.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn load(&self) -> Load {
        let (running, waiting) = {
            let state = self.state();
            (state.running.len(), state.waiting.len())
        };
        let (prefix_entries, prefix_bytes) = {
            let mut prefix = self.prefix();
            prefix.prune();
            (prefix.len(), prefix.bytes())
        };
        let c = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Load {
            running,
            waiting,
            kv_bytes: c.kv_bytes.load(Ordering::Relaxed),
            kv_limit: self.options.kv_cache_bytes,
            prefix_entries,
            prefix_bytes,
            prefix_hits: read(&c.prefix_hits),
            prefix_queries: read(&c.prefix_queries),
            prompt_tokens: read(&c.prompt_tokens),
            generation_tokens: read(&c.generation_tokens),
            finished: read(&c.finished),
            failed: read(&c.failed),
            aborted: read(&c.aborted),
            preempted: read(&c.preempted),
            steps: read(&c.steps),
        }
    }
}

impl State {
    pub(super) fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// Ends the jobs that `which` names; how many.
    pub(super) fn abort(&mut self, which: impl Fn(&str) -> bool) -> usize {
        let mut aborted = 0;
        for r in self.running.iter_mut().filter(|r| !r.abort && which(&r.request.1)) {
            r.abort = true;
            aborted += 1;
        }
        for queued in std::mem::take(&mut self.waiting) {
            match which(&queued.request.1) {
                true => {
                    aborted += 1;
                    self.dying.push(queued);
                }
                false => self.waiting.push_back(queued),
            }
        }
        aborted
    }

    /// Whether running sequences go on.
    pub(super) fn steps(&self) -> bool {
        self.asleep.is_none()
            && !matches!(self.pause.as_ref().map(|p| p.mode), Some(PauseMode::Keep | PauseMode::Retract))
    }

    /// Whether jobs leave the queue.
    pub(super) fn admits(&self) -> bool {
        self.pause.is_none() && self.asleep.is_none() && !self.stop
    }

    /// One job of a request ended; true if it was the last one.
    pub(super) fn forget(&mut self, request: &Request) -> bool {
        match self.jobs.get_mut(request) {
            Some(n) if *n > 1 => {
                *n -= 1;
                false
            }
            _ => {
                self.jobs.remove(request);
                true
            }
        }
    }
}
