//! verl's `rollout_corr` metrics: how far the engine's log-probs are from the trainer's on the same tokens.
//!
//! Names and definitions are those of verl 0.9.1, its `rollout_corr_helper.py` and `utils/debug/metrics.py`; the arithmetic is f64
//! (verl's is f32). Notation: `t` the trainer's log-prob of a counted token, `r` the rollout's, `d = t - r`; `mean` without
//! index is over all counted tokens of the batch, `mean_i` over those of sequence i (0 where it has none), `mean over i`
//! over all sequences. Logarithms are natural.
//!
//! | name | definition |
//! |---|---|
//! | `training_ppl`, `rollout_ppl` | mean over i of `exp(-mean_i t)`, `exp(-mean_i r)` |
//! | `training_log_ppl`, `rollout_log_ppl` | mean over i of `-mean_i t`, `-mean_i r` |
//! | `kl` | `mean(r - t)` |
//! | `k3_kl` | `mean(exp(d) - d - 1)`, not clamped |
//! | `log_ppl_diff`, `_abs_diff`, `_diff_max`, `_diff_min` | mean, mean magnitude, max, min over i of `x_i = mean_i r - mean_i t` |
//! | `ppl_ratio` | mean over i of `exp(x_i)` |
//! | `chi2_token` | `mean(exp(2 clamp(d))) - 1`, clamped to ±20 |
//! | `chi2_seq` | mean over i of `exp(2 clamp(sum_i d))`, minus 1 |
//! | `training/rollout_probs_diff_max`, `_mean`, `_std` | of `abs(exp(t) - exp(r))`; std with n - 1 |
//! | `training/rollout_actor_probs_pearson_corr` | Pearson correlation of `exp(t)` and `exp(r)` |
//!
//! Importance weights: the raw weight is `exp(clamp(d))` of a token (`--rollout-is token`) or `exp(clamp(sum_i d))` of its
//! sequence (`sequence`). With one threshold `C` the weight is `w = min(raw, C)` and the lower bound of the fractions is
//! `1/C`; with a band `L_C` (IcePop) it is raw inside of the band and 0 outside.
//!
//! | name | definition |
//! |---|---|
//! | `rollout_is_mean` | `mean(w)` |
//! | `rollout_is_max`, `_min` | token: max and min of `w`; sequence: `exp(min(max_i sum_i d, 20))`, `exp(min_i sum_i d)` |
//! | `rollout_is_ratio_fraction_high`, `_low` | share with raw above `C`, below the lower bound: of tokens, or of sequences |
//! | `rollout_is_std` | `sqrt(mean(v^2) - mean(v)^2)` with `v = clamp(w, 0, C)`; 0 for one token |
//! | `rollout_is_eff_sample_size` | `1 / mean((v / (mean(v) + 1e-8))^2)`: 1 where all weights are equal |
//! | `rollout_is_seq_mean`, `_std`, `_max`, `_min` | of `y_i = mean_i w` over i; std with n - 1, 0 for one sequence |
//! | `rollout_is_seq_max_deviation` | max over i of `abs(y_i - 1)` |
//! | `rollout_is_seq_fraction_high`, `_low` | share of i with `mean_i raw` above `C`, below the lower bound |
//! | `rollout_is_oob_ratio` | only with a band: share of counted tokens with raw outside of it |

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::rollout_rs::{Rule, rejection};

/// Log ratios are clamped to this before they are exponentiated, where the definition says so.
pub const SAFETY_BOUND: f64 = 20.0;

/// One counted token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Token {
    /// The trainer's log-prob.
    pub training: f64,
    /// The rollout engine's.
    pub rollout: f64,
}

impl Token {
    pub(super) fn log_ratio(&self) -> f64 {
        self.training - self.rollout
    }
}

/// The counted tokens of each sequence; a sequence may have none.
pub type Batch = [Vec<Token>];

/// What an importance weight belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Token,
    /// A sequence: the product over its tokens.
    Sequence,
}

/// `rollout_is_threshold`: "2.0" truncates, "0.5_5.0" is a band.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Threshold {
    /// Below it a weight becomes 0; none: weights are only truncated.
    pub lower: Option<f64>,
    /// Upper bound.
    pub upper: f64,
}

impl std::str::FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |t: &str| t.trim().parse::<f64>().ok().filter(|v| v.is_finite() && *v > 0.0);
        let parsed = match text.split_once('_') {
            None => number(text).map(|upper| Threshold { lower: None, upper }),
            Some((lower, upper)) => number(lower)
                .zip(number(upper))
                .filter(|(lower, upper)| lower <= upper)
                .map(|(lower, upper)| Threshold { lower: Some(lower), upper }),
        };
        parsed.ok_or_else(|| "give a number above 0, such as 2.0, or a band LOWER_UPPER, such as 0.5_5.0".to_string())
    }
}

/// How weights are made, and what is rejected.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Settings {
    pub rollout_is: Level,
    pub rollout_is_threshold: Threshold,
    /// `rollout_rs` with `rollout_rs_threshold`; none: no rejection, and no `rollout_rs_*`.
    pub rollout_rs: Vec<Rule>,
}

