//! A patch of which only a part acts: for finding out what that part costs.

use std::sync::Arc;

use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, Consumer, Decision, HookError, ModelInfo, RowPanel, TensorInfo,
};
use serde::Serialize;

use super::class::{Class, layer_of};

/// Which tensors a patch may quantize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subset {
    /// Those of one class.
    Class(Class),
    /// Those of one decoder layer, whatever their class.
    Layer(usize),
}

impl Subset {
    /// Whether a tensor is in it.
    pub fn holds(self, tensor: &TensorInfo) -> bool {
        match self {
            Subset::Class(class) => Class::of(tensor.role) == class,
            Subset::Layer(layer) => layer_of(&tensor.name) == Some(layer),
        }
    }
}

/// `inner`, whose decisions to quantize count only inside of a subset.
pub struct Only {
    /// The patch.
    pub inner: Arc<dyn BlockQuant>,
    /// Where it may act.
    pub subset: Subset,
}

impl BlockQuant for Only {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn decide(&self, model: &ModelInfo, reader: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        let mut decisions = self.inner.decide(model, reader, tensors)?;
        for (decision, tensor) in decisions.iter_mut().zip(tensors) {
            if matches!(decision, Decision::Quantize(_)) && !self.subset.holds(tensor) {
                *decision = Decision::Keep("left out of this comparison".to_string());
            }
        }
        Ok(decisions)
    }

    fn activation(&self, model: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        self.inner.activation(model)
    }

    fn scales(&self, blocks: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.inner.scales(blocks, amax)
    }

    fn scales_with_moments(
        &self,
        blocks: &Blocks<'_>,
        amax: &[f32],
        sum_squares: &[f32],
    ) -> Result<Vec<f32>, HookError> {
        self.inner.scales_with_moments(blocks, amax, sum_squares)
    }

    fn panel_scales(&self, blocks: &Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.inner.panel_scales(blocks, panel, amax)
    }

    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.inner.activation_scales(amax)
    }
}
