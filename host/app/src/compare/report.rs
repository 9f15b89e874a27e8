//! Everything a comparison found, as JSON has it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ablation::Ablation;
use super::class::Class;
use super::paired::Paired;
use super::rollout_corr::{Metrics, Settings};
use super::tensors::{TensorRow, Totals, totals};

/// Who a side is.
#[derive(Debug, Clone, Serialize)]
pub struct SideInfo {
    /// `patch`, `native` (the host's own formulas) or `bf16` (nothing is quantized).
    pub kind: &'static str,
    /// Name of the patch.
    pub name: String,
    pub version: Option<String>,
    /// Digest of its component.
    pub sha256: Option<String>,
    /// Digest of component, settings, limits and grants.
    pub generation: Option<String>,
    /// Its settings, KEY=VALUE.
    pub settings: Vec<String>,
}

impl SideInfo {
    /// In one line.
    pub fn line(&self) -> String {
        let mut line = self.name.clone();
        self.version.iter().for_each(|v| line.push_str(&format!(" {v}")));
        self.sha256.iter().for_each(|d| line.push_str(&format!("  sha256:{}", d.get(..12).unwrap_or(d))));
        if !self.settings.is_empty() {
            line.push_str(&format!("  {}", self.settings.join(" ")));
        }
        line
    }
}

/// Sums of one class.
#[derive(Debug, Clone, Serialize)]
pub struct ClassTotals {
    pub class: Class,
    /// Its sums.
    #[serde(flatten)]
    pub totals: Totals,
}

/// How far the engine is from the trainer, on the trainer's tokens.
#[derive(Debug, Clone, Serialize)]
pub struct RolloutCorr {
    /// How weights are made.
    pub settings: Settings,
    /// Sequences in the file.
    pub sequences: usize,
    /// Tokens that count.
    pub tokens: usize,
    /// With A's weights.
    pub a: Metrics,
    /// With B's.
    pub b: Metrics,
    /// `k3` of B against that of A, token by token.
    pub paired: Option<Paired>,
}

/// A comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name or path of the model.
    pub model: String,
    /// Its architecture; none for a plain file.
    pub architecture: Option<String>,
    /// Treatment of activations before FP8 matrices, in the forward passes.
    pub fp8_activation: &'static str,
    /// Side A.
    pub a: SideInfo,
    /// Side B.
    pub b: SideInfo,
    /// Tensors that neither side quantizes.
    pub kept: usize,
    /// Sums over all tensors that a side quantizes.
    pub total: Totals,
    /// The same by class.
    pub classes: Vec<ClassTotals>,
    /// Every tensor that a side quantizes, the worst first.
    pub tensors: Vec<TensorRow>,
    /// What each class costs; none with --tensors-only or for a plain file.
    pub ablation: Option<Ablation>,
    /// verl's metrics, where trainer log-probs were given.
    pub rollout_corr: Option<RolloutCorr>,
}

impl Report {
    /// A report of rows that were compared; predictions are filled in afterwards.
    pub fn new(
        (model, architecture): (String, Option<String>),
        fp8_activation: &'static str,
        [a, b]: [SideInfo; 2],
        kept: usize,
        mut tensors: Vec<TensorRow>,
    ) -> Self {
        worst_first(&mut tensors);
        let mut classes: BTreeMap<Class, Vec<&TensorRow>> = BTreeMap::new();
        tensors.iter().for_each(|row| classes.entry(row.class).or_default().push(row));
        let classes = classes.into_iter().map(|(class, rows)| ClassTotals { class, totals: totals(rows) }).collect();
        Self {
            model,
            architecture,
            fp8_activation,
            a,
            b,
            kept,
            total: totals(&tensors),
            classes,
            tensors,
            ablation: None,
            rollout_corr: None,
        }
    }
}

/// By the share of weight bytes that differ, then by the lower SNR of the two, then by name.
fn worst_first(rows: &mut [TensorRow]) {
    let share = |r: &TensorRow| r.weight_bytes.map_or(0.0, |w| w.share());
    let snr = |r: &TensorRow| {
        let both = [r.a.as_ref(), r.b.as_ref()].into_iter().flatten().filter_map(|s| s.snr_db);
        both.fold(f64::INFINITY, f64::min)
    };
    rows.sort_by(|x, y| {
        share(y).total_cmp(&share(x)).then(snr(x).total_cmp(&snr(y))).then_with(|| x.name.cmp(&y.name))
    });
}
