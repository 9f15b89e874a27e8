//! A patch's hooks made of somebody who answers questions: each call becomes a [`Question`], each answer is checked by the
//! rules that answers of guests in this process are checked by. Who answers may be a child process that was taken over.

use super::question::{Answer, Blocks, Outcome, Question, Rows};
use crate::abi::{Hooks, Memory, Snapshot, block_quant, layout, logits_mask, lora, scheme};
use crate::base::{Function, Hook, text};
use patchhost_runtime::hooks::{
    self, ActivationRule, Arrival, BlockQuant, Consumer, Decision, HookCause, HookError, Layout, LayoutPass, LoaderMap,
    LogitsMask, Lora, LoraPlan, ModelInfo, Needs, Placement, RefitObserver, RefitWatch, RowPanel, TensorInfo, Verdict,
};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a reason: the bound of an in-process veto, after escaping.
const REASON_BYTES: usize = 4 << 10;

/// Somebody who answers questions about one patch.
pub(crate) trait Ask: Send + Sync {
    /// The name that the patch gives itself.
    fn name(&self) -> &str;
    /// Its answer.
    fn ask(&self, question: Question) -> Outcome;
}

impl<A: Ask> Ask for Arc<A> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn ask(&self, question: Question) -> Outcome {
        (**self).ask(question)
    }
}

/// A patch, through who answers for it.
pub(crate) struct Asked<A> {
    who: A,
    claimed: Vec<Hook>,
}

impl<A: Ask + 'static> Asked<A> {
    /// The hooks that the patch claims.
    pub(crate) fn hooks(who: A, claimed: &[Hook]) -> Hooks {
        let asked = Arc::new(Self { who, claimed: claimed.to_vec() });
        let has = |hook: Hook| claimed.contains(&hook).then(|| Arc::clone(&asked));
        Hooks {
            name: asked.who.name().to_owned(),
            loader_map: has(Hook::LoaderMap).map(|asked| asked as _),
            block_quant: has(Hook::BlockQuant).map(|asked| asked as _),
            layout: has(Hook::Layout).map(|asked| asked as _),
            lora: has(Hook::Lora).map(|asked| asked as _),
            logits_mask: has(Hook::LogitsMask).map(|asked| asked as _),
            refit_observer: has(Hook::RefitObserver).map(|asked| Arc::new(Observer(asked)) as _),
            memory: asked,
        }
    }
}

impl<A: Ask> Asked<A> {
    fn bad(&self, function: Function, subject: &str, why: String) -> HookError {
        let call = match subject {
            "" => format!("`{function}`"),
            subject => format!("`{function}` for {}", text::clean(subject, 200)),
        };
        HookError {
            patch: self.who.name().to_owned(),
            call,
            cause: HookCause::BadOutput,
            why: text::clean(&why, 1024),
            next: "fix the patch: nothing of this answer was used".to_owned(),
        }
    }

    /// An answer of another kind than the question's.
    fn odd(&self, function: Function, answer: &Answer) -> HookError {
        self.bad(function, "", format!("its process answered with {}", answer.kind()))
    }

    fn numbers(
        &self,
        function: Function,
        tensor: &str,
        expected: usize,
        question: Question,
    ) -> Result<Vec<f32>, HookError> {
        match self.who.ask(question)? {
            Answer::Numbers(numbers) => {
                block_quant::check_count(&numbers, expected).map_err(|why| self.bad(function, tensor, why))?;
                Ok(numbers)
            }
            other => Err(self.odd(function, &other)),
        }
    }

    fn verdict(&self, function: Function, question: Question) -> Result<Verdict, HookError> {
        match self.who.ask(question)? {
            Answer::Verdict(verdict) => Ok(checked(verdict)),
            other => Err(self.odd(function, &other)),
        }
    }
}

impl<A: Ask> LoaderMap for Asked<A> {
    fn name(&self) -> &str {
        self.who.name()
    }

