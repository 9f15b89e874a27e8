//! The hooks: each question becomes a frame, each answer is checked.

use super::{Remote, Slot};
use crate::abi::{block_quant, layout, logits_mask, lora, scheme};
use crate::base::Function;
use crate::base::{Hook, text};
use crate::isolate::protocol::{Answer, Panel, Request};
use patchhost_runtime::hooks::{
    ActivationRule, Arrival, BlockQuant, Blocks, Consumer, Decision, HookCause, HookError, Layout, LayoutPass,
    LoaderMap, LogitsMask, Lora, LoraPlan, ModelInfo, Needs, Placement, RefitObserver, RefitWatch, RowPanel,
    TensorInfo, Verdict,
};
use std::ops::Range;
use std::sync::Arc;

/// A patch in child processes, as one of the runtime's hooks.
pub(crate) struct Hooked(pub(crate) Arc<Remote>);

/// Bytes of a reason: the bound of an in-process veto, after escaping.
const REASON_BYTES: usize = 4 << 10;

impl Hooked {
    fn decide_ms(&self) -> u64 {
        self.0.limits.wall_decide_ms
    }

    fn bad(&self, function: Function, subject: &str, why: String) -> HookError {
        self.0.error(function, subject, HookCause::BadOutput, text::clean(&why, 1024))
    }

    fn numbers(
        &self,
        function: Function,
        tensor: &str,
        wall_ms: u64,
        expected: usize,
        request: &Request,
    ) -> Result<Vec<f32>, HookError> {
        match self.0.ask(function, tensor, wall_ms, request)? {
            Answer::Numbers(numbers) => {
                block_quant::check_count(&numbers, expected).map_err(|why| self.bad(function, tensor, why))?;
                Ok(numbers)
            }
            other => Err(self.0.odd(function, &other)),
        }
    }
}

impl LoaderMap for Hooked {
    fn name(&self) -> &str {
        &self.0.info.name
    }

    fn resolve(
        &self,
        model: &ModelInfo,
        registry: &[TensorInfo],
        checkpoint: &[TensorInfo],
    ) -> Result<Vec<Placement>, HookError> {
        let function = Function::Resolve;
        let request =
            Request::Resolve { model: model.clone(), registry: registry.to_vec(), checkpoint: checkpoint.to_vec() };
        match self.0.ask(function, "", self.decide_ms(), &request)? {
            // Targets, slots and coverage are the refit's to check.
            Answer::Placements(placements) if placements.len() == checkpoint.len() => Ok(placements),
            Answer::Placements(placements) => {
                let why = format!("it returned {} placements for {} tensors", placements.len(), checkpoint.len());
                Err(self.bad(function, "", why))
            }
            other => Err(self.0.odd(function, &other)),
        }
    }
}

impl BlockQuant for Hooked {
    fn name(&self) -> &str {
        &self.0.info.name
    }

    fn decide(&self, model: &ModelInfo, reader: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        let function = Function::Decide;
        let request = Request::Decide { model: model.clone(), reader: reader.clone(), tensors: tensors.to_vec() };
        let decisions = match self.0.ask(function, "", self.decide_ms(), &request)? {
            Answer::Decisions(decisions) => decisions,
            other => return Err(self.0.odd(function, &other)),
        };
        if decisions.len() != tensors.len() {
            let why = format!("it returned {} decisions for {} tensors", decisions.len(), tensors.len());
            return Err(self.bad(function, "", why));
        }
        for (decision, tensor) in decisions.iter().zip(tensors) {
            let Decision::Quantize(scheme) = decision else { continue };
            let about = |why: String| self.bad(function, &tensor.name, why);
            scheme::check(scheme).map_err(about)?;
            if scheme.needs == Needs::Rows && !self.0.hooks.contains(&Hook::BlockQuantRows) {
                return Err(about("it needs rows, but the patch does not export `block-quant-rows`".to_owned()));
            }
        }
        Ok(decisions)
    }

    fn activation(&self, model: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        // The rule's bounds are the runtime's to check.
        match self.0.ask(Function::Activation, "", self.decide_ms(), &Request::Activation(model.clone()))? {
            Answer::Activation(rule) => Ok(rule),
            other => Err(self.0.odd(Function::Activation, &other)),
        }
    }

    fn scales(&self, blocks: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let request = Request::Scales(Panel::of(blocks), amax.to_vec());
        self.numbers(Function::Scales, blocks.tensor, self.0.limits.wall_scales_ms, amax.len(), &request)
    }

    fn scales_with_moments(
        &self,
        blocks: &Blocks<'_>,
        amax: &[f32],
        sum_squares: &[f32],
    ) -> Result<Vec<f32>, HookError> {
        let request = Request::ScalesWithMoments(Panel::of(blocks), amax.to_vec(), sum_squares.to_vec());
        self.numbers(Function::ScalesWithMoments, blocks.tensor, self.0.limits.wall_scales_ms, amax.len(), &request)
    }

