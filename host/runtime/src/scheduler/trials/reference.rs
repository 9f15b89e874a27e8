//! What a request gives alone: no batch, no plan, no budget, no prefix cache. A sequence that was moved to other weights while it
//! was frozen is moved at the same place here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::model::{Kind, tokenizer};
use crate::model::{Logits, Rows, Sequence};
use crate::scheduler::job::{Event, FinishReason, Job};
use crate::scheduler::params::SampleParams;
use crate::scheduler::sequence::{Ended, Queued, Running};
use crate::scheduler::worker::panicked;
use crate::weights::WeightSet;

/// What one job asks for.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) id: String,
    pub(super) prompt: Vec<u32>,
    pub(super) params: SampleParams,
    /// Of the kind's adapters, by index.
    pub(super) adapter: Option<usize>,
    pub(super) index: usize,
}

/// Where its events go.
pub(super) type Log = Arc<Mutex<Vec<Event>>>;

/// When so many tokens were generated, it went on with these weights.
#[derive(Clone)]
pub(super) struct Move {
    pub(super) generated: usize,
    pub(super) weights: Arc<WeightSet>,
    /// The positions whose keys and values were kept; all was computed anew where there is none.
    pub(super) kept: Option<usize>,
}

impl Ask {
    pub(super) fn job(&self, kind: &Kind, sink: impl FnMut(Event) -> bool + Send + 'static) -> Job {
        Job {
            id: self.id.clone(),
            prompt: self.prompt.clone(),
            params: self.params.clone(),
            adapter: self.adapter.map(|i| kind.adapters[i].clone()),
            index: self.index,
            sink: Box::new(sink),
        }
    }

    /// Its events, alone: to its end, or until so many tokens were generated; then it is ended as `cut` says.
    pub(super) fn alone(
        &self,
        kind: &Kind,
        start: &Arc<WeightSet>,
        moves: &[Move],
        tokens: usize,
        cut: FinishReason,
    ) -> Vec<Event> {
        let log = Log::default();
        let job = {
            let log = log.clone();
            self.job(kind, move |event| {
                log.lock().unwrap().push(event);
                true
            })
        };
        let (model, tokenizer) = (kind.engine.model(), tokenizer());
        let queued = Queued { ticket: 0, request: (0, self.id.clone()), job, queued_at: Instant::now() };
        let mut r = Running::new(queued, start.clone(), model);
        let mut moves = moves.iter().peekable();
        let mut logits = Logits::default();
        while r.ended.is_none() && r.generated() < tokens {
            let mut end = usize::MAX;
            while let Some(next) = moves.peek().filter(|m| m.generated == r.generated()) {
                match next.kept {
                    None => {
                        r.retract(model);
                    }
                    Some(kept) if r.cache.len() > kept => {
                        r.retract(model);
                        continue;
                    }
                    Some(kept) if r.cache.len() < kept => {
                        end = kept;
                        break;
                    }
                    Some(_) => {}
                }
                r.move_to(next.weights.clone());
                moves.next();
            }
            let have = r.cache.len();
            // The prompt at once, then token by token.
            end = end.min(if have < r.prompt_len { r.prompt_len } else { have + 1 });
            let rows = if r.wants_prompt() { Rows::All } else { Rows::Last };
            let weights = r.weights.clone();
            let (tokens, cache) = (&r.tokens[have..end], &mut r.cache);
            let forward =
                || kind.engine.model().forward_into(&weights, &mut [Sequence { tokens, cache }], rows, &mut logits);
            let computed = catch_unwind(AssertUnwindSafe(forward))
                .unwrap_or_else(|panic| Err(panicked("a forward pass", panic.as_ref())));
            let values = logits.values_mut();
            let last = values.len().saturating_sub(model.vocab());
            let next = computed.and_then(|()| {
                if rows == Rows::All {
                    r.prompt_rows(have, values, model.vocab());
                }
                match r.pending() {
                    0 => {
                        let choice = r.choose(&mut values[last..], &tokenizer, model.max_positions())?;
                        r.accept(choice, &kind.engine, &tokenizer)
                    }
                    _ => Ok(()),
                }
            });
            if let Err(e) = next {
                r.ended = Some(Ended::failed(e));
            }
        }
        let ended = r.ended.take().unwrap_or_else(|| Ended::with(cut));
        r.done(ended, &tokenizer);
        std::mem::take(&mut *log.lock().unwrap())
    }
}

/// Whether an event says what the same request alone says, but for when and from which cache. Why it was ended from outside the
/// latter does not know.
pub(super) fn same(heard: &Event, alone: &Event) -> bool {
    match (heard, alone) {
        (Event::Started(a), Event::Started(b)) => {
            (a.prompt_tokens, &a.prompt_logprobs, &a.version) == (b.prompt_tokens, &b.prompt_logprobs, &b.version)
        }
        (Event::Token(a), Event::Token(b)) => (a.token_id, &a.text, &a.logprob) == (b.token_id, &b.text, &b.logprob),
        (Event::Done(a), Event::Done(b)) => {
            let error = |e: &Option<crate::error::RuntimeError>| e.as_ref().map(ToString::to_string);
            (a.finish_reason, &a.stop_reason, &a.text_tail, &a.weight_versions, a.completion_tokens)
                == (b.finish_reason, &b.stop_reason, &b.text_tail, &b.weight_versions, b.completion_tokens)
                && (b.error.is_none() || error(&a.error) == error(&b.error))
        }
        _ => false,
    }
}