impl Default for Settings {
    /// verl's own threshold, per token.
    fn default() -> Self {
        Self {
            rollout_is: Level::Token,
            rollout_is_threshold: Threshold { lower: None, upper: 2.0 },
            rollout_rs: Vec::new(),
        }
    }
}

/// Names and values, in the order of the tables above. What is undefined is NaN: null in JSON.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metrics(pub Vec<(String, f64)>);

impl Metrics {
    /// One value.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }

    pub(super) fn put(&mut self, name: impl Into<String>, value: f64) {
        self.0.push((name.into(), value));
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// The whole set; none where no token counts, which verl asserts against.
pub fn metrics(batch: &Batch, settings: &Settings) -> Option<Metrics> {
    if batch.iter().all(Vec::is_empty) {
        return None;
    }
    let mut m = Metrics::default();
    off_policy(batch, &mut m);
    importance(batch, settings.rollout_is, settings.rollout_is_threshold, &mut m);
    rejection(batch, &settings.rollout_rs, &mut m);
    probabilities(batch, &mut m);
    Some(m)
}

pub(super) fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut n) = (0.0, 0u64);
    for v in values {
        sum += v;
        n += 1;
    }
    if n == 0 { 0.0 } else { sum / n as f64 }
}

pub(super) fn max(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(f64::NEG_INFINITY, f64::max)
}

pub(super) fn min(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(f64::INFINITY, f64::min)
}

/// Standard deviation with n - 1; NaN for one value, as torch has it.
pub(super) fn sample_std(values: &[f64]) -> f64 {
    let center = mean(values.iter().copied());
    let squares: f64 = values.iter().map(|v| (v - center) * (v - center)).sum();
    if values.len() < 2 { f64::NAN } else { (squares / (values.len() - 1) as f64).sqrt() }
}

/// The same, but 0 for one value.
pub(super) fn sample_std_or_zero(values: &[f64]) -> f64 {
    if values.len() > 1 { sample_std(values) } else { 0.0 }
}

pub(super) fn share(values: &[f64], holds: impl Fn(f64) -> bool) -> f64 {
    mean(values.iter().map(|v| f64::from(u8::from(holds(*v)))))
}

pub(super) fn clamp(log_ratio: f64) -> f64 {
    log_ratio.clamp(-SAFETY_BOUND, SAFETY_BOUND)
}

/// `sqrt(mean(v^2) - mean(v)^2)`, never of a negative number.
pub(super) fn spread(values: &[f64]) -> f64 {
    let center = mean(values.iter().copied());
    (mean(values.iter().map(|v| v * v)) - center * center).max(0.0).sqrt()
}

fn off_policy(batch: &Batch, m: &mut Metrics) {
    let tokens = || batch.iter().flatten();
    let training: Vec<f64> = batch.iter().map(|s| mean(s.iter().map(|t| t.training))).collect();
    let rollout: Vec<f64> = batch.iter().map(|s| mean(s.iter().map(|t| t.rollout))).collect();
    m.put("training_ppl", mean(training.iter().map(|x| (-x).exp())));
    m.put("training_log_ppl", mean(training.iter().map(|x| -x)));
    m.put("kl", mean(tokens().map(|t| t.rollout - t.training)));
    m.put("k3_kl", mean(tokens().map(|t| k3(t.log_ratio()))));
    m.put("rollout_ppl", mean(rollout.iter().map(|x| (-x).exp())));
    m.put("rollout_log_ppl", mean(rollout.iter().map(|x| -x)));
    let diff: Vec<f64> = rollout.iter().zip(&training).map(|(r, t)| r - t).collect();
    m.put("log_ppl_diff", mean(diff.iter().copied()));
    m.put("log_ppl_abs_diff", mean(diff.iter().map(|x| x.abs())));
    m.put("log_ppl_diff_max", max(diff.iter().copied()));
    m.put("log_ppl_diff_min", min(diff.iter().copied()));
    m.put("ppl_ratio", mean(diff.iter().map(|x| x.exp())));
    m.put("chi2_token", mean(tokens().map(|t| (2.0 * clamp(t.log_ratio())).exp())) - 1.0);
    m.put("chi2_seq", mean(batch.iter().map(|s| (2.0 * clamp(sum_log_ratio(s))).exp())) - 1.0);
}

/// `exp(d) - d - 1`: an estimate of a KL that is never negative. `exp_m1` keeps what is small.
pub fn k3(d: f64) -> f64 {
    d.exp_m1() - d
}

/// [`k3`] of each counted token, in order: what `k3_kl` is the mean of.
pub fn k3_of_each(batch: &Batch) -> Vec<f64> {
    batch.iter().flatten().map(|token| k3(token.log_ratio())).collect()
}

fn sum_log_ratio(sequence: &[Token]) -> f64 {
    sequence.iter().map(Token::log_ratio).sum()
}

