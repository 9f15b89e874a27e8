//! From rewards to gradients: GRPO's group-normalized advantages, and a policy gradient whose tokens are weighed by
//! truncated importance sampling, because another engine sampled them than the one that is trained.
//!
//! One batch makes one update, so PPO's ratio to the policy before the update is 1 and its clipping never acts; what
//! differs is only the rollout engine's distribution. The loss is `-1/T sum_t A_t w_t log p(t)` over all T response tokens
//! of the batch (verl's `token-mean`), with `w_t = min(p(t) / p_rollout(t), C)` held constant.

use std::ops::Range;

use candle_core::Tensor;

use super::error::Result;
use super::masters::Masters;
use super::model::{Model, log_probs};
use super::rollout::Sample;
use crate::compare::rollout_corr::{Level, Threshold, Token, weights};

/// The advantages of one group of completions of one prompt: `(r - mean) / (std + 1e-6)`, std with n - 1.
pub fn advantages(rewards: &[f64]) -> Vec<f64> {
    let n = rewards.len() as f64;
    let mean = rewards.iter().sum::<f64>() / n;
    let variance = rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    rewards.iter().map(|r| (r - mean) / (variance.sqrt() + 1e-6)).collect()
}

/// What a batch gives.
pub struct Gradients {
    /// Of each master weight, in their order; zero where nothing depends on it.
    pub of: Vec<Vec<f32>>,
    pub loss: f64,
    /// Log-probs of each sample's response, the trainer's and the rollout's.
    pub tokens: Vec<Vec<Token>>,
}

/// How a batch is turned into gradients.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// Importance weights; none: every token counts alike.
    pub importance: Option<(Level, Threshold)>,
    /// Sequences of one forward and backward pass: less takes less memory.
    pub micro_batch: usize,
}

/// Forward and backward over all samples with their advantages.
pub fn gradients(
    model: &Model,
    masters: &Masters,
    samples: &[Sample],
    advantages: &[f64],
    masked: &[Range<u32>],
    how: &How,
) -> Result<Gradients> {
    let total = samples.iter().map(|s| s.response.len()).sum::<usize>().max(1) as f64;
    let mut out = Gradients {
        of: masters.all().iter().map(|m| vec![0.0; m.shape.iter().product()]).collect(),
        loss: 0.0,
        tokens: Vec::with_capacity(samples.len()),
    };
    for (samples, advantages) in samples.chunks(how.micro_batch).zip(advantages.chunks(how.micro_batch)) {
        let log_probs = responses(model, samples, masked)?;
        let values: Vec<f32> = log_probs.detach().to_vec1()?;
        let tokens = paired(samples, &values);
        let weights = match how.importance {
            Some((level, threshold)) => weights(&tokens, level, threshold),
            None => tokens.iter().map(|s| vec![1.0; s.len()]).collect(),
        };
        let factors: Vec<f64> =
            weights.iter().zip(advantages).flat_map(|(w, a)| w.iter().map(move |w| -a * w / total)).collect();
        out.loss += factors.iter().zip(&values).map(|(f, v)| f * f64::from(*v)).sum::<f64>();
        out.tokens.extend(tokens);
        if factors.iter().all(|f| *f == 0.0) {
            continue;
        }
        let factors: Vec<f32> = factors.iter().map(|f| *f as f32).collect();
        let loss = (&log_probs * Tensor::new(factors, log_probs.device())?)?.sum_all()?;
        let made = loss.backward()?;
        for (sum, master) in out.of.iter_mut().zip(masters.all()) {
            let Some(gradient) = made.get(master.var.as_tensor()) else { continue };
            for (s, g) in sum.iter_mut().zip(gradient.flatten_all()?.to_vec1::<f32>()?) {
                *s += g;
            }
        }
    }
    Ok(out)
}

/// The trainer's log-probs of all response tokens, one sample after the other.
fn responses(model: &Model, samples: &[Sample], masked: &[Range<u32>]) -> Result<Tensor> {
    // The last token is only predicted, never seen.
    let sequences: Vec<Vec<u32>> =
        samples.iter().map(|s| [&s.prompt[..], &s.response[..s.response.len().saturating_sub(1)]].concat()).collect();
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let batch = model.batch(&sequences)?;
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (i, sample) in samples.iter().enumerate() {
        rows.extend(batch.rows(i).skip(sample.prompt.len() - 1));
        targets.extend_from_slice(&sample.response);
    }
    log_probs(&model.logits(&batch, &rows)?, &targets, masked)
}

fn paired(samples: &[Sample], training: &[f32]) -> Vec<Vec<Token>> {
    let mut training = training.iter();
    let of = |s: &Sample| {
        let pairs = s.log_probs.iter().zip(training.by_ref());
        pairs.map(|(rollout, t)| Token { training: f64::from(*t), rollout: *rollout }).collect()
    };
    samples.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::advantages;

    #[test]
    fn a_group_is_normalized() {
        let a = advantages(&[1.0, 0.0, 0.0, 1.0]);
        assert!((a[0] - 0.5 / (1f64 / 3.0).sqrt()).abs() < 1e-5 && (a.iter().sum::<f64>()).abs() < 1e-12, "{a:?}");
        assert_eq!(advantages(&[0.3; 4]), [0.0; 4]);
        assert_eq!(advantages(&[0.3]), [0.0]);
    }
}
