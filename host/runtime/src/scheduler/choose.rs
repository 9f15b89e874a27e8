//! From a row of logits to a token. The order of what is applied is vLLM's: the grammar, masks, bias, penalties, temperature,
//! filters.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::logprobs::{LogprobsMode, TokenLogprob, Wanted};
use super::params::SampleParams;
use crate::error::{Refusal, Result, RuntimeError};
use crate::grammar::Guide;
use crate::sampling::{Sampler, SamplingParams, argmax};

/// Chooses the tokens of one sequence.
pub(super) struct Chooser {
    sampler: Sampler,
    /// How often each token was generated, if a penalty asks.
    counts: HashMap<u32, u32>,
    /// Tokens of the prompt and of the text, if a penalty asks.
    repeated: HashSet<u32>,
    /// Where the text stands in its grammar, if it has one.
    guide: Option<Guide>,
}

/// A token, chosen.
pub(super) struct Choice {
    pub(super) token: u32,
    pub(super) logprob: Option<TokenLogprob>,
    /// The text is whole by its grammar.
    pub(super) whole: bool,
}

impl Chooser {
    /// `index` keeps the samples of one request apart.
    pub(super) fn new(params: &SampleParams, prompt: &[u32], index: usize) -> Self {
        let sampling = SamplingParams {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            seed: params.seed.unwrap_or_else(rand::random),
        };
        let repeated = if params.repetition_penalty != 1.0 { prompt.iter().copied().collect() } else { HashSet::new() };
        let guide = params.grammar.as_ref().map(Guide::new);
        Self { sampler: Sampler::new(sampling, index as u64), counts: HashMap::new(), repeated, guide }
    }

