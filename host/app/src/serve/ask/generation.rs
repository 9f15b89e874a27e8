//! The sequences of one request: handed to the scheduler together, read as events or whole. When the reader goes away
//! (a client that hung up, a handler that failed), they are aborted.

use std::sync::Arc;
use std::time::Instant;

use axum::http::StatusCode;
use patchhost_runtime::generate::{FinishReason, TokenVersion};
use patchhost_runtime::lora::Adapter;
use patchhost_runtime::scheduler::{Event, Job, SampleParams, StopReason, TokenLogprob};
use tokio::sync::mpsc;

use super::logprobs::check_amount;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::state::{App, RequestId};
use crate::serve::traces::Tally;

/// Seconds after which a server that goes down may be back.
const RETRY: u32 = 5;

/// What to generate: `n` sequences for each prompt.
pub struct Batch {
    /// The prompts, as tokens.
    pub prompts: Vec<Vec<u32>>,
    /// Sequences for each prompt.
    pub n: usize,
    /// How tokens are chosen.
    pub params: SampleParams,
    /// The adapter to run with.
    pub adapter: Option<Arc<Adapter>>,
}

/// What a time limit is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The whole answer: who gets it at once waits no longer than this.
    Total,
    /// The time between two events: a stream may go on as long as tokens flow.
    Idle,
}

/// The sequences of one request, running.
pub struct Running {
    app: Arc<App>,
    /// Held until all sequences have ended, so that no other request takes the id.
    _id: RequestId,
    /// Ids of the jobs, one per prompt.
    jobs: Vec<String>,
    receiver: mpsc::UnboundedReceiver<(usize, Event)>,
    /// Sequences that have not ended.
    open: usize,
    limit: Limit,
    started: Instant,
    deadline: Instant,
    /// When each sequence gave its last token.
    last: Vec<Option<Instant>>,
    /// What the request's trace says of them, where it has one.
    tally: Option<Tally>,
}

/// What a sequence gave until now; all of it, when it has ended.
#[derive(Debug, Clone)]
pub struct Output {
    pub text: String,
    pub token_ids: Vec<u32>,
    /// Log probability of each token, where asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// Log probability of each token of the prompt (none for the first), where asked for.
    pub prompt_logprobs: Option<Vec<Option<TokenLogprob>>>,
    /// Why it ended; `Abort` while it has not.
    pub finish_reason: FinishReason,
    /// Which stop text or token ended it.
    pub stop_reason: Option<StopReason>,
    /// Which weights and patches made which of its tokens.
    pub weight_versions: Vec<TokenVersion>,
    /// Tokens of its prompt that came from the prefix cache.
    pub cached_tokens: usize,
}

impl Running {
    /// Hands all sequences to the scheduler, or none.
    pub fn start(app: &Arc<App>, id: RequestId, batch: Batch, limit: Limit) -> ApiResult<Self> {
        if app.is_draining() {
            return Err(ApiError::unavailable(
                "this request",
                "the server is draining",
                "send it to another server",
                RETRY,
            ));
        }
        if app.live.engine().live().is_err() {
            return Err(ApiError::unavailable(
                "this request",
                "the weights are being loaded",
                "try again when GET /readyz answers 200",
                RETRY,
            ));
        }
        check_amount(&batch.params, &batch.prompts, batch.n)?;
        let tally = Tally::begin(id.as_str(), &batch.prompts, batch.n, &batch.params, batch.adapter.as_deref());
        let (sender, receiver) = mpsc::unbounded_channel();
        let total = batch.prompts.len() * batch.n;
        let job_id = |k: usize| match batch.prompts.len() {
            1 => id.as_str().to_string(),
            _ => format!("{}-{k}", id.as_str()),
        };
        let mut jobs = Vec::with_capacity(total);
        for (k, prompt) in batch.prompts.iter().enumerate() {
            for index in 0..batch.n {
                let (sender, choice) = (sender.clone(), k * batch.n + index);
                jobs.push(Job {
                    id: job_id(k),
                    prompt: prompt.clone(),
                    params: batch.params.clone(),
                    adapter: batch.adapter.clone(),
                    index,
                    // Never blocks: the channel grows by at most the tokens that the request may have.
                    sink: Box::new(move |event| sender.send((choice, event)).is_ok()),
                });
            }
        }
        app.scheduler.submit_all(jobs)?;
        let jobs = (0..batch.prompts.len()).map(job_id).collect();
        let now = Instant::now();
        Ok(Self {
            app: Arc::clone(app),
            _id: id,
            jobs,
            receiver,
            open: total,
            limit,
            started: now,
            deadline: now + app.options.request_timeout,
            last: vec![None; total],
            tally,
        })
    }

