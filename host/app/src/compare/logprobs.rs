//! Forward passes over given tokens, and what of their logits is compared.

use patchhost_runtime::metrics::{log_prob, mismatch};
use patchhost_runtime::model::{Model, Rows, Sequence};
use patchhost_runtime::weights::WeightSet;
use rayon::prelude::*;
use serde::Serialize;

use super::error::Result;
use super::rollout_corr::k3;

/// Token ids of each sequence.
pub type Sequences = [Vec<u32>];

/// How far a candidate's predictions are from a reference's, on the same given tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distance {
    /// Positions whose whole distributions are compared: every token of every sequence.
    pub positions: usize,
    /// Mean over positions of KL(reference ‖ candidate) over the whole vocabulary, in nats.
    pub kl_vocab: f64,
    /// The greatest of one position.
    pub kl_vocab_max: f64,
    /// Share of positions whose most likely token is the same.
    pub top1_agreement: f64,
    /// Tokens whose log-probs are compared: every token that has one before it.
    pub tokens: usize,
    /// `mean(candidate_lp - reference_lp)` over these tokens: verl's `kl`, the reference in the trainer's place. The
    /// tokens are given, not sampled from the candidate, so it may be negative. None without such tokens.
    pub kl: Option<f64>,
    /// `mean(exp(d) - d - 1)`, `d = reference_lp - candidate_lp`: verl's `k3_kl`.
    pub k3_kl: Option<f64>,
}

/// Sums for a [`Distance`].
#[derive(Default)]
pub(super) struct Sums {
    positions: usize,
    kl_vocab: f64,
    kl_vocab_max: f64,
    agree: f64,
    tokens: usize,
    kl: f64,
    k3: f64,
    /// The KL of each position, in order.
    pub(super) each: Vec<f64>,
}

impl Sums {
    /// Takes the logits [tokens, vocab] of one sequence.
    pub(super) fn take(&mut self, ids: &[u32], reference: &[f32], candidate: &[f32], vocab: usize) {
        // One position each, so that threads share the work; added up in order, so that they do not change the sum.
        let rows: Vec<_> = reference
            .par_chunks_exact(vocab)
            .zip(candidate.par_chunks_exact(vocab))
            .map(|(r, c)| mismatch(r, c, vocab))
            .collect();
        for row in &rows {
            self.positions += 1;
            self.kl_vocab += row.kl;
            self.each.push(row.kl);
            self.kl_vocab_max = self.kl_vocab_max.max(row.kl);
            self.agree += row.top1_agreement;
        }
        for (r, c) in next_log_probs(ids, reference, vocab).iter().zip(next_log_probs(ids, candidate, vocab)) {
            self.tokens += 1;
            self.kl += c - r;
            self.k3 += k3(r - c);
        }
    }

    pub(super) fn finish(&self) -> Distance {
        let n = self.positions.max(1) as f64;
        let per_token = |sum: f64| (self.tokens > 0).then(|| sum / self.tokens as f64);
        Distance {
            positions: self.positions,
            kl_vocab: self.kl_vocab / n,
            kl_vocab_max: self.kl_vocab_max,
            top1_agreement: self.agree / n,
            tokens: self.tokens,
            kl: per_token(self.kl),
            k3_kl: per_token(self.k3),
        }
    }
}

/// Logits [tokens, vocab] of one sequence.
pub(super) fn logits(model: &Model, weights: &WeightSet, ids: &[u32]) -> Result<Vec<f32>> {
    let mut cache = model.new_cache();
    let out = model.forward(weights, &mut [Sequence { tokens: ids, cache: &mut cache }], Rows::All)?;
    Ok(out.into_values())
}

/// The same with every product summed in f64.
pub(super) fn logits_exact(model: &Model, weights: &WeightSet, ids: &[u32]) -> Result<Vec<f32>> {
    let mut cache = model.new_cache();
    let out = model.forward_exact(weights, &mut [Sequence { tokens: ids, cache: &mut cache }], Rows::All)?;
    Ok(out.into_values())
}

/// The log-prob of each token but the first, given those before it.
fn next_log_probs(ids: &[u32], logits: &[f32], vocab: usize) -> Vec<f64> {
    let rows = logits.par_chunks_exact(vocab).zip(ids.par_iter().skip(1));
    // The forward pass has refused ids beyond the vocabulary.
    rows.map(|(row, id)| log_prob(row, *id as usize).unwrap_or(f64::NAN)).collect()
}

/// The log-prob of each token of a sequence given those before it; the first one has none.
pub fn token_logprobs(model: &Model, weights: &WeightSet, ids: &[u32]) -> Result<Vec<f64>> {
    let logits = logits(model, weights, ids)?;
    Ok(next_log_probs(ids, &logits, model.vocab()))
}
