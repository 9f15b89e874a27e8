//! Log-probabilities of tokens.

/// What log-probabilities are computed from; the names are vLLM's, but for the one that only SGLang has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogprobsMode {
    /// Log-softmax of the model's logits as they are.
    #[default]
    RawLogprobs,
    /// Log-softmax of what is sampled from: after masks, bias, penalties, temperature and filters. Filtered tokens have
    /// probability 0.
    ProcessedLogprobs,
    /// Log-softmax after masks, bias, penalties and temperature, before filters (top-k, top-p, min-p): what SGLang gives.
    /// Greedy tokens are chosen at temperature 1.
    TemperedLogprobs,
    /// The model's logits themselves.
    RawLogits,
    /// What is sampled from, before the softmax.
    ProcessedLogits,
}

/// The log-probability of one token, and of its rivals.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token_id: u32,
    /// Its log-probability (or logit).
    pub logprob: f32,
    /// How many tokens are at least as likely, itself included: 1 is the best.
    pub rank: u32,
    /// The best tokens, best first; fewer than asked for where fewer are possible.
    pub top: Vec<(u32, f32)>,
    /// Those of [`super::SampleParams::logprob_token_ids`], in order.
    pub extra: Vec<(u32, f32)>,
}

/// Which log-probabilities are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// This many best.
    pub(super) top: usize,
    /// These tokens.
    pub(super) extra: &'a [u32],
    /// Log-softmax, or the values themselves.
    pub(super) softmax: bool,
}

impl LogprobsMode {
    /// Its name on the command line and in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::RawLogprobs => "raw_logprobs",
            Self::ProcessedLogprobs => "processed_logprobs",
            Self::TemperedLogprobs => "tempered_logprobs",
            Self::RawLogits => "raw_logits",
            Self::ProcessedLogits => "processed_logits",
        }
    }

    /// Whether the logits are taken as the model gave them.
    pub(super) fn is_raw(self) -> bool {
        matches!(self, LogprobsMode::RawLogprobs | LogprobsMode::RawLogits)
    }

    /// Whether it is log-probabilities.
    pub(super) fn softmax(self) -> bool {
        !matches!(self, LogprobsMode::RawLogits | LogprobsMode::ProcessedLogits)
    }
}

impl TokenLogprob {
    /// Of one row of logits. NaN counts as impossible.
    pub(super) fn of(logits: &[f32], token_id: u32, wanted: Wanted<'_>) -> Self {
        let at = |id: u32| match logits.get(id as usize) {
            Some(v) if !v.is_nan() => *v,
            _ => f32::NEG_INFINITY,
        };
        let own = at(token_id);
        let norm = if wanted.softmax { Norm::of(logits) } else { Norm::None };
        Self {
            token_id,
            logprob: norm.apply(own),
            rank: logits.iter().filter(|v| **v >= own).count().max(1) as u32,
            top: best(logits, wanted.top).into_iter().map(|id| (id, norm.apply(at(id)))).collect(),
            extra: wanted.extra.iter().map(|id| (*id, norm.apply(at(*id)))).collect(),
        }
    }
}

/// From a logit to a log-probability.
#[derive(Clone, Copy)]
enum Norm {
    None,
    /// max and log of the sum of exp(x - max), in f64: a vocabulary is a long sum.
    Softmax(f32, f64),
}

impl Norm {
    fn of(logits: &[f32]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = match max.is_infinite() {
            true => logits.iter().filter(|v| **v == max).count() as f64,
            false => logits.iter().filter(|v| !v.is_nan()).map(|v| f64::from(v - max).exp()).sum(),
        };
        Norm::Softmax(max, sum.ln())
    }

    fn apply(self, logit: f32) -> f32 {
        match self {
            Norm::None => logit,
            Norm::Softmax(_, _) if logit == f32::NEG_INFINITY => logit,
            Norm::Softmax(max, log_sum) if logit == max => -log_sum as f32,
            Norm::Softmax(max, log_sum) => (f64::from(logit - max) - log_sum) as f32,
        }
    }
}

/// The `n` best tokens that are possible: best first, of equals the first.
fn best(logits: &[f32], n: usize) -> Vec<u32> {
    if n == 0 {
        return Vec::new();
    }
    let value = |id: &u32| logits[*id as usize];
    let order = |a: &u32, b: &u32| value(b).total_cmp(&value(a)).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).filter(|id| value(id) > f32::NEG_INFINITY).collect();
    if n < ids.len() {
        ids.select_nth_unstable_by(n, order);
        ids.truncate(n);
    }
    ids.sort_unstable_by(order);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_as_by_hand() {
        let logits = [1.0, 3.0, f32::NEG_INFINITY, 3.0, f32::NAN, -1.0];
        let sum: f64 = [1.0f64, 3.0, 3.0, -1.0].iter().map(|v| v.exp()).sum();
        let wanted = Wanted { top: 3, extra: &[5, 2, 4], softmax: true };
        let got = TokenLogprob::of(&logits, 0, wanted);
        let close = |a: f32, b: f64| (f64::from(a) - (b - sum.ln())).abs() < 1e-6;
        assert!(close(got.logprob, 1.0) && got.rank == 3, "{got:?}");
        assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0]);
        assert!(close(got.top[0].1, 3.0) && close(got.extra[0].1, -1.0), "{got:?}");
        assert!(got.extra[1].1 == f32::NEG_INFINITY && got.extra[2].1 == f32::NEG_INFINITY);
        // Only four tokens are possible.
        assert_eq!(TokenLogprob::of(&logits, 1, Wanted { top: 9, ..wanted }).top.len(), 4);
        let raw = TokenLogprob::of(&logits, 1, Wanted { softmax: false, ..wanted });
        assert_eq!((raw.logprob, raw.rank, raw.top[2]), (3.0, 2, (0, 1.0)));
        let certain = TokenLogprob::of(&[0.0, f32::INFINITY], 1, wanted);
        assert_eq!((certain.logprob, certain.extra[0].1), (0.0, f32::NEG_INFINITY));
    }
}