    fn panel_scales(&self, blocks: &Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let function = Function::PanelScales;
        let row = panel.cols.saturating_mul(panel.elem.size());
        let bytes = panel.first_row.checked_mul(row).zip(panel.rows.checked_mul(row));
        let bytes = bytes.and_then(|(start, length)| panel.data.get(start..start.checked_add(length)?));
        let Some(bytes) = bytes else {
            return Err(self.bad(function, blocks.tensor, "the lent panel ends beyond its tensor".to_owned()));
        };
        let request = Request::PanelScales {
            panel: Panel::of(blocks),
            elem: panel.elem,
            cols: panel.cols,
            rows: panel.rows,
            bytes: bytes.to_vec(),
            amax: amax.to_vec(),
        };
        self.numbers(function, blocks.tensor, self.0.limits.wall_panel_ms, amax.len(), &request)
    }

    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let function = Function::ActivationScales;
        let request = Request::ActivationScales(amax.to_vec());
        let scales = self.numbers(function, "", self.0.limits.wall_scales_ms, amax.len(), &request)?;
        block_quant::check_activation(&scales, amax).map_err(|why| self.bad(function, "", why))?;
        Ok(scales)
    }
}

impl Layout for Hooked {
    fn name(&self) -> &str {
        &self.0.info.name
    }

    fn passes(
        &self,
        model: &ModelInfo,
        reader: &Consumer,
        tensors: &[TensorInfo],
    ) -> Result<Vec<Vec<LayoutPass>>, HookError> {
        let request = Request::Passes { model: model.clone(), reader: reader.clone(), tensors: tensors.to_vec() };
        match self.0.ask(Function::Passes, "", self.decide_ms(), &request)? {
            Answer::Passes(passes) => {
                layout::check(&passes, tensors).map_err(|why| self.bad(Function::Passes, "", why))?;
                Ok(passes)
            }
            other => Err(self.0.odd(Function::Passes, &other)),
        }
    }
}

impl Lora for Hooked {
    fn name(&self) -> &str {
        &self.0.info.name
    }

    fn admit(
        &self,
        model: &ModelInfo,
        peft_config: &str,
        registry: &[TensorInfo],
        adapter: &[TensorInfo],
    ) -> Result<LoraPlan, HookError> {
        let request = Request::Admit {
            model: model.clone(),
            config: peft_config.to_owned(),
            registry: registry.to_vec(),
            adapter: adapter.to_vec(),
        };
        match self.0.ask(Function::Admit, "", self.decide_ms(), &request)? {
            Answer::Plan(plan) => {
                lora::check(&plan, adapter.len()).map_err(|why| self.bad(Function::Admit, "", why))?;
                Ok(plan)
            }
            other => Err(self.0.odd(Function::Admit, &other)),
        }
    }
}

impl LogitsMask for Hooked {
    fn name(&self) -> &str {
        &self.0.info.name
    }

    fn masked(&self, model: &ModelInfo, rows: u32, vocabulary: u32) -> Result<Vec<Range<u32>>, HookError> {
        let request = Request::Masked { model: model.clone(), rows, vocabulary };
        match self.0.ask(Function::Masked, "", self.decide_ms(), &request)? {
            Answer::Ranges(ranges) => {
                let ranges: Vec<Range<u32>> = ranges.into_iter().map(|(start, end)| start..end).collect();
                logits_mask::check(&ranges, rows).map_err(|why| self.bad(Function::Masked, "", why))?;
                Ok(ranges)
            }
            other => Err(self.0.odd(Function::Masked, &other)),
        }
    }
}

impl RefitObserver for Hooked {
    fn name(&self) -> &str {
        &self.0.info.name
    }

    fn begin(&self, version: &str, expected: Option<&[String]>) -> Result<(Verdict, Box<dyn RefitWatch>), HookError> {
        let function = Function::Begin;
        let request = Request::Begin { version: version.to_owned(), expected: expected.map(<[String]>::to_vec) };
        let slot = self.0.slot();
        match self.0.ask_in(&slot, None, function, version, self.decide_ms(), &request)? {
            (Answer::Begun(verdict, watch), number) => {
                let watching = Watching { remote: self.0.clone(), slot, number, watch };
                Ok((checked(verdict), Box::new(watching)))
            }
            (other, _) => Err(self.0.odd(function, &other)),
        }
    }
}

/// One refit: all of it goes to the process that it began in.
struct Watching {
    remote: Arc<Remote>,
    slot: Arc<Slot>,
    number: u64,
    watch: u64,
}

impl Watching {
    fn ask(&self, function: Function, request: &Request) -> Result<Verdict, HookError> {
        let wall_ms = self.remote.limits.wall_decide_ms;
        match self.remote.ask_in(&self.slot, Some(self.number), function, "", wall_ms, request)?.0 {
            Answer::Verdict(verdict) => Ok(checked(verdict)),
            other => Err(self.remote.odd(function, &other)),
        }
    }
}

impl RefitWatch for Watching {
    fn tensors(&mut self, batch: &[Arrival]) -> Result<Verdict, HookError> {
        self.ask(Function::Tensors, &Request::Tensors { watch: self.watch, batch: batch.to_vec() })
    }

    fn finish(&mut self, total: u32) -> Result<Verdict, HookError> {
        self.ask(Function::Finish, &Request::Finish { watch: self.watch, total })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let forget = Request::Forget { watch: self.watch };
        // If its process is gone, so is what it should forget.
        let wall_ms = self.remote.limits.wall_decide_ms;
        let _ = self.remote.ask_in(&self.slot, Some(self.number), Function::Finish, "", wall_ms, &forget);
    }
}

fn checked(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Accept => Verdict::Accept,
        Verdict::Veto(reason) => Verdict::Veto(text::clean(&reason, REASON_BYTES)),
    }
}