    /// The next token. `ends` are the tokens that would end the text too early, `room` is how many tokens may still come, this
    /// one included.
    pub(super) fn choose(
        &mut self,
        row: &mut [f32],
        params: &SampleParams,
        masked: &[Range<u32>],
        ends: &[u32],
        room: usize,
    ) -> Result<Choice> {
        if let Some(guide) = &mut self.guide {
            guide.mask(row)?;
        }
        let wanted = params.logprobs.map(|top| Wanted {
            top,
            extra: &params.logprob_token_ids,
            softmax: params.logprobs_mode.softmax(),
        });
        let mut raw = (wanted.is_some() && params.logprobs_mode.is_raw()).then(|| row.to_vec());
        self.process(row, params, masked, ends);
        if !row.iter().any(|l| *l > f32::NEG_INFINITY) {
            return Err(RuntimeError::Request(Refusal::new(
                "the next token",
                "every token is masked, forbidden or not a number",
                "allow more tokens, or look for weights that are not finite",
            )));
        }
        let mut candidates = self.sampler.candidates(row);
        let mut token = match &candidates {
            Some(candidates) => self.sampler.draw(candidates),
            None => argmax(row),
        };
        if let Some(guide) = &mut self.guide {
            let possible = |token: &u32| row.get(*token as usize).is_some_and(|logit| *logit > f32::NEG_INFINITY);
            if let Some(only) = guide.instead_of(token, room)?.filter(possible) {
                // The grammar with its limit leaves one token.
                token = only;
                candidates = None;
                for row in [Some(&mut *row), raw.as_deref_mut()].into_iter().flatten() {
                    let logit = row[only as usize];
                    row.fill(f32::NEG_INFINITY);
                    row[only as usize] = logit;
                }
            }
            guide.take(token)?;
        }
        if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
            *self.counts.entry(token).or_default() += 1;
        }
        if params.repetition_penalty != 1.0 {
            self.repeated.insert(token);
        }
        let logprob = wanted.map(|wanted| {
            let values: Cow<'_, [f32]> = match (&raw, &candidates) {
                (Some(raw), _) => raw.into(),
                (None, Some(_)) if params.logprobs_mode == LogprobsMode::TemperedLogprobs => {
                    row.iter().map(|logit| logit / params.temperature).collect()
                }
                (None, None) => (&*row).into(),
                (None, Some(candidates)) => {
                    let mut kept = vec![f32::NEG_INFINITY; row.len()];
                    candidates.scored.iter().for_each(|(id, score)| kept[*id as usize] = *score);
                    kept.into()
                }
            };
            TokenLogprob::of(&values, token, wanted)
        });
        let whole = self.guide.as_ref().is_some_and(Guide::is_done);
        Ok(Choice { token, logprob, whole })
    }

    fn process(&self, row: &mut [f32], p: &SampleParams, masked: &[Range<u32>], ends: &[u32]) {
        let vocab = row.len();
        for ids in masked {
            if let Some(masked) = row.get_mut(ids.start as usize..(ids.end as usize).min(vocab)) {
                masked.fill(f32::NEG_INFINITY);
            }
        }
        if let Some(allowed) = &p.allowed_token_ids {
            let kept: Vec<(u32, f32)> = allowed.iter().map(|id| (*id, row[*id as usize])).collect();
            row.fill(f32::NEG_INFINITY);
            kept.into_iter().for_each(|(id, logit)| row[id as usize] = logit);
        }
        for id in p.bad_token_ids.iter().chain(ends) {
            if let Some(logit) = row.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        p.logit_bias.iter().for_each(|(id, bias)| row[*id as usize] += bias);
        for id in &self.repeated {
            let logit = &mut row[*id as usize];
            *logit = if *logit > 0.0 { *logit / p.repetition_penalty } else { *logit * p.repetition_penalty };
        }
        for (id, count) in &self.counts {
            row[*id as usize] -= p.frequency_penalty * *count as f32 + p.presence_penalty;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
    use super::*;

    fn greedy() -> SampleParams {
        SampleParams { temperature: 0.0, ..SampleParams::default() }
    }

    fn tokens(params: &SampleParams, prompt: &[u32], masked: &[Range<u32>], ends: &[u32], n: usize) -> Vec<u32> {
        let mut chooser = Chooser::new(params, prompt, 0);
        let logits = [1.0, 4.0, 3.0, 2.0, -1.0];
        (0..n).map(|_| chooser.choose(&mut logits.to_vec(), params, masked, ends, usize::MAX).unwrap().token).collect()
    }

    #[test]
    fn every_parameter_moves_the_choice() {
        assert_eq!(tokens(&greedy(), &[], &[], &[], 2), [1, 1]);
        assert_eq!(tokens(&greedy(), &[], &[0..2, 4..9], &[], 1), [2]);
        assert_eq!(tokens(&greedy(), &[], &[], &[1, 2], 1), [3]);
        let p = SampleParams { bad_token_ids: vec![1], ..greedy() };
        assert_eq!(tokens(&p, &[], &[], &[], 1), [2]);
        let p = SampleParams { allowed_token_ids: Some(vec![4, 0]), ..greedy() };
        assert_eq!(tokens(&p, &[], &[], &[], 1), [0]);
        let p = SampleParams { logit_bias: vec![(4, 5.5)], ..greedy() };
        assert_eq!(tokens(&p, &[], &[], &[], 1), [4]);
        // 4, then 4 - 1.5, then 3 - 1.5; 2 is below none of them before the third.
        let p = SampleParams { presence_penalty: 1.5, ..greedy() };
        assert_eq!(tokens(&p, &[], &[], &[], 4), [1, 2, 1, 1]);
        let p = SampleParams { frequency_penalty: 1.5, ..greedy() };
        assert_eq!(tokens(&p, &[], &[], &[], 4), [1, 2, 1, 3]);
        // The prompt counts for the repetition penalty only.
        let p = SampleParams { repetition_penalty: 2.0, ..greedy() };
        assert_eq!(tokens(&p, &[1], &[], &[], 3), [2, 1, 1]);
        let p = SampleParams { presence_penalty: 1.5, ..greedy() };
        assert_eq!(tokens(&p, &[1], &[], &[], 1), [1]);
    }

    #[test]
    fn nothing_left_is_an_error() {
        let mut chooser = Chooser::new(&greedy(), &[], 0);
        let text =
            chooser.choose(&mut [1.0, f32::NAN], &greedy(), &[0..1], &[], usize::MAX).map(|c| c.token).unwrap_err();
        assert!(text.to_string().contains("every token"), "{text}");
    }

    #[test]
    fn every_mode_is_what_it_says() {
        let logits = [1.0f32, 4.0, 3.0, 2.0];
        let lp = |mode, temperature| {
            let p = SampleParams {
                temperature,
                top_k: 2,
                seed: Some(1),
                logprobs: Some(4),
                logprobs_mode: mode,
                bad_token_ids: vec![1],
                ..SampleParams::default()
            };
            let choice = Chooser::new(&p, &[], 0).choose(&mut logits.to_vec(), &p, &[], &[], usize::MAX).unwrap();
            choice.logprob.unwrap()
        };
        let log_sum = |values: &[f32]| values.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln() as f32;
        for temperature in [0.0, 0.5] {
            let raw = lp(LogprobsMode::RawLogprobs, temperature);
            assert_eq!(raw.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 3, 0]);
            assert!((raw.top[0].1 - (4.0 - log_sum(&logits))).abs() < 1e-6);
            assert_eq!(lp(LogprobsMode::RawLogits, temperature).top[0], (1, 4.0));
        }
        // Token 1 is forbidden and only two are kept; greedy ignores temperature and filters.
        let processed = lp(LogprobsMode::ProcessedLogprobs, 0.5);
        assert_eq!(processed.top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 3]);
        assert!((processed.top[0].1 - (6.0 - log_sum(&[6.0, 4.0]))).abs() < 1e-6, "{processed:?}");
        assert_eq!(lp(LogprobsMode::ProcessedLogits, 0.5).top, [(2, 6.0), (3, 4.0)]);
        // The same temperature, but top_k takes nobody's share away.
        let tempered = lp(LogprobsMode::TemperedLogprobs, 0.5);
        assert_eq!(tempered.top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 3, 0]);
        assert!((tempered.top[0].1 - (6.0 - log_sum(&[6.0, 4.0, 2.0]))).abs() < 1e-6, "{tempered:?}");
        assert_eq!(lp(LogprobsMode::TemperedLogprobs, 0.0), lp(LogprobsMode::ProcessedLogprobs, 0.0));
        let greedy = lp(LogprobsMode::ProcessedLogprobs, 0.0);
        assert_eq!(greedy.top.len(), 3);
        assert!((greedy.logprob - (3.0 - log_sum(&[3.0, 2.0, 1.0]))).abs() < 1e-6 && greedy.rank == 1);
    }
}
