//! Choosing the next token: temperature, top-k, top-p, min-p, seed. The order of the filters is that of transformers'
//! logits warpers (temperature, top-k, top-p, min-p), the names are vLLM's.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::error::{Refusal, Result, RuntimeError};

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Only this many best; 0 is all.
    pub top_k: usize,
    /// Only the best whose probabilities sum to this; 1 is all.
    pub top_p: f32,
    /// Only those at least this share of the best one's probability; 0 is all.
    pub min_p: f32,
    /// The same seed gives the same text.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

impl SamplingParams {
    /// Refuses values outside of their ranges, by name.
    pub fn check(&self) -> Result<()> {
        let bad = |name: &str, value: f32, range: &str| {
            Err(RuntimeError::Request(Refusal::new(
                format!("{name} {value}"),
                format!("it must be {range}"),
                format!("give another {name}"),
            )))
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad("temperature", self.temperature, "0 (greedy) or greater");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top-p", self.top_p, "greater than 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return bad("min-p", self.min_p, "from 0 to 1");
        }
        Ok(())
    }
}

/// Draws the tokens of one sequence.
pub struct Sampler {
    params: SamplingParams,
    rng: StdRng,
}

impl Sampler {
    /// `stream` keeps sequences of one request apart; the same (seed, stream) draws the same.
    pub fn new(params: SamplingParams, stream: u64) -> Self {
        let rng = StdRng::seed_from_u64(params.seed ^ stream.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Self { params, rng }
    }

    /// The next token. NaN logits are never chosen; if all are NaN or -inf, token 0 is.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        match self.candidates(logits) {
            Some(candidates) => self.draw(&candidates),
            None => argmax(logits),
        }
    }

    /// What is drawn from; none where the best token is taken without a draw.
    pub(crate) fn candidates(&self, logits: &[f32]) -> Option<Candidates> {
        let p = &self.params;
        if p.temperature == 0.0 {
            return None;
        }
        // Sorting keys instead of pairs: a vocabulary of 150,000 is sorted for every token.
        let numbered = logits.iter().enumerate().filter(|(_, l)| !l.is_nan());
        let mut keys: Vec<u64> = numbered.map(|(i, l)| descending(l / p.temperature) << 32 | i as u64).collect();
        if p.top_k > 0 && p.top_k < keys.len() {
            keys.select_nth_unstable(p.top_k - 1);
            keys.truncate(p.top_k);
        }
        keys.sort_unstable();
        let mut scored: Vec<(u32, f32)> =
            keys.into_iter().map(|k| (k as u32, logits[k as u32 as usize] / p.temperature)).collect();
        let best = scored.first().map(|s| s.1).filter(|b| *b > f32::NEG_INFINITY)?;
        // An infinite best logit is certain; subtracting it would be NaN.
        if best == f32::INFINITY {
            scored.truncate(1);
            return Some(Candidates { scored, weights: Vec::new() });
        }
        let mut weights: Vec<f32> = scored.iter().map(|s| (s.1 - best).exp()).collect();
        let total: f32 = weights.iter().sum();
        let mut kept = weights.len();
        if p.top_p < 1.0 {
            let mut sum = 0.0;
            kept = weights
                .iter()
                .position(|w| {
                    sum += w / total;
                    sum >= p.top_p
                })
                .map_or(kept, |i| i + 1);
        }
        if p.min_p > 0.0 {
            kept = kept.min(weights.iter().position(|w| *w < p.min_p).unwrap_or(kept)).max(1);
        }
        weights.truncate(kept);
        scored.truncate(kept);
        Some(Candidates { scored, weights })
    }

    /// One of the candidates.
    pub(crate) fn draw(&mut self, candidates: &Candidates) -> u32 {
        let Candidates { scored, weights } = candidates;
        if weights.is_empty() {
            return scored.first().map_or(0, |s| s.0);
        }
        let mut point = self.rng.random::<f32>() * weights.iter().sum::<f32>();
        for (w, s) in weights.iter().zip(scored) {
            point -= w;
            if point < 0.0 {
                return s.0;
            }
        }
        scored[weights.len() - 1].0
    }
}

/// What a token is drawn from.
pub(crate) struct Candidates {
    /// Tokens that the filters left, and their logits after temperature: best first, of equals the first token.
    pub(crate) scored: Vec<(u32, f32)>,
    /// Their shares, the best one's being 1; none where the best is certain.
    weights: Vec<f32>,
}

/// A number that is smaller for greater values, in the order of [`f32::total_cmp`].
fn descending(value: f32) -> u64 {
    let bits = value.to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!ascending)
}

/// The index of the greatest value; the first of equals; 0 if there is none.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, l) in logits.iter().enumerate() {
        if *l > best.1 {
            best = (i as u32, *l);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
    use super::*;

    fn draws(params: SamplingParams, logits: &[f32]) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let mut sampler = Sampler::new(params, 0);
        (0..4000).for_each(|_| counts[sampler.sample(logits) as usize] += 1);
        counts
    }

    #[test]
    fn filters_cut_what_they_say() {
        let logits = [1.0, 3.0, 2.0, f32::NAN, f32::NEG_INFINITY];
        let hot = SamplingParams { temperature: 1.0, ..Default::default() };
        let all = draws(hot.clone(), &logits);
        // softmax of 1, 3, 2 is 0.090, 0.665, 0.245.
        assert!((all[1] as f64 / 4000.0 - 0.665).abs() < 0.03 && all[3] == 0 && all[4] == 0, "{all:?}");
        assert_eq!(draws(SamplingParams { top_k: 1, ..hot.clone() }, &logits)[1], 4000);
        let top_p = draws(SamplingParams { top_p: 0.7, ..hot.clone() }, &logits);
        assert!(top_p[0] == 0 && top_p[2] > 0, "{top_p:?}");
        let min_p = draws(SamplingParams { min_p: 0.5, ..hot }, &logits);
        assert_eq!(min_p[1], 4000);
        assert_eq!(draws(SamplingParams::default(), &logits)[1], 4000);
    }

    #[test]
    fn keys_sort_as_values_do() {
        let mut values = vec![1.5, -1.5, 0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -1e-40, 3e38, -3e38];
        let mut by_key = values.clone();
        by_key.sort_by_key(|v| descending(*v));
        values.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(
            values.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
            by_key.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn equal_logits_are_taken_in_the_order_of_their_ids() {
        let params = SamplingParams { temperature: 1.0, top_k: 2, ..Default::default() };
        let candidates = Sampler::new(params, 0).candidates(&[1.0, 2.0, 1.0, 1.0]).unwrap();
        assert_eq!(candidates.scored.iter().map(|s| s.0).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn the_seed_decides() {
        let params = SamplingParams { temperature: 1.0, seed: 7, ..Default::default() };
        let run = |stream| {
            let mut s = Sampler::new(params.clone(), stream);
            (0..50).map(|_| s.sample(&[0.0; 100])).collect::<Vec<_>>()
        };
        assert_eq!(run(0), run(0));
        assert_ne!(run(0), run(1));
    }
}
