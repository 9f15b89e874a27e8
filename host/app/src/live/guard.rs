//! The block-quant patch in the forward pass: where activation scales are a call per GEMM, a failing patch must be
//! counted, and under the policy `native` must not end the requests.

use std::sync::Arc;

use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, Consumer, Decision, HookError, ModelInfo, RowPanel, TensorInfo,
};

use crate::base::{Digest, Hook};
use crate::native::OwnSource;
use crate::patch::{Board, Failure, OnFailure};

/// A patch, and what happens when it fails between refits.
pub(super) struct Guarded {
    pub(super) inner: Arc<dyn BlockQuant>,
    pub(super) board: Arc<Board>,
    pub(super) component: Digest,
    pub(super) settings: Vec<(String, String)>,
}

impl BlockQuant for Guarded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn decide(&self, model: &ModelInfo, reader: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        self.inner.decide(model, reader, tensors)
    }

    fn activation(&self, model: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        self.inner.activation(model)
    }

    fn scales(&self, blocks: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.inner.scales(blocks, amax)
    }

    fn scales_with_moments(&self, blocks: &Blocks<'_>, amax: &[f32], squares: &[f32]) -> Result<Vec<f32>, HookError> {
        self.inner.scales_with_moments(blocks, amax, squares)
    }

    fn panel_scales(&self, blocks: &Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.inner.panel_scales(blocks, panel, amax)
    }

    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let native = || OwnSource::in_place_of(&self.settings).activation_scales(amax);
        if self.board.left_alone(&self.component, Hook::BlockQuant).is_some()
            && self.board.rules().on_failure(Hook::BlockQuant) == OnFailure::Native
        {
            return native();
        }
        let error = match self.inner.activation_scales(amax) {
            Ok(scales) => return Ok(scales),
            Err(error) => error,
        };
        let failure = Failure {
            patch: error.patch.clone(),
            sha256: self.component,
            hook: Hook::BlockQuant,
            cause: error.cause,
            why: format!("{}: {}", error.call, error.why),
        };
        match self.board.failed(&failure).on_failure {
            OnFailure::Native => native(),
            // The weights of this pass are those of the patch: another set's activation scales would not fit them.
            OnFailure::Closed | OnFailure::LastGood => Err(error),
        }
    }
}
