//! What a run comes to, in words.

use super::marks::Set;
use super::panels::steps_of_a_point;
use crate::compare::brief;
use crate::train::metrics::Point;

/// Fewer steps than this at each end show no trend.
const ENOUGH: usize = 3;
/// Steps that a sentence lists before it only counts them.
const LISTED: usize = 6;

/// Whether the reward rose, and by which numbers, in one sentence.
pub(crate) fn verdict(points: &[Point]) -> String {
    let rewards: Vec<f64> = points.iter().map(|p| p.reward).filter(|r| r.is_finite()).collect();
    let quarter = rewards.len().div_ceil(4);
    let (Some(first), Some(last)) = (rewards.get(..quarter), rewards.get(rewards.len() - quarter..)) else {
        return String::new();
    };
    match (points.len(), rewards.len()) {
        (0, _) => return "No step was made, so there is nothing to show yet.".to_owned(),
        (_, 0) => return "No step has a reward that is a number.".to_owned(),
        (_, 1) => return format!("One step: its mean reward is {}; a trend needs more of them.", brief(first[0])),
        _ => {}
    }
    let (a, b) = (mean(first), mean(last));
    let (a_text, b_text) = (format!("{a:.3}"), format!("{b:.3}"));
    let ends = match quarter {
        1 => format!("{a_text} in the first step, {b_text} in the last"),
        n => format!("{a_text} on average over the first {n} steps, {b_text} over the last {n}"),
    };
    // Two standard errors of the difference of the two means.
    let chance = 2.0 * (variance(first) / quarter as f64 + variance(last) / quarter as f64).sqrt();
    let said = if a_text == b_text {
        "The mean reward did not change"
    } else if quarter < ENOUGH {
        "These are too few steps to show a trend of the mean reward"
    } else if (b - a).abs() <= chance {
        "The mean reward did not clearly change"
    } else if b > a {
        "The mean reward rose"
    } else {
        "The mean reward fell"
    };
    format!("{said}: {ends}.")
}

/// What else is worth a sentence.
pub(super) fn notes(points: &[Point], sets: &[Set<'_>]) -> Vec<String> {
    let mut out = Vec::new();
    let k3: Vec<(u64, f64)> = points.iter().map(|p| (p.step, p.k3_kl)).filter(|(_, v)| v.is_finite()).collect();
    if let Some((step, most)) = k3.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a }) {
        let values: Vec<f64> = k3.iter().map(|(_, v)| *v).collect();
        let mean = brief(mean(&values));
        out.push(match values.len() {
            1 => format!("Mismatch of rollout engine and trainer: k3 KL {mean} nats per token."),
            _ => format!(
                "Mismatch of rollout engine and trainer: k3 KL {mean} nats per token on average, at most {} (step {step}).",
                brief(most)
            ),
        });
    }
    let swaps: Vec<String> = sets.iter().skip(1).map(|set| set.from().to_string()).collect();
    out.push(match swaps.as_slice() {
        [] => "The set of patches was the same in all steps.".to_owned(),
        [one] => format!("One swap of patches, at step {one}."),
        [steps @ .., last] if steps.len() < LISTED => {
            format!("{} swaps of patches, at the steps {} and {last}.", swaps.len(), steps.join(", "))
        }
        _ => format!("{} swaps of patches.", swaps.len()),
    });
    if steps_of_a_point(points.len()) > 1 {
        out.push(format!(
            "Each point of a line is the mean of about {} steps; the band around it is from the least to the greatest of them.",
            steps_of_a_point(points.len())
        ));
    }
    if points.is_empty() {
        out.clear();
    }
    out
}

/// The mean of what are numbers; NaN of none.
pub(super) fn mean(values: &[f64]) -> f64 {
    let finite = || values.iter().copied().filter(|v| v.is_finite());
    finite().sum::<f64>() / finite().count() as f64
}

/// The value in the middle of what are numbers; none of none.
pub(super) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn variance(values: &[f64]) -> f64 {
    let center = mean(values);
    values.iter().map(|v| (v - center).powi(2)).sum::<f64>() / values.len().saturating_sub(1).max(1) as f64
}
