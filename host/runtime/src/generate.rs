//! Generating text for a batch of prompts.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Refusal, Result, RuntimeError};
use crate::kv::KvCache;
use crate::lora::Adapter;
use crate::model::{Logits, Model, Rows, Sequence};
use crate::output::{Output, Stops};
use crate::sampling::{Sampler, SamplingParams};
use crate::tokenizer::Tokenizer;
use crate::weights::WeightSet;

/// One text to generate.
#[derive(Debug, Clone)]
pub struct Request {
    /// Tokens of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the generation; they are not given out.
    pub stop: Vec<String>,
    /// The adapter to run with.
    pub adapter: Option<Arc<Adapter>>,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end token or a stop text.
    Stop,
    /// `max_tokens`, or the model's positions are used up.
    Length,
    /// It was aborted.
    Abort,
    /// A forward pass failed.
    Error,
}

/// A generated text.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Its tokens.
    pub token_ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Which weights and which adapter made which of the tokens.
    pub weight_versions: Vec<TokenVersion>,
}

/// What made a range of generated tokens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TokenVersion {
    /// What the trainer calls the weights ([`WeightSet::label`]).
    pub version: String,
    /// Digest of the patch set that made them; empty where none was named.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub patches: String,
    /// Name and version of the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<(String, u64)>,
    /// First token.
    pub start: usize,
    /// One behind the last token.
    pub end: usize,
}

impl TokenVersion {
    /// The tokens `range` of a sequence that runs with these weights and this adapter.
    pub(crate) fn new(weights: &WeightSet, adapter: Option<&Adapter>, range: Range<usize>) -> Self {
        Self {
            version: weights.label().to_string(),
            patches: weights.patches().to_string(),
            adapter: adapter.map(|a| (a.name().to_string(), a.version())),
            start: range.start,
            end: range.end,
        }
    }
}

/// How long it took.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Timing {
    /// Seconds for the prompts.
    pub prefill_seconds: f64,
    /// Seconds for the rest.
    pub decode_seconds: f64,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Tokens generated in decode steps (all but each text's first).
    pub decode_tokens: usize,
}

struct Running {
    index: usize,
    cache: KvCache,
    sampler: Sampler,
    output: Output,
    next: Vec<u32>,
    done: Completion,
}

/// Generates all requests as one batch. `on_text` gets (request, piece) as text becomes certain.
pub fn generate(
    model: &Model,
    weights: &WeightSet,
    tokenizer: &Tokenizer,
    requests: &[Request],
    on_text: &mut dyn FnMut(usize, &str),
) -> Result<(Vec<Completion>, Timing)> {
    let mut running = Vec::new();
    for (index, r) in requests.iter().enumerate() {
        r.sampling.check()?;
        if r.prompt.is_empty() {
            return Err(RuntimeError::Request(Refusal::new(
                format!("prompt {index}"),
                "it has no tokens",
                "give a prompt of at least one character",
            )));
        }
        let mut cache = model.new_cache_with(r.adapter.clone());
        cache.reserve(r.prompt.len().saturating_add(r.max_tokens).min(model.max_positions()));
        running.push(Running {
            index,
            cache,
            sampler: Sampler::new(r.sampling.clone(), index as u64),
            output: Output::new(true),
            next: r.prompt.clone(),
            done: Completion {
                text: String::new(),
                token_ids: Vec::new(),
                prompt_tokens: r.prompt.len(),
                finish_reason: FinishReason::Length,
                weight_versions: Vec::new(),
            },
        });
    }
    let mut finished: Vec<Running> = Vec::new();
    let mut timing = Timing { prompt_tokens: requests.iter().map(|r| r.prompt.len()).sum(), ..Timing::default() };
    let mut prefill = true;
    let mut logits = Logits::default();
    while !running.is_empty() {
        let started = std::time::Instant::now();
        let mut batch: Vec<Sequence<'_>> =
            running.iter_mut().map(|r| Sequence { tokens: &r.next, cache: &mut r.cache }).collect();
        model.forward_into(weights, &mut batch, Rows::Last, &mut logits)?;
        let mut still = Vec::with_capacity(running.len());
        for (mut r, row) in running.into_iter().zip(logits.values_mut().chunks_exact_mut(model.vocab())) {
            for ids in weights.masked() {
                if let Some(masked) = row.get_mut(ids.start as usize..ids.end as usize) {
                    masked.fill(f32::NEG_INFINITY);
                }
            }
            let request = &requests[r.index];
            match step(&mut r, row, request, model, tokenizer, on_text)? {
                true => finished.push(r),
                false => still.push(r),
            }
        }
        running = still;
        let seconds = started.elapsed().as_secs_f64();
        *(if prefill { &mut timing.prefill_seconds } else { &mut timing.decode_seconds }) += seconds;
        prefill = false;
    }
    finished.sort_by_key(|r| r.index);
    for r in &mut finished {
        if !r.done.token_ids.is_empty() {
            r.done.weight_versions =
                vec![TokenVersion::new(weights, r.cache.adapter().map(Arc::as_ref), 0..r.done.token_ids.len())];
        }
        timing.generated_tokens += r.done.token_ids.len();
        timing.decode_tokens += r.done.token_ids.len().saturating_sub(1);
    }
    Ok((finished.into_iter().map(|r| r.done).collect(), timing))
}

/// One token of one sequence; true if it was the last.
fn step(
    r: &mut Running,
    logits: &[f32],
    request: &Request,
    model: &Model,
    tokenizer: &Tokenizer,
    on_text: &mut dyn FnMut(usize, &str),
) -> Result<bool> {
    if request.max_tokens == 0 {
        return Ok(true);
    }
    let token = r.sampler.sample(logits);
    if tokenizer.eos().contains(&token) {
        r.done.finish_reason = FinishReason::Stop;
        let rest = r.output.finish(tokenizer)?;
        give(r, &rest, on_text);
        return Ok(true);
    }
    r.done.token_ids.push(token);
    let piece = r.output.push(tokenizer, token, Stops { texts: &request.stop, include: false })?;
    give(r, &piece.text, on_text);
    if piece.stopped_by.is_some() {
        r.done.finish_reason = FinishReason::Stop;
        return Ok(true);
    }
    let used_up = r.cache.len() + 1 > model.max_positions();
    if r.done.token_ids.len() >= request.max_tokens || used_up {
        let rest = r.output.finish(tokenizer)?;
        give(r, &rest, on_text);
        return Ok(true);
    }
    r.next = vec![token];
    Ok(false)
}

fn give(r: &mut Running, piece: &str, on_text: &mut dyn FnMut(usize, &str)) {
    if !piece.is_empty() {
        on_text(r.index, piece);
        r.done.text.push_str(piece);
    }
}