/// The importance weight of each counted token, as the table above defines it: what a loss multiplies its terms by.
pub fn weights(batch: &Batch, level: Level, threshold: Threshold) -> Vec<Vec<f64>> {
    let apply = |raw: f64| match threshold.lower {
        None => raw.min(threshold.upper),
        Some(lower) if (lower..=threshold.upper).contains(&raw) => raw,
        Some(_) => 0.0,
    };
    raw_weights(batch, level).into_iter().map(|s| s.into_iter().map(apply).collect()).collect()
}

fn raw_weights(batch: &Batch, level: Level) -> Vec<Vec<f64>> {
    let of = |s: &Vec<Token>| {
        let whole = clamp(sum_log_ratio(s)).exp();
        s.iter().map(|t| if level == Level::Token { clamp(t.log_ratio()).exp() } else { whole }).collect()
    };
    batch.iter().map(of).collect()
}

fn importance(batch: &Batch, level: Level, threshold: Threshold, m: &mut Metrics) {
    let upper = threshold.upper;
    let lower = threshold.lower.unwrap_or(1.0 / upper);
    let sums: Vec<f64> = batch.iter().map(|s| sum_log_ratio(s)).collect();
    let raw = raw_weights(batch, level);
    let weights = weights(batch, level, threshold);
    let flat_raw: Vec<f64> = raw.concat();
    let flat: Vec<f64> = weights.concat();

    m.put("rollout_is_mean", mean(flat.iter().copied()));
    let (most, least, high, low) = match level {
        Level::Token => (
            max(flat.iter().copied()),
            min(flat.iter().copied()),
            share(&flat_raw, |w| w > upper),
            share(&flat_raw, |w| w < lower),
        ),
        // In log space, so that a product beyond the bound still counts as what it is.
        Level::Sequence => (
            max(sums.iter().copied()).min(SAFETY_BOUND).exp(),
            min(sums.iter().copied()).exp(),
            share(&sums, |s| s > upper.ln()),
            share(&sums, |s| s < lower.ln()),
        ),
    };
    m.put("rollout_is_max", most);
    m.put("rollout_is_min", least);
    m.put("rollout_is_ratio_fraction_high", high);
    m.put("rollout_is_ratio_fraction_low", low);
    let clamped: Vec<f64> = flat.iter().map(|w| w.clamp(0.0, upper)).collect();
    m.put("rollout_is_std", if clamped.len() > 1 { spread(&clamped) } else { 0.0 });
    let center = mean(clamped.iter().copied()) + 1e-8;
    let squares = mean(clamped.iter().map(|w| (w / center).powi(2)));
    // A band may leave no weight at all; then there is no sample to have a size.
    m.put("rollout_is_eff_sample_size", if squares > 0.0 { 1.0 / squares } else { f64::NAN });

    let by_sequence: Vec<f64> = weights.iter().map(|s| mean(s.iter().copied())).collect();
    m.put("rollout_is_seq_mean", mean(by_sequence.iter().copied()));
    m.put("rollout_is_seq_std", sample_std_or_zero(&by_sequence));
    m.put("rollout_is_seq_max", max(by_sequence.iter().copied()));
    m.put("rollout_is_seq_min", min(by_sequence.iter().copied()));
    m.put("rollout_is_seq_max_deviation", max(by_sequence.iter().map(|w| (w - 1.0).abs())));
    // Of the raw weights: no mean of weights that were cut at the bound is above it.
    let raw_by_sequence: Vec<f64> = raw.iter().map(|s| mean(s.iter().copied())).collect();
    m.put("rollout_is_seq_fraction_high", share(&raw_by_sequence, |w| w > upper));
    m.put("rollout_is_seq_fraction_low", share(&raw_by_sequence, |w| w < lower));
    if let Some(lower) = threshold.lower {
        m.put("rollout_is_oob_ratio", share(&flat_raw, |w| w < lower || w > upper));
    }
}

fn probabilities(batch: &Batch, m: &mut Metrics) {
    let pairs: Vec<(f64, f64)> = batch.iter().flatten().map(|t| (t.training.exp(), t.rollout.exp())).collect();
    let diff: Vec<f64> = pairs.iter().map(|(t, r)| (t - r).abs()).collect();
    m.put("training/rollout_probs_diff_valid", 1.0);
    m.put("training/rollout_probs_diff_max", max(diff.iter().copied()));
    m.put("training/rollout_probs_diff_mean", mean(diff.iter().copied()));
    m.put("training/rollout_probs_diff_std", sample_std(&diff));
    m.put("training/rollout_actor_probs_pearson_corr", pearson(&pairs));
}

/// NaN where one of the two does not vary.
fn pearson(pairs: &[(f64, f64)]) -> f64 {
    let (x, y) = (mean(pairs.iter().map(|p| p.0)), mean(pairs.iter().map(|p| p.1)));
    let sum = |f: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|p| f(p.0 - x, p.1 - y)).sum::<f64>();
    let spread = (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt();
    if spread > 0.0 { sum(&|a, b| a * b) / spread } else { f64::NAN }
}

#[cfg(test)]
mod tests;
