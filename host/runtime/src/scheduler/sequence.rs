//! One sequence that is being generated.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::choose::{Choice, Chooser};
use super::job::{Done, Event, FinishReason, Job, Sink, Started, StopReason, Token};
use super::logprobs::{TokenLogprob, Wanted};
use super::params::SampleParams;
use super::prefix::Key;
use super::state::Request;
use crate::engine::Engine;
use crate::error::{Result, RuntimeError};
use crate::generate::TokenVersion;
use crate::kv::KvCache;
use crate::lora::Adapter;
use crate::model::Model;
use crate::output::{Output, Stops};
use crate::tokenizer::Tokenizer;
use crate::weights::WeightSet;

/// A job with its place in the queue.
pub(super) struct Queued {
    pub(super) ticket: u64,
    pub(super) request: Request,
    pub(super) job: Job,
    pub(super) queued_at: Instant,
}

/// How a sequence ended.
pub(super) struct Ended {
    pub(super) reason: FinishReason,
    pub(super) stop: Option<StopReason>,
    pub(super) error: Option<RuntimeError>,
}

impl Ended {
    pub(super) fn with(reason: FinishReason) -> Self {
        Self { reason, stop: None, error: None }
    }

    pub(super) fn failed(error: RuntimeError) -> Self {
        Self { reason: FinishReason::Error, stop: None, error: Some(error) }
    }
}

/// One sequence. `tokens[cache.len()..]` is what the next steps have to compute: the prompt or a part of it, or the last
/// token, or everything after its keys and values were dropped.
pub(super) struct Running {
    pub(super) ticket: u64,
    pub(super) request: Request,
    pub(super) params: SampleParams,
    pub(super) adapter: Option<Arc<Adapter>>,
    pub(super) weights: Arc<WeightSet>,
    /// The prompt, and what was generated.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    pub(super) cache: KvCache,
    /// Keys and values of several sets of weights: of no use to others.
    pub(super) mixed: bool,
    /// The prefix cache was asked.
    pub(super) looked_up: bool,
    pub(super) started: bool,
    pub(super) cached_tokens: usize,
    pub(super) ended: Option<Ended>,
    /// The receiver went away.
    pub(super) gone: bool,
    chooser: Chooser,
    output: Output,
    prompt_logprobs: Vec<Option<TokenLogprob>>,
    versions: Vec<TokenVersion>,
    pub(super) preempted: usize,
    queued_at: Instant,
    admitted_at: Instant,
    sink: Sink,
}

impl Running {
    pub(super) fn new(queued: Queued, weights: Arc<WeightSet>, model: &Model) -> Self {
        let Queued { ticket, request, job: Job { id: _, prompt, params, adapter, index, sink }, queued_at } = queued;
        let mut cache = model.new_cache_with(adapter.clone());
        cache.reserve(prompt.len().saturating_add(params.max_tokens).min(model.max_positions()));
        Self {
            ticket,
            request,
            weights,
            prompt_len: prompt.len(),
            cache,
            mixed: false,
            looked_up: false,
            started: false,
            cached_tokens: 0,
            ended: None,
            gone: false,
            chooser: Chooser::new(&params, &prompt, index),
            output: Output::new(params.skip_special_tokens),
            prompt_logprobs: Vec::new(),
            versions: Vec::new(),
            preempted: 0,
            queued_at,
            admitted_at: Instant::now(),
            sink,
            tokens: prompt,
            params,
            adapter,
        }
    }

    pub(super) fn key(&self) -> Key {
        Key::new(&self.weights, self.adapter.as_ref(), self.params.cache_salt.as_ref())
    }

