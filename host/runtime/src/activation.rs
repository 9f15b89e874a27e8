//! Activations before an FP8 matrix: left alone (weight-only), or quantized in dynamic 1×128 groups as GPU engines do.

use std::sync::Arc;

use patchhost_kernels::activation::{apply_groups, apply_rule, group_amax};
use patchhost_kernels::team::Team;

use crate::error::{Refusal, RuntimeError};
use crate::hooks::{ActivationRule, BlockQuant, HookCause, HookError};

/// amax / scale of a group: above 448 values saturate, below 224 a bit of precision is wasted.
const MOST: f32 = 448.0;
const LEAST: f32 = 224.0;
/// Groups whose amax is smaller may have a scale from a floor instead (1e-4 in published profiles).
const MOST_EPS: f32 = 1e-3;

/// Groups of one call, as the interface promises: a GEMM of more (a long prompt) makes several calls.
const MOST_GROUPS: usize = 65_536;

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActivationMode {
    /// Weight-only: activations stay f32.
    None,
    /// W8A8: 1×128 groups along K, scales by the patch's rule.
    #[default]
    Dynamic128,
}

/// How activations are treated; fixed by the refit that published the weights, so that both always come from the same
/// patch.
#[derive(Clone, Default)]
pub enum Activation {
    /// Stay f32.
    #[default]
    None,
    /// Scales by a rule, computed natively.
    Rule(ActivationRule),
    /// Scales by a call to the patch, once per GEMM.
    Call(Arc<dyn BlockQuant>),
}

impl std::fmt::Debug for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Activation::None => f.write_str("None"),
            Activation::Rule(rule) => write!(f, "{rule:?}"),
            Activation::Call(patch) => write!(f, "Call({})", patch.name()),
        }
    }
}

impl Activation {
    /// Checks a rule that a patch gave.
    pub fn from_rule(patch: &str, rule: ActivationRule) -> Result<Self, RuntimeError> {
        if !((0.0..=MOST_EPS).contains(&rule.eps) && (LEAST..=MOST).contains(&rule.divisor)) {
            return Err(RuntimeError::Contract(Refusal::new(
                format!("the activation rule of patch `{patch}`"),
                format!(
                    "eps is {}, allowed is 0 to {MOST_EPS}; divisor is {}, allowed is {LEAST} to {MOST}",
                    rule.eps, rule.divisor
                ),
                "repair the patch, or run with --fp8-activation none",
            )));
        }
        Ok(Activation::Rule(rule))
    }

    /// `x` [m, k] as an FP8 matrix sees it: quantized and dequantized, or `None` where it stays.
    pub fn quantized(&self, x: &[f32], m: usize, k: usize) -> Result<Option<Vec<f32>>, HookError> {
        let mut out = Vec::new();
        Ok(self.quantize(Team::global(), x, m, k, &mut out)?.then_some(out))
    }

    /// `x` [m, k] as an FP8 matrix sees it, quantized and dequantized into `out`; false where it stays as it is, and `out`
    /// is left alone.
    pub(crate) fn quantize(
        &self,
        team: &Team,
        x: &[f32],
        m: usize,
        k: usize,
        out: &mut Vec<f32>,
    ) -> Result<bool, HookError> {
        match self {
            Activation::None => return Ok(false),
            Activation::Rule(rule) => {
                out.resize(m * k, 0.0);
                apply_rule(team, rule, x, m, k, out);
            }
            Activation::Call(patch) => {
                let mut amax = Vec::new();
                group_amax(x, m, k, &mut amax);
                let mut scales = vec![0.0; amax.len()];
                for (amax, scales) in amax.chunks(MOST_GROUPS).zip(scales.chunks_mut(MOST_GROUPS)) {
                    scales.copy_from_slice(&patch.activation_scales(amax)?);
                    prove(patch.name(), amax, scales)?;
                }
                out.resize(m * k, 0.0);
                apply_groups(x, m, k, &scales, out);
            }
        }
        Ok(true)
    }
}

/// Proves the scales that a patch gave for groups of activations: 224 <= amax / scale <= 448 within rounding; groups
/// below the largest eps may have a larger scale, up to the one of that eps.
fn prove(patch: &str, amax: &[f32], scales: &[f32]) -> Result<(), HookError> {
    const ROUNDING: f32 = 1.0 + 8.0 * f32::EPSILON;
    for (group, (amax, scale)) in amax.iter().zip(scales).enumerate() {
        let no_saturation = *amax <= scale * MOST * ROUNDING;
        let no_waste = scale * LEAST <= amax.max(MOST_EPS) * ROUNDING;
        // Asked for what is right, not for what is wrong: NaN compares false everywhere. An amax that is not finite has
        // no right scale.
        if !(amax.is_finite() && *scale > 0.0 && no_saturation && no_waste) {
            return Err(HookError {
                patch: patch.to_string(),
                call: "`activation-scales`".to_string(),
                cause: HookCause::BadOutput,
                why: format!(
                    "group {group} has amax {amax:e} and got scale {scale:e}: amax / scale is not in [224, 448]"
                ),
                next: "repair the patch, or run with --set activation=rule or --fp8-activation none".to_string(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_of_activations_are_proved() {
        let good = |amax: f32, scale: f32| prove("p", &[amax], &[scale]).is_ok();
        for amax in [1e-3f32, 0.37, 1.0, 448.0, 1e20] {
            assert!(good(amax, amax / 448.0) && good(amax, amax / 225.0), "{amax}");
            assert!(!good(amax, amax / 449.0) && !good(amax, amax / 220.0) && !good(amax, f32::INFINITY), "{amax}");
        }
        // Zero groups: the scale of a floor, not a larger one.
        assert!(good(0.0, 1e-10 / 448.0) && good(0.0, 1e-4 / 448.0) && !good(0.0, 1.0));
        assert!(!good(f32::NAN, 1.0) && !good(f32::INFINITY, 1e36));
        assert!(!good(1.0, f32::NAN) && !good(1.0, -1.0) && !good(0.0, 0.0));
    }

    #[test]
    fn rules_of_activations_are_bounded() {
        let good = |eps, divisor| Activation::from_rule("p", ActivationRule { eps, divisor, pow2_up: false }).is_ok();
        assert!(good(0.0, 448.0) && good(1e-4, 448.0) && good(1e-3, 224.0));
        for (eps, divisor) in [(f32::NAN, 448.0), (-1.0, 448.0), (0.1, 448.0), (0.0, f32::NAN), (0.0, 0.0)] {
            assert!(!good(eps, divisor), "{eps} {divisor}");
        }
        for divisor in [-448.0, 223.0, 449.0, 1e9, f32::INFINITY] {
            assert!(!good(0.0, divisor), "{divisor}");
        }
    }
}
