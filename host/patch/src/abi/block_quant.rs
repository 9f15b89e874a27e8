//! `patchhost:patch/block-quant` and `block-quant-rows`: what becomes FP8, and with which scale. That a scale is right
//! is proved by the native cast on every block; here is checked what the interface says about the answer's form.

use super::bindings::{block_quant as wit, block_quant_rows as rows_wit};
use super::guest::{Guest, Subject};
use super::hooks::Exports;
use super::model::check_question;
use super::row_source::max_rows;
use super::scheme;
use crate::base::Function;
use crate::base::Hook;
use crate::base::text;
use crate::sandbox::{Lent, State};
use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, Consumer, Decision, HookCause, HookError, ModelInfo, Needs, RowPanel,
    TensorInfo,
};
use std::sync::Arc;
use wasmtime::Store;

lower!(block_quant: lower_model, lower_tensors);

/// Most blocks or groups in one call.
const BLOCKS: usize = 65_536;

/// A patch as the runtime's [`BlockQuant`].
pub(crate) struct QuantAdapter {
    pub(crate) guest: Arc<Guest>,
    pub(crate) hooks: Vec<Hook>,
}

impl QuantAdapter {
    fn error(&self, function: Function, subject: &Subject<'_>, cause: HookCause, why: String) -> HookError {
        self.guest.error(function, subject, cause, why)
    }

    /// One number per block out, whatever the function.
    fn numbers(
        &self,
        function: Function,
        blocks: &Blocks<'_>,
        amax: &[f32],
        ask: impl FnOnce(&mut Store<State>, &wit::Guest, wit::Blocks<'_>) -> Answer,
    ) -> Result<Vec<f32>, HookError> {
        let subject = Subject::Named(blocks.tensor);
        self.check_len(function, &subject, amax.len())?;
        let lowered = lower_blocks(blocks).map_err(|why| self.error(function, &subject, HookCause::Limit, why))?;
        let budget = self.guest.limits().scales_budget(amax.len());
        let answer =
            self.guest.call(function, &subject, &budget, None, |store, exports| match &exports.block_quant {
                Some(exports) => ask(store, exports, lowered),
                None => Ok(Err("no export `block-quant`".into())),
            })?;
        self.check_count(function, &subject, answer, amax.len())
    }

    fn check_len(&self, function: Function, subject: &Subject<'_>, blocks: usize) -> Result<(), HookError> {
        if blocks > BLOCKS {
            let why = format!("{blocks} blocks in one call; the interface allows {BLOCKS}");
            return Err(self.error(function, subject, HookCause::Limit, why));
        }
        Ok(())
    }

    fn check_count(
        &self,
        function: Function,
        subject: &Subject<'_>,
        answer: Vec<f32>,
        expected: usize,
    ) -> Result<Vec<f32>, HookError> {
        check_count(&answer, expected).map_err(|why| self.error(function, subject, HookCause::BadOutput, why))?;
        Ok(answer)
    }
}

/// One number per block.
pub(crate) fn check_count(answer: &[f32], expected: usize) -> Result<(), String> {
    if answer.len() == expected {
        return Ok(());
    }
    Err(format!("it returned {} numbers for {expected} blocks", answer.len()))
}

/// One finite scale greater than zero per group. (Weight scales are proved by the cast, block by block.)
pub(crate) fn check_activation(answer: &[f32], amax: &[f32]) -> Result<(), String> {
    check_count(answer, amax.len())?;
    match answer.iter().position(|scale| !(scale.is_finite() && *scale > 0.0)) {
        None => Ok(()),
        Some(at) => {
            Err(format!("scale {at} is {}, for amax {}; scales are finite and greater than 0", answer[at], amax[at]))
        }
    }
}

type Answer = wasmtime::Result<Result<Vec<f32>, String>>;

impl BlockQuant for QuantAdapter {
    fn name(&self) -> &str {
        &self.guest.info().name
    }

    fn decide(&self, model: &ModelInfo, reader: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        let subject = Subject::Tensors(tensors.len());
        let fail = |cause, why| self.error(Function::Decide, &subject, cause, why);
        check_question(model, &[tensors]).map_err(|why| fail(HookCause::Limit, why))?;

        let output = tensors.len().saturating_mul(size_of::<wit::Decision>() + scheme::TEXT_BYTES);
        let budget = self.guest.limits().model_budget(tensors.len(), model.config.len(), output);
        let answer = self.guest.call(Function::Decide, &subject, &budget, None, |store, exports| {
            let Some(exports) = &exports.block_quant else { return Ok(Err("no export `block-quant`".into())) };
            let consumer = wit::Consumer { engine: &reader.engine, version: &reader.version };
            exports.call_decide(store, lower::model(model), consumer, &lower::tensors(tensors))
        })?;

        if answer.len() != tensors.len() {
            let why = format!("it returned {} decisions for {} tensors", answer.len(), tensors.len());
            return Err(fail(HookCause::BadOutput, why));
        }
        let decided = answer.into_iter().zip(tensors).map(|(decision, tensor)| {
            let about = |why: String| format!("the decision about `{}`: {why}", text::clean(&tensor.name, 120));
            let decision = scheme::decision(decision).map_err(|why| fail(HookCause::BadOutput, about(why)))?;
            if let Decision::Quantize(scheme) = &decision {
                scheme::check_burden(scheme, tensor).map_err(|why| fail(HookCause::BadOutput, about(why)))?;
            }
            if let Decision::Quantize(scheme) = &decision
                && scheme.needs == Needs::Rows
                && !self.hooks.contains(&Hook::BlockQuantRows)
            {
                let why = about("it needs rows, but the patch does not export `block-quant-rows`".into());
                return Err(fail(HookCause::Unsupported, why));
            }
            Ok(decision)
        });
        decided.collect()
    }