    /// Tokens that are to be computed.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    /// How many tokens the next step computes, at most `budget`. In a text longer than `whole_beyond` it matters how it is split
    /// into steps: there they are the same every time, also when keys and values are computed anew.
    pub(super) fn piece(&self, budget: usize, whole_beyond: Option<usize>) -> usize {
        let have = self.cache.len();
        match whole_beyond.filter(|n| self.tokens.len() > *n) {
            None => self.pending().min(budget),
            Some(n) if self.prompt_len > n && have < self.prompt_len => self.prompt_len - have,
            Some(n) if have < n => (n - have).min(budget),
            Some(_) => 1,
        }
    }

    /// Whether the next step gives just the next token.
    pub(super) fn decodes(&self) -> bool {
        self.started && self.pending() == 1
    }

    /// Tokens generated.
    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Whether the logits of every row of the prompt are wanted.
    pub(super) fn wants_prompt(&self) -> bool {
        !self.started && self.params.prompt_logprobs.is_some()
    }

    /// Drops keys and values; the next steps compute them anew.
    pub(super) fn retract(&mut self, model: &Model) -> bool {
        if self.cache.is_empty() {
            return false;
        }
        self.cache = model.new_cache_with(self.adapter.clone());
        self.mixed = false;
        self.looked_up = false;
        self.prompt_logprobs.clear();
        self.preempted += 1;
        true
    }

    /// Goes on with other weights; what is cached is kept.
    pub(super) fn move_to(&mut self, weights: Arc<WeightSet>) {
        if weights.id() != self.weights.id() && !self.cache.is_empty() {
            self.cache.keep_across_publishes();
            self.mixed = true;
        }
        self.weights = weights;
    }

    /// Log-probabilities of prompt tokens from the rows of the step that computed `first..`.
    pub(super) fn prompt_rows(&mut self, first: usize, rows: &[f32], vocab: usize) {
        let Some(top) = self.params.prompt_logprobs else { return };
        if self.prompt_logprobs.is_empty() {
            self.prompt_logprobs.push(None);
        }
        for (i, row) in rows.chunks_exact(vocab).enumerate() {
            if let Some(token) = self.tokens[..self.prompt_len].get(first + i + 1) {
                let wanted = Wanted { top, extra: &self.params.logprob_token_ids, softmax: true };
                self.prompt_logprobs.push(Some(TokenLogprob::of(row, *token, wanted)));
            }
        }
    }

    /// The next token from the logits of the last one; none where no more are wanted. `positions` are the model's.
    pub(super) fn choose(
        &mut self,
        row: &mut [f32],
        tokenizer: &Tokenizer,
        positions: usize,
    ) -> Result<Option<Choice>> {
        if self.params.max_tokens == 0 {
            return Ok(None);
        }
        let early = self.generated() < self.params.min_tokens;
        let ends: Vec<u32> = match early {
            true => {
                let eos = if self.params.ignore_eos { &[] } else { tokenizer.eos() };
                eos.iter().chain(&self.params.stop_token_ids).copied().collect()
            }
            false => Vec::new(),
        };
        let room = (self.params.max_tokens - self.generated()).min((positions + 1).saturating_sub(self.tokens.len()));
        self.chooser.choose(row, &self.params, self.weights.masked(), &ends, room).map(Some)
    }

