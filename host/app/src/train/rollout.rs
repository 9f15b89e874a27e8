//! Sampling completions from the rollout engine, with the log-prob that it gave each token.

use patchhost_runtime::kv::KvCache;
use patchhost_runtime::metrics::log_prob;
use patchhost_runtime::model::{Logits, Model, Rows, Sequence};
use patchhost_runtime::sampling::{Sampler, SamplingParams};
use patchhost_runtime::tokenizer::Tokenizer;
use patchhost_runtime::weights::WeightSet;

use super::error::Result;

/// A sampled completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Sampled tokens; the end token where there is one counts.
    pub response: Vec<u32>,
    /// What the engine's distribution (temperature 1, masked ids without a share) gave each of them.
    pub log_probs: Vec<f64>,
    /// The text, without the end token.
    pub text: String,
}

/// One completion to sample.
pub struct Ask<'a> {
    /// Tokens of the prompt, at least one.
    pub prompt: &'a [u32],
    /// The same seed draws the same.
    pub seed: u64,
}

struct Running {
    index: usize,
    cache: KvCache,
    sampler: Sampler,
    next: Vec<u32>,
}

/// Samples all completions as one batch at temperature 1. A completion does not depend on the others in the batch.
pub fn sample(
    model: &Model,
    weights: &WeightSet,
    tokenizer: &Tokenizer,
    asks: &[Ask<'_>],
    max_tokens: usize,
) -> Result<Vec<Sample>> {
    let empty = |ask: &Ask<'_>| Sample {
        prompt: ask.prompt.to_vec(),
        response: Vec::new(),
        log_probs: Vec::new(),
        text: String::new(),
    };
    let mut made: Vec<Sample> = asks.iter().map(empty).collect();
    let mut running: Vec<Running> = asks
        .iter()
        .enumerate()
        .map(|(index, ask)| {
            let params = SamplingParams { temperature: 1.0, seed: ask.seed, ..SamplingParams::default() };
            let sampler = Sampler::new(params, 0);
            Running { index, cache: model.new_cache(), sampler, next: ask.prompt.to_vec() }
        })
        .collect();
    let mut logits = Logits::default();
    for _ in 0..max_tokens {
        if running.is_empty() {
            break;
        }
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
            let token = r.sampler.sample(row);
            let sample = &mut made[r.index];
            sample.response.push(token);
            sample.log_probs.push(log_prob(row, token as usize).unwrap_or(f64::NAN));
            if !tokenizer.eos().contains(&token) {
                r.next = vec![token];
                still.push(r);
            }
        }
        running = still;
    }
    for sample in &mut made {
        let text: Vec<u32> = sample.response.iter().copied().filter(|t| !tokenizer.eos().contains(t)).collect();
        sample.text = tokenizer.decode(&text)?;
    }
    Ok(made)
}