    fn resolve(
        &self,
        model: &ModelInfo,
        registry: &[TensorInfo],
        checkpoint: &[TensorInfo],
    ) -> Result<Vec<Placement>, HookError> {
        let function = Function::Resolve;
        let question =
            Question::Resolve { model: model.clone(), registry: registry.to_vec(), checkpoint: checkpoint.to_vec() };
        match self.who.ask(question)? {
            // Targets, slots and coverage are the refit's to check.
            Answer::Placements(placements) if placements.len() == checkpoint.len() => Ok(placements),
            Answer::Placements(placements) => {
                let why = format!("it returned {} placements for {} tensors", placements.len(), checkpoint.len());
                Err(self.bad(function, "", why))
            }
            other => Err(self.odd(function, &other)),
        }
    }
}

impl<A: Ask> BlockQuant for Asked<A> {
    fn name(&self) -> &str {
        self.who.name()
    }

    fn decide(&self, model: &ModelInfo, reader: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        let function = Function::Decide;
        let question = Question::Decide { model: model.clone(), reader: reader.clone(), tensors: tensors.to_vec() };
        let decisions = match self.who.ask(question)? {
            Answer::Decisions(decisions) => decisions,
            other => return Err(self.odd(function, &other)),
        };
        if decisions.len() != tensors.len() {
            let why = format!("it returned {} decisions for {} tensors", decisions.len(), tensors.len());
            return Err(self.bad(function, "", why));
        }
        for (decision, tensor) in decisions.iter().zip(tensors) {
            let Decision::Quantize(scheme) = decision else { continue };
            let about = |why: String| self.bad(function, &tensor.name, why);
            scheme::check(scheme).and_then(|()| scheme::check_burden(scheme, tensor)).map_err(about)?;
            if scheme.needs == Needs::Rows && !self.claimed.contains(&Hook::BlockQuantRows) {
                return Err(about("it needs rows, but the patch does not export `block-quant-rows`".to_owned()));
            }
        }
        Ok(decisions)
    }

    fn activation(&self, model: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        // The rule's bounds are the runtime's to check.
        match self.who.ask(Question::Activation(model.clone()))? {
            Answer::Activation(rule) => Ok(rule),
            other => Err(self.odd(Function::Activation, &other)),
        }
    }

    fn scales(&self, blocks: &hooks::Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let question = Question::Scales { blocks: Blocks::of(blocks), amax: amax.to_vec() };
        self.numbers(Function::Scales, blocks.tensor, amax.len(), question)
    }

    fn scales_with_moments(
        &self,
        blocks: &hooks::Blocks<'_>,
        amax: &[f32],
        sum_squares: &[f32],
    ) -> Result<Vec<f32>, HookError> {
        let (amax, sum_squares) = (amax.to_vec(), sum_squares.to_vec());
        let expected = amax.len();
        let question = Question::ScalesWithMoments { blocks: Blocks::of(blocks), amax, sum_squares };
        self.numbers(Function::ScalesWithMoments, blocks.tensor, expected, question)
    }

    fn panel_scales(&self, blocks: &hooks::Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let function = Function::PanelScales;
        let Some(rows) = Rows::of(panel) else {
            return Err(self.bad(function, blocks.tensor, "the lent panel ends beyond its tensor".to_owned()));
        };
        let question = Question::PanelScales { blocks: Blocks::of(blocks), rows, amax: amax.to_vec() };
        self.numbers(function, blocks.tensor, amax.len(), question)
    }

    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let function = Function::ActivationScales;
        let scales = self.numbers(function, "", amax.len(), Question::ActivationScales(amax.to_vec()))?;
        block_quant::check_activation(&scales, amax).map_err(|why| self.bad(function, "", why))?;
        Ok(scales)
    }
}

impl<A: Ask> Layout for Asked<A> {
    fn name(&self) -> &str {
        self.who.name()
    }

    fn passes(
        &self,
        model: &ModelInfo,
        reader: &Consumer,
        tensors: &[TensorInfo],
    ) -> Result<Vec<Vec<LayoutPass>>, HookError> {
        let question = Question::Passes { model: model.clone(), reader: reader.clone(), tensors: tensors.to_vec() };
        match self.who.ask(question)? {
            Answer::Passes(passes) => {
                layout::check(&passes, tensors).map_err(|why| self.bad(Function::Passes, "", why))?;
                Ok(passes)
            }
            other => Err(self.odd(Function::Passes, &other)),
        }
    }
}

