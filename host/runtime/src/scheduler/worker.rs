//! The decode thread: its orders, admission, pauses, ends.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::job::FinishReason;
use super::pause::PauseMode;
use super::sequence::{Ended, Queued, Running, end_queued};
use super::state::{Inner, Registered, Request, State, count};
use crate::error::{Result, RuntimeError};
use crate::model::Logits;
use crate::weights::WeightSet;

pub(super) struct Worker {
    pub(super) inner: Arc<Inner>,
    /// In the order of admission.
    pub(super) running: Vec<Running>,
    /// The weights of each request, so that all of its samples run with the same.
    pub(super) pins: HashMap<Request, Arc<WeightSet>>,
    /// Sequences stand still: a pause in mode `keep` or `retract`.
    frozen: bool,
    /// The pause that was begun last, by its ticket.
    begun: u64,
    /// Of the last forward pass; kept for the next one.
    pub(super) logits: Logits,
}

/// What the thread has to do, read under one lock.
struct Orders {
    dying: Vec<Queued>,
    aborted: Vec<u64>,
    admitted: Vec<Queued>,
    /// The pause that lasts: its mode and ticket.
    pause: Option<(PauseMode, u64)>,
    asleep: bool,
    stop: bool,
}

impl Worker {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner, running: Vec::new(), pins: HashMap::new(), frozen: false, begun: 0, logits: Logits::default() }
    }

    /// Until the last handle is gone.
    pub(super) fn run(&mut self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.turn())) {
                Ok(true) => {}
                Ok(false) => return,
                Err(panic) => {
                    let error = panicked("the scheduler", panic.as_ref());
                    tracing::error!("{error}");
                    self.fail_all(&error);
                    // Should it happen in every turn, the machine stays usable.
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
        }
    }

    /// One step and what belongs to it; false at the end.
    pub(super) fn turn(&mut self) -> bool {
        let orders = self.orders();
        for queued in orders.dying {
            self.end_queued(queued, Ended::with(FinishReason::Abort));
        }
        for r in self.running.iter_mut().filter(|r| orders.aborted.contains(&r.ticket)) {
            r.ended = Some(Ended::with(FinishReason::Abort));
        }
        self.retire();
        if orders.stop {
            return false;
        }
        match orders.pause {
            Some((mode, ticket)) if ticket != self.begun => {
                self.begin_pause(mode);
                self.begun = ticket;
            }
            None if self.frozen && !orders.asleep => self.thaw(),
            _ => {}
        }
        for queued in orders.admitted {
            self.admit(queued);
        }
        let steps = !self.frozen && !orders.asleep && !self.running.is_empty();
        self.inner.engine.pace().set_decoding(steps);
        if steps {
            self.step();
            self.retire();
        }
        self.gauge();
        self.reach_pause();
        true
    }

    /// Waits until there is something to do.
    fn orders(&self) -> Orders {
        let mut state = self.inner.state();
        while !self.has_work(&state) {
            self.inner.engine.pace().set_decoding(false);
            state = self.inner.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stop {
            state.abort(|_| true);
        }
        let mut admitted = Vec::new();
        while state.admits() && state.running.len() < self.inner.options.max_num_seqs.max(1) {
            let Some(queued) = state.waiting.pop_front() else { break };
            let (ticket, request) = (queued.ticket, queued.request.clone());
            state.running.push(Registered { ticket, request, abort: false });
            admitted.push(queued);
        }
        Orders {
            dying: std::mem::take(&mut state.dying),
            aborted: state.running.iter().filter(|r| r.abort).map(|r| r.ticket).collect(),
            admitted,
            pause: state.pause.as_ref().map(|p| (p.mode, p.ticket)),
            asleep: state.asleep.is_some(),
            stop: state.stop,
        }
    }

    pub(super) fn has_work(&self, state: &State) -> bool {
        let room = state.running.len() < self.inner.options.max_num_seqs.max(1);
        state.stop
            || !state.dying.is_empty()
            || state.running.iter().any(|r| r.abort)
            || state.pause.as_ref().is_some_and(|p| p.ticket != self.begun)
            || (state.steps() && !self.running.is_empty())
            || (state.admits() && room && !state.waiting.is_empty())
    }

    /// Freezes or thaws.
    fn begin_pause(&mut self, mode: PauseMode) {
        match mode {
            PauseMode::Keep => self.frozen = true,
            PauseMode::Retract => {
                self.frozen = true;
                let model = self.inner.engine.model();
                let retracted = self.running.iter_mut().filter_map(|r| r.retract(model).then_some(())).count();
                count(&self.inner.counters.preempted, retracted);
            }
            // What an earlier pause froze must run to its end.
            PauseMode::Wait if self.frozen => self.thaw(),
            PauseMode::Abort | PauseMode::Wait => {}
        }
    }

    /// Tells the caller of `pause` when it is reached.
    fn reach_pause(&self) {
        let mut state = self.inner.state();
        let Some(pause) = state.pause.as_mut().filter(|p| p.ticket == self.begun && !p.reached) else { return };
        if self.running.is_empty() || matches!(pause.mode, PauseMode::Keep | PauseMode::Retract) {
            pause.reached = true;
            pause.did.kept = self.running.len();
            self.inner.reached.notify_all();
        }
    }

    /// Every sequence goes on with the newest weights.
    fn thaw(&mut self) {
        self.frozen = false;
        self.pins.clear();
        for mut r in std::mem::take(&mut self.running) {
            match self.pinned(&r.request) {
                Ok(weights) => r.move_to(weights),
                Err(e) => r.ended = Some(Ended::failed(e)),
            }
            self.running.push(r);
        }
        self.retire();
    }

    fn admit(&mut self, queued: Queued) {
        match self.pinned(&queued.request) {
            Ok(weights) => self.running.push(Running::new(queued, weights, self.inner.engine.model())),
            Err(e) => {
                self.deregister(queued.ticket, &queued.request, FinishReason::Error);
                end_queued(queued, Ended::failed(e));
            }
        }
    }

    fn pinned(&mut self, request: &Request) -> Result<Arc<WeightSet>> {
        if let Some(weights) = self.pins.get(request) {
            return Ok(weights.clone());
        }
        let weights = catch_unwind(AssertUnwindSafe(|| (self.inner.weights)(&request.1)))
            .unwrap_or_else(|panic| Err(panicked("the choice of weights", panic.as_ref())))?;
        self.pins.insert(request.clone(), weights.clone());
        Ok(weights)
    }

    /// Takes out the sequences that ended, and tells their receivers.
    pub(super) fn retire(&mut self) {
        if self.running.iter().all(|r| r.ended.is_none()) {
            return;
        }
        let (ended, running) = std::mem::take(&mut self.running).into_iter().partition(|r| r.ended.is_some());
        self.running = running;
        self.gauge();
        for mut r in ended {
            let Some(how) = r.ended.take() else { continue };
            if let Some(e) = &how.error {
                tracing::warn!(request = %r.request.1, "a request failed: {e}");
            }
            // First the prefix: a caller that sees the job gone may clear the cache, and then it must stay empty.
            if how.reason != FinishReason::Error {
                self.leave_prefix(&mut r);
            }
            self.deregister(r.ticket, &r.request, how.reason);
            r.done(how, &self.inner.tokenizer);
            release(r.weights);
        }
    }

    fn end_queued(&mut self, queued: Queued, how: Ended) {
        self.deregister(queued.ticket, &queued.request, how.reason);
        end_queued(queued, how);
    }

    fn deregister(&mut self, ticket: u64, request: &Request, reason: FinishReason) {
        let finished = matches!(reason, FinishReason::Stop | FinishReason::Length);
        let last = {
            let mut state = self.inner.state();
            state.running.retain(|r| r.ticket != ticket);
            if let Some(pause) = state.pause.as_mut().filter(|p| p.mode == PauseMode::Wait && !p.reached && finished) {
                pause.did.waiting_finished += 1;
            }
            state.forget(request)
        };
        // Not under the lock: with the last user of weights their patches go, and that may do more.
        if last {
            self.pins.remove(request);
        }
        let c = &self.inner.counters;
        count(
            match reason {
                FinishReason::Stop | FinishReason::Length => &c.finished,
                FinishReason::Abort => &c.aborted,
                FinishReason::Error => &c.failed,
            },
            1,
        );
    }

    fn fail_all(&mut self, error: &RuntimeError) {
        // What the lock knows and the thread does not: a job that was lost between the two.
        let known: Vec<u64> = self.running.iter().map(|r| r.ticket).collect();
        let lost: Vec<(u64, Request)> = {
            let state = self.inner.state();
            let lost = state.running.iter().filter(|r| !known.contains(&r.ticket));
            lost.map(|r| (r.ticket, r.request.clone())).collect()
        };
        for (ticket, request) in lost {
            self.deregister(ticket, &request, FinishReason::Error);
        }
        for r in &mut self.running {
            r.ended = Some(Ended::failed(error.again()));
        }
        if catch_unwind(AssertUnwindSafe(|| self.retire())).is_err() {
            self.running.clear();
            self.inner.state().running.clear();
        }
    }

    fn gauge(&self) {
        let bytes = self.running.iter().map(|r| r.cache.bytes()).sum();
        self.inner.counters.kv_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// Lets go of weights. The last holder of a superseded set frees it: on another thread, because every sequence would
/// wait for that.
fn release(weights: Arc<WeightSet>) {
    if Arc::strong_count(&weights) == 1 {
        let name = "patchhost-release".to_string();
        // Without a thread the closure is dropped here, and the weights with it.
        let _ = std::thread::Builder::new().name(name).spawn(move || drop(weights));
    }
}

/// The error that a panic becomes.
pub(super) fn panicked(what: &str, panic: &(dyn std::any::Any + Send)) -> RuntimeError {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    RuntimeError::Internal(format!("{what} panicked: {}", text.unwrap_or("no message")))
}