    /// Gives out a chosen token, and ends the sequence where it is time.
    pub(super) fn accept(&mut self, choice: Option<Choice>, engine: &Engine, tokenizer: &Tokenizer) -> Result<()> {
        if !self.started {
            self.start();
            if self.gone {
                return Ok(());
            }
        }
        let Some(Choice { token, logprob, whole }) = choice else {
            self.ended = Some(Ended::with(FinishReason::Length));
            return Ok(());
        };
        self.tokens.push(token);
        self.count_version();
        let mut text = String::new();
        let eos = !self.params.ignore_eos && tokenizer.eos().contains(&token);
        if eos || self.params.stop_token_ids.contains(&token) {
            if self.params.include_stop_str_in_output {
                text = self.output.push(tokenizer, token, Stops { texts: &[], include: false })?.text;
            }
            text.push_str(&self.output.finish(tokenizer)?);
            let stop = (!eos).then_some(StopReason::Token(token));
            self.ended = Some(Ended { stop, ..Ended::with(FinishReason::Stop) });
        } else {
            let texts = if self.generated() <= self.params.min_tokens { &[] } else { self.params.stop.as_slice() };
            let include = self.params.include_stop_str_in_output;
            let piece = self.output.push(tokenizer, token, Stops { texts, include })?;
            text = piece.text;
            // As in `generate`: the position of the token that was just chosen must still exist.
            let used_up = self.cache.len() + 1 > engine.model().max_positions();
            if let Some(i) = piece.stopped_by {
                let stop = Some(StopReason::Text(texts[i].clone()));
                self.ended = Some(Ended { stop, ..Ended::with(FinishReason::Stop) });
            } else if whole {
                text.push_str(&self.output.finish(tokenizer)?);
                self.ended = Some(Ended::with(FinishReason::Stop));
            } else if self.generated() >= self.params.max_tokens || used_up {
                text.push_str(&self.output.finish(tokenizer)?);
                self.ended = Some(Ended::with(FinishReason::Length));
            }
        }
        self.send(Event::Token(Token { token_id: token, text, logprob, at: Instant::now() }));
        Ok(())
    }

    fn start(&mut self) {
        self.started = true;
        let version = TokenVersion::new(&self.weights, self.adapter.as_deref(), 0..0);
        let prompt_logprobs = self.params.prompt_logprobs.map(|_| std::mem::take(&mut self.prompt_logprobs));
        self.send(Event::Started(Started {
            prompt_tokens: self.prompt_len,
            cached_tokens: self.cached_tokens,
            prompt_logprobs,
            version,
            queued_at: self.queued_at,
            admitted_at: self.admitted_at,
        }));
    }

    /// The token that was just pushed was made by the weights that the sequence holds now.
    fn count_version(&mut self) {
        let n = self.generated();
        let now = TokenVersion::new(&self.weights, self.adapter.as_deref(), n - 1..n);
        match self.versions.last_mut() {
            Some(last) if last.version == now.version && last.patches == now.patches => last.end = n,
            _ => self.versions.push(now),
        }
    }

    /// Hands an event to the receiver. One that is gone, or that panics, ends the job.
    pub(super) fn send(&mut self, event: Event) {
        if self.gone {
            return;
        }
        let alive = catch_unwind(AssertUnwindSafe(|| (self.sink)(event)));
        if !alive.unwrap_or_else(|_| {
            tracing::warn!(request = %self.request.1, "the receiver of a request panicked; the request is aborted");
            false
        }) {
            self.gone = true;
            self.ended = Some(Ended::with(FinishReason::Abort));
        }
    }

    /// The last event.
    pub(super) fn done(&mut self, ended: Ended, tokenizer: &Tokenizer) {
        let Ended { reason, stop, error } = ended;
        let text_tail = catch_unwind(AssertUnwindSafe(|| self.output.finish(tokenizer)));
        let done = Done {
            finish_reason: reason,
            stop_reason: stop,
            text_tail: text_tail.ok().and_then(Result::ok).unwrap_or_default(),
            weight_versions: std::mem::take(&mut self.versions),
            completion_tokens: self.generated(),
            cached_tokens: self.cached_tokens,
            preempted: self.preempted,
            error,
        };
        self.send(Event::Done(done));
    }
}

/// The only event of a job that ends in the queue.
pub(super) fn end_queued(mut queued: Queued, ended: Ended) {
    let done = Done {
        finish_reason: ended.reason,
        stop_reason: ended.stop,
        text_tail: String::new(),
        weight_versions: Vec::new(),
        completion_tokens: 0,
        cached_tokens: 0,
        preempted: 0,
        error: ended.error,
    };
    // Whether the receiver hears it makes no difference any more.
    let _ = catch_unwind(AssertUnwindSafe(|| (queued.job.sink)(Event::Done(done))));
}