    fn activation(&self, model: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        let subject = Subject::Named(&model.architecture);
        let fail = |cause, why| self.error(Function::Activation, &subject, cause, why);
        check_question(model, &[]).map_err(|why| fail(HookCause::Limit, why))?;
        let budget = self.guest.limits().model_budget(0, model.config.len(), 0);
        let answer = self.guest.call(Function::Activation, &subject, &budget, None, |store, exports| {
            let Some(exports) = &exports.block_quant else { return Ok(Err("no export `block-quant`".into())) };
            exports.call_activation(store, lower::model(model)).map(Ok)
        })?;
        Ok(answer.map(scheme::activation))
    }

    fn scales(&self, blocks: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.numbers(Function::Scales, blocks, amax, |store, guest, blocks| guest.call_scales(store, blocks, amax))
    }

    fn scales_with_moments(
        &self,
        blocks: &Blocks<'_>,
        amax: &[f32],
        sum_squares: &[f32],
    ) -> Result<Vec<f32>, HookError> {
        self.numbers(Function::ScalesWithMoments, blocks, amax, |store, guest, blocks| {
            guest.call_scales_with_moments(store, blocks, amax, sum_squares)
        })
    }

    fn panel_scales(&self, blocks: &Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let subject = Subject::Named(blocks.tensor);
        let function = Function::PanelScales;
        let fail = |cause, why| self.error(function, &subject, cause, why);
        self.check_len(function, &subject, amax.len())?;
        let lowered = lower_blocks(blocks).map_err(|why| fail(HookCause::Limit, why))?;
        let b = rows_wit::Blocks {
            tensor: lowered.tensor,
            rows: lowered.rows,
            cols: lowered.cols,
            block_rows: lowered.block_rows,
            block_cols: lowered.block_cols,
            first_block: lowered.first_block,
        };
        let panel_rows = to_u32("panel-rows", panel.rows).map_err(|why| fail(HookCause::Limit, why))?;
        let most = to_u32("max-rows", max_rows(panel.cols)).map_err(|why| fail(HookCause::Limit, why))?;
        let elements = panel.rows.saturating_mul(panel.cols);
        let limits = self.guest.limits();
        let budget = limits.panel_budget(elements, amax.len());
        let allowance = limits.panel_reads.saturating_mul(elements as u64);
        let lent = Lent { panel: panel.clone(), allowance };
        let answer =
            self.guest.call(function, &subject, &budget, Some(lent), |store, exports: &Exports| {
                match &exports.rows {
                    Some(exports) => exports.call_panel_scales(store, b, panel_rows, most, amax),
                    None => Ok(Err("no export `block-quant-rows`".into())),
                }
            })?;
        self.check_count(function, &subject, answer, amax.len())
    }

    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let function = Function::ActivationScales;
        let subject = Subject::Nothing;
        self.check_len(function, &subject, amax.len())?;
        let budget = self.guest.limits().scales_budget(amax.len());
        let answer =
            self.guest.call(function, &subject, &budget, None, |store, exports| match &exports.block_quant {
                Some(exports) => exports.call_activation_scales(store, amax),
                None => Ok(Err("no export `block-quant`".into())),
            })?;
        check_activation(&answer, amax).map_err(|why| self.error(function, &subject, HookCause::BadOutput, why))?;
        Ok(answer)
    }
}

fn lower_blocks<'a>(blocks: &Blocks<'a>) -> Result<wit::Blocks<'a>, String> {
    Ok(wit::Blocks {
        tensor: blocks.tensor,
        rows: to_u32("rows", blocks.rows)?,
        cols: to_u32("cols", blocks.cols)?,
        block_rows: to_u32("block-rows", blocks.block_rows)?,
        block_cols: to_u32("block-cols", blocks.block_cols)?,
        first_block: to_u32("first-block", blocks.first_block)?,
    })
}

fn to_u32(what: &str, value: usize) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("`{what}` is {value}, which does not fit into 32 bits"))
}
