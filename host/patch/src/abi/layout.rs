//! `patchhost:patch/layout`: layout passes. Whether a pass can apply to its tensor is the refit's to check.

use super::bindings::layout as wit;
use super::guest::{Guest, Subject};
use super::model::check_question;
use crate::base::Function;
use crate::base::text;
use patchhost_runtime::hooks::{Consumer, HookCause, HookError, Layout, LayoutPass, ModelInfo, TensorInfo};
use std::sync::Arc;

lower!(layout: lower_model, lower_tensors);

/// A patch as the runtime's [`Layout`].
pub(crate) struct LayoutAdapter(pub(crate) Arc<Guest>);

impl Layout for LayoutAdapter {
    fn name(&self) -> &str {
        &self.0.info().name
    }

    fn passes(
        &self,
        model: &ModelInfo,
        reader: &Consumer,
        tensors: &[TensorInfo],
    ) -> Result<Vec<Vec<LayoutPass>>, HookError> {
        let guest = &self.0;
        let subject = Subject::Tensors(tensors.len());
        let fail = |cause, why| guest.error(Function::Passes, &subject, cause, why);
        check_question(model, &[tensors]).map_err(|why| fail(HookCause::Limit, why))?;

        // A list of lists: a pointer and a length for each tensor, and at most three passes.
        let output = tensors.len().saturating_mul(size_of::<Vec<wit::Pass>>() + 3);
        let budget = guest.limits().model_budget(tensors.len(), model.config.len(), output);
        let answer = guest.call(Function::Passes, &subject, &budget, None, |store, exports| {
            let Some(exports) = &exports.layout else { return Ok(Err("no export `layout`".into())) };
            let consumer = wit::Consumer { engine: &reader.engine, version: &reader.version };
            exports.call_passes(store, lower::model(model), consumer, &lower::tensors(tensors))
        })?;

        let answer: Vec<Vec<LayoutPass>> =
            answer.into_iter().map(|passes| passes.into_iter().map(pass).collect()).collect();
        check(&answer, tensors).map_err(|why| fail(HookCause::BadOutput, why))?;
        Ok(answer)
    }
}

/// What the interface says of an answer.
pub(crate) fn check(answer: &[Vec<LayoutPass>], tensors: &[TensorInfo]) -> Result<(), String> {
    if answer.len() != tensors.len() {
        return Err(format!("it returned {} lists of passes for {} tensors", answer.len(), tensors.len()));
    }
    for (passes, tensor) in answer.iter().zip(tensors) {
        if let Some((_, twice)) = passes.iter().enumerate().find(|(i, p)| passes[..*i].contains(p)) {
            let name = text::clean(&tensor.name, 120);
            return Err(format!("pass {twice:?} stands twice in the list of `{name}`"));
        }
    }
    Ok(())
}

fn pass(pass: wit::Pass) -> LayoutPass {
    match pass {
        wit::Pass::SwapW13 => LayoutPass::SwapW13,
        wit::Pass::Ue8m0 => LayoutPass::Ue8m0,
        wit::Pass::ColMajorAlign => LayoutPass::ColMajorAlign,
    }
}
