//! Activations before an FP8 matrix: left alone (weight-only), or quantized in dynamic 1×128 groups as GPU engines do.

use std::sync::Arc;

use patchhost_kernels::activation::{apply_groups, group_amax, rule_scales};

use crate::error::{Refusal, RuntimeError};
use crate::hooks::{ActivationRule, BlockQuant, HookError};

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
        let good = rule.eps.is_finite() && rule.eps >= 0.0 && rule.divisor.is_finite() && rule.divisor > 0.0;
        if !good {
            return Err(RuntimeError::Contract(Refusal::new(
                format!("the activation rule of patch `{patch}`"),
                format!("eps {} and divisor {} must be finite, the divisor greater than 0", rule.eps, rule.divisor),
                "repair the patch, or run with --fp8-activation none",
            )));
        }
        Ok(Activation::Rule(rule))
    }

    /// `x` [m, k] as the matrix sees it: quantized to FP8 and back, or `None` where it stays.
    pub fn quantized(&self, x: &[f32], m: usize, k: usize) -> Result<Option<Vec<f32>>, HookError> {
        if matches!(self, Activation::None) {
            return Ok(None);
        }
        let mut amax = Vec::new();
        group_amax(x, m, k, &mut amax);
        let mut scales = vec![0.0; amax.len()];
        match self {
            Activation::None => return Ok(None),
            Activation::Rule(rule) => rule_scales(rule, &amax, &mut scales),
            Activation::Call(patch) => scales.copy_from_slice(&patch.activation_scales(&amax)?),
        }
        let mut out = vec![0.0; x.len()];
        apply_groups(x, m, k, &scales, &mut out);
        Ok(Some(out))
    }
}