    /// The next event and the choice it belongs to (prompt times `n` plus index); none when all sequences have ended. A
    /// sequence that could not be computed is an error.
    pub async fn next(&mut self) -> Option<ApiResult<(usize, Event)>> {
        let next = self.awaited().await;
        if let (Some(Err(error)), Some(tally)) = (&next, &mut self.tally) {
            tally.failed(error);
        }
        next
    }

    async fn awaited(&mut self) -> Option<ApiResult<(usize, Event)>> {
        if self.open == 0 {
            return None;
        }
        loop {
            match tokio::time::timeout_at(self.deadline.into(), self.receiver.recv()).await {
                Ok(Some((choice, mut event))) => {
                    self.named(&mut event);
                    if self.limit == Limit::Idle {
                        self.deadline = Instant::now() + self.app.options.request_timeout;
                    }
                    self.measure(choice, &event);
                    return Some(match failed(&mut event) {
                        Some(error) => Err(error),
                        None => Ok((choice, event)),
                    });
                }
                // The scheduler dropped a job without a last event: it is gone.
                Ok(None) => {
                    self.open = 0;
                    return Some(Err(ApiError::unavailable(
                        "this request",
                        "the server is going down",
                        "send it to another server",
                        RETRY,
                    )));
                }
                // A trainer that pauses the server may hold it for long: requests wait for it.
                Err(_) if self.app.scheduler.is_paused().is_some() => {
                    self.deadline = Instant::now() + self.app.options.request_timeout;
                }
                Err(_) => {
                    let late = self.too_late();
                    self.app.scheduler.abort(&self.jobs);
                    self.open = 0;
                    return Some(Err(late));
                }
            }
        }
    }

    /// Waits for all sequences.
    pub async fn collect(mut self) -> ApiResult<Vec<Output>> {
        let mut outputs = vec![Output::default(); self.last.len()];
        while let Some(next) = self.next().await {
            let (choice, event) = next?;
            outputs[choice].add(event);
        }
        Ok(outputs)
    }

    /// Gives the weights in an event the name that the trainer gave them after they were published.
    fn named(&self, event: &mut Event) {
        match event {
            Event::Started(started) => self.app.rl.name(&mut started.version),
            Event::Token(_) => {}
            Event::Done(done) => done.weight_versions.iter_mut().for_each(|v| self.app.rl.name(v)),
        }
    }

    fn measure(&mut self, choice: usize, event: &Event) {
        let metrics = &self.app.metrics;
        let now = Instant::now();
        if let Some(tally) = &mut self.tally {
            tally.event(event);
        }
        match event {
            Event::Started(_) => {}
            Event::Token(_) => match self.last[choice].replace(now) {
                None => metrics.first_token(now - self.started),
                Some(last) => metrics.next_token(now - last),
            },
            Event::Done(done) => {
                self.open -= 1;
                metrics.finished(done.finish_reason, now - self.started);
            }
        }
    }

    fn too_late(&self) -> ApiError {
        let seconds = self.app.options.request_timeout.as_secs_f64();
        let why = match self.limit {
            Limit::Total => format!("it took longer than {seconds} s"),
            Limit::Idle => format!("no token came for {seconds} s"),
        };
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            "this request",
            why,
            "ask for fewer tokens, stream the answer, or start the server with a larger --request-timeout",
        )
    }
}

/// Why a sequence ended, where it could not be computed.
fn failed(event: &mut Event) -> Option<ApiError> {
    match event {
        Event::Done(done) => done.error.take().map(ApiError::from),
        _ => None,
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.open > 0 {
            self.app.scheduler.abort(&self.jobs);
        }
    }
}

impl Default for Output {
    fn default() -> Self {
        Self {
            text: String::new(),
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            prompt_logprobs: None,
            finish_reason: FinishReason::Abort,
            stop_reason: None,
            weight_versions: Vec::new(),
            cached_tokens: 0,
        }
    }
}

impl Output {
    /// Takes an event of this sequence in.
    pub fn add(&mut self, event: Event) {
        match event {
            Event::Started(started) => {
                self.cached_tokens = started.cached_tokens;
                self.prompt_logprobs = started.prompt_logprobs;
            }
            Event::Token(token) => {
                self.text.push_str(&token.text);
                self.token_ids.push(token.token_id);
                self.logprobs.extend(token.logprob);
            }
            Event::Done(done) => {
                self.text.push_str(&done.text_tail);
                self.finish_reason = done.finish_reason;
                self.stop_reason = done.stop_reason;
                self.weight_versions = done.weight_versions;
            }
        }
    }
}