impl<A: Ask> Lora for Asked<A> {
    fn name(&self) -> &str {
        self.who.name()
    }

    fn admit(
        &self,
        model: &ModelInfo,
        peft_config: &str,
        registry: &[TensorInfo],
        adapter: &[TensorInfo],
    ) -> Result<LoraPlan, HookError> {
        let (model, peft_config) = (model.clone(), peft_config.to_owned());
        let question = Question::Admit { model, peft_config, registry: registry.to_vec(), adapter: adapter.to_vec() };
        match self.who.ask(question)? {
            Answer::Plan(plan) => {
                lora::check(&plan, adapter.len()).map_err(|why| self.bad(Function::Admit, "", why))?;
                Ok(plan)
            }
            other => Err(self.odd(Function::Admit, &other)),
        }
    }
}

impl<A: Ask> LogitsMask for Asked<A> {
    fn name(&self) -> &str {
        self.who.name()
    }

    fn masked(&self, model: &ModelInfo, rows: u32, vocabulary: u32) -> Result<Vec<Range<u32>>, HookError> {
        match self.who.ask(Question::Masked { model: model.clone(), rows, vocabulary })? {
            Answer::Ranges(ranges) => {
                let ranges: Vec<Range<u32>> = ranges.into_iter().map(|(start, end)| start..end).collect();
                logits_mask::check(&ranges, rows).map_err(|why| self.bad(Function::Masked, "", why))?;
                Ok(ranges)
            }
            other => Err(self.odd(Function::Masked, &other)),
        }
    }
}

/// A patch that observes refits. Each of them holds on to it.
struct Observer<A>(Arc<Asked<A>>);

impl<A: Ask + 'static> RefitObserver for Observer<A> {
    fn name(&self) -> &str {
        self.0.who.name()
    }

    fn begin(&self, version: &str, expected: Option<&[String]>) -> Result<(Verdict, Box<dyn RefitWatch>), HookError> {
        let question = Question::Begin { version: version.to_owned(), expected: expected.map(<[String]>::to_vec) };
        match self.0.who.ask(question)? {
            Answer::Begun(verdict, watch) => {
                Ok((checked(verdict), Box::new(Watching { asked: Arc::clone(&self.0), watch })))
            }
            other => Err(self.0.odd(Function::Begin, &other)),
        }
    }
}

/// One refit that is observed.
struct Watching<A: Ask> {
    asked: Arc<Asked<A>>,
    watch: u64,
}

impl<A: Ask> RefitWatch for Watching<A> {
    fn tensors(&mut self, batch: &[Arrival]) -> Result<Verdict, HookError> {
        self.asked.verdict(Function::Tensors, Question::Tensors { watch: self.watch, batch: batch.to_vec() })
    }

    fn finish(&mut self, total: u32) -> Result<Verdict, HookError> {
        self.asked.verdict(Function::Finish, Question::Finish { watch: self.watch, total })
    }
}

impl<A: Ask> Drop for Watching<A> {
    fn drop(&mut self) {
        // Who cannot be told any more has forgotten it.
        let _ = self.asked.who.ask(Question::Forget { watch: self.watch });
    }
}

impl<A: Ask> Memory for Asked<A> {
    fn export_state(&self) -> Result<Option<Snapshot>, HookError> {
        let function = Function::ExportState;
        match self.who.ask(Question::ExportState)? {
            Answer::State(state) => {
                let checked = state.map(Snapshot::checked).transpose();
                checked.map_err(|why| self.bad(function, "", why))
            }
            other => Err(self.odd(function, &other)),
        }
    }

    fn import_state(&self, snapshot: Snapshot) -> Result<(), HookError> {
        match self.who.ask(Question::ImportState(snapshot))? {
            Answer::Done => Ok(()),
            other => Err(self.odd(Function::ImportState, &other)),
        }
    }
}

fn checked(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Accept => Verdict::Accept,
        Verdict::Veto(reason) => Verdict::Veto(text::clean(&reason, REASON_BYTES)),
    }
}
