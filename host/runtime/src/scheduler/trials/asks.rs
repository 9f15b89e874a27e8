//! Random requests, of every kind that reaches the scheduler.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::model::{END, KNOWN, Kind, POISON, SOUR, VOCAB, grammars};
use super::reference::Ask;
use crate::scheduler::handle::SchedulerOptions;
use crate::scheduler::logprobs::LogprobsMode;
use crate::scheduler::params::SampleParams;

/// One in `n`.
pub(super) fn one_in(rng: &mut StdRng, n: u32) -> bool {
    rng.random_ratio(1, n)
}

/// Any of these.
pub(super) fn any<T: Clone>(rng: &mut StdRng, of: &[T]) -> T {
    of.choose(rng).unwrap().clone()
}

/// Small limits, so that jobs wait, are computed in pieces, and lose their keys and values.
pub(super) fn options(rng: &mut StdRng, kind: &Kind) -> SchedulerOptions {
    let model = kind.engine.model();
    SchedulerOptions {
        max_num_seqs: rng.random_range(1..7),
        max_waiting: any(rng, &[3, 8, 100]),
        max_batched_tokens: any(rng, &[1, 3, 7, 16, 512]),
        kv_cache_bytes: model.cache_bytes(any(rng, &[20, 45, 70, 120, 4096])),
        prefix_cache_bytes: any(rng, &[0, 4000, 20_000, 1 << 20]),
    }
}

/// Beginnings that prompts share.
pub(super) fn stems(rng: &mut StdRng) -> Vec<Vec<u32>> {
    (0..2).map(|_| (0..50).map(|_| plain(rng)).collect()).collect()
}

/// A token that no patch fails at.
fn plain(rng: &mut StdRng) -> u32 {
    let token = rng.random_range(1..VOCAB as u32);
    if [POISON, SOUR].contains(&token) { 7 } else { token }
}

/// The samples of one request: the same but for their index.
pub(super) fn asks(rng: &mut StdRng, kind: &Kind, stems: &[Vec<u32>], id: &str) -> Vec<Ask> {
    let stem = stems.choose(rng).unwrap();
    let mut prompt = stem[..any(rng, &[0, 1, 5, 13, 17, 22, 30, 38])].to_vec();
    prompt.extend((0..rng.random_range(0..4)).map(|_| plain(rng)));
    if kind.fails && one_in(rng, 12) {
        let at = rng.random_range(0..=prompt.len());
        prompt.insert(at, any(rng, &[POISON, POISON, SOUR]));
    }
    let adapter = (!kind.adapters.is_empty() && one_in(rng, 4)).then(|| rng.random_range(0..kind.adapters.len()));
    let params = params(rng);
    let samples = if one_in(rng, 4) { rng.random_range(2..4) } else { 1 };
    (0..samples)
        .map(|index| Ask { id: id.to_string(), prompt: prompt.clone(), params: params.clone(), adapter, index })
        .collect()
}

fn params(rng: &mut StdRng) -> SampleParams {
    let max_tokens = any(rng, &[0, 1, 1, 2, 5, 9, 14]);
    let mut p = SampleParams {
        max_tokens,
        temperature: any(rng, &[0.0, 0.0, 0.7, 1.5]),
        seed: Some(rng.random()),
        ignore_eos: one_in(rng, 2),
        include_stop_str_in_output: one_in(rng, 4),
        skip_special_tokens: !one_in(rng, 4),
        logprobs: any(rng, &[None, None, Some(0), Some(3)]),
        prompt_logprobs: any(rng, &[None, None, None, Some(0), Some(2)]),
        logprobs_mode: any(
            rng,
            &[
                LogprobsMode::RawLogprobs,
                LogprobsMode::RawLogits,
                LogprobsMode::ProcessedLogprobs,
                LogprobsMode::TemperedLogprobs,
                LogprobsMode::ProcessedLogits,
            ],
        ),
        ..SampleParams::default()
    };
    // Most do not choose what fails: by chance nobody's text would last long.
    if !one_in(rng, 10) {
        p.bad_token_ids = vec![POISON, SOUR];
    }
    if one_in(rng, 6) {
        p.grammar = Some(any(rng, grammars()));
    }
    if one_in(rng, 2) {
        return p;
    }
    let token = |rng: &mut StdRng| rng.random_range(0..KNOWN);
    p.min_tokens = any(rng, &[0, max_tokens, max_tokens / 2]);
    p.top_k = any(rng, &[0, 5]);
    p.top_p = any(rng, &[1.0, 0.8]);
    p.min_p = any(rng, &[0.0, 0.1]);
    p.presence_penalty = any(rng, &[0.0, 0.0, 1.5]);
    p.frequency_penalty = any(rng, &[0.0, 0.0, -1.0]);
    p.repetition_penalty = any(rng, &[1.0, 1.0, 1.4]);
    p.logit_bias = (0..rng.random_range(0..3)).map(|_| (token(rng), rng.random_range(-4.0..4.0))).collect();
    p.stop = any(rng, &[vec![], vec!["é"], vec!["ab", "c"], vec![" a", "zzz"]]).into_iter().map(String::from).collect();
    p.stop_token_ids = any(rng, &[vec![], vec![], vec![13, 20]]);
    p.logprob_token_ids = any(rng, &[vec![], vec![END, 9, 39]]);
    if one_in(rng, 6) {
        p.allowed_token_ids = Some((0..4).map(|_| token(rng)).chain([30]).collect());
    }
    p
}
