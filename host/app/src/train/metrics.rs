//! What is written about each step.

use serde::{Deserialize, Serialize};

use crate::compare::rollout_corr::Metrics;

/// One line of the metrics file. Everything but `timing` is the same in every run with the same settings, patches and
/// swaps.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// From 1.
    pub step: u64,
    /// Of all completions of the step.
    pub reward: Spread,
    /// The policy gradient loss.
    pub loss: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Tokens of the responses.
    pub response_length: Spread,
    /// `rollout_corr/*` and `training/*`, by verl's names.
    #[serde(flatten)]
    pub mismatch: Metrics,
    /// Digest of the patch set of this step's refit, which its rollouts and activation scales used too.
    pub patch_set: String,
    pub patches: Vec<PatchId>,
    /// What the published weights are called.
    pub refit_version: String,
    /// The set is another than in the step before.
    pub swap: Option<Swap>,
    /// Why a candidate did not land that should have, or why another set than the active one made the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Of the weights that the refit published.
    pub weights_sha256: String,
    /// Of the master weights after the update.
    pub master_sha256: String,
    /// Seconds.
    pub timing: Timing,
}

/// A patch, as it stands in metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PatchId {
    pub name: String,
    pub generation: String,
}

/// One set of patches took the place of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// Digest of the set before.
    pub from: String,
    /// Digest of the set now.
    pub to: String,
}

/// Mean, standard deviation (n - 1) and ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
    /// Greatest.
    pub max: f64,
    /// Least.
    pub min: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
        Self {
            mean,
            std: if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 },
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
        }
    }
}

/// Seconds of each phase of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timing {
    /// Narrowing the master weights and refitting the rollout engine.
    pub refit: f64,
    /// Sampling.
    pub rollout: f64,
    /// Decoding texts and computing rewards.
    pub reward: f64,
    /// Forward and backward.
    pub gradients: f64,
    /// Clipping and AdamW.
    pub update: f64,
    /// Digests of the published and of the master weights.
    pub digests: f64,
    /// The whole step.
    pub step: f64,
}

/// What is kept of a step for the plot. What a checkpoint of an older version does not have is none; what JSON cannot write
/// as a number is NaN.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// From 1.
    pub step: u64,
    /// Mean reward.
    #[serde(deserialize_with = "or_nan")]
    pub reward: f64,
    /// `rollout_corr/kl`.
    #[serde(deserialize_with = "or_nan")]
    pub kl: f64,
    /// `rollout_corr/k3_kl`.
    #[serde(deserialize_with = "or_nan")]
    pub k3_kl: f64,
    /// Norm of all gradients before clipping.
    #[serde(default)]
    pub grad_norm: Option<f64>,
    /// Mean tokens of the responses.
    #[serde(default)]
    pub response_length: Option<f64>,
    /// Seconds that the refit took.
    #[serde(default)]
    pub refit_seconds: Option<f64>,
    /// The set is another than in the step before.
    pub swap: Option<Swap>,
    /// Digest of the patch set, at the first step of a run and at each swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_set: Option<String>,
    /// Names of its patches, at the same steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<String>,
}

/// NaN and infinity are null in JSON.
fn or_nan<'de, D: serde::Deserializer<'de>>(json: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(json)?.unwrap_or(f64::NAN))
}

impl From<&Record> for Point {
    fn from(r: &Record) -> Self {
        let get = |name: &str| r.mismatch.get(name).unwrap_or(f64::NAN);
        // A set that goes on is not written down again: a run may have very many steps.
        let new = r.step == 1 || r.swap.is_some();
        Self {
            step: r.step,
            reward: r.reward.mean,
            kl: get("rollout_corr/kl"),
            k3_kl: get("rollout_corr/k3_kl"),
            grad_norm: Some(r.grad_norm),
            response_length: Some(r.response_length.mean),
            refit_seconds: Some(r.timing.refit),
            swap: r.swap.clone(),
            patch_set: new.then(|| r.patch_set.clone()),
            patches: if new { r.patches.iter().map(|p| p.name.clone()).collect() } else { Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::Point;

    #[test]
    fn points_of_older_checkpoints_are_read_and_null_is_no_number() {
        let old = r#"{"step":3,"reward":0.5,"kl":0.1,"k3_kl":null,"swap":null}"#;
        let point: Point = serde_json::from_str(old).unwrap();
        assert!(point.k3_kl.is_nan() && point.grad_norm.is_none() && point.patches.is_empty());
        let text = serde_json::to_string(&point).unwrap();
        assert!(!text.contains("patches") && serde_json::from_str::<Point>(&text).unwrap().k3_kl.is_nan());
    }
}
