//! Asking a patch what another, or it itself, was asked before.

use super::call::{Answer, Outcome, Question};
use crate::abi::Snapshot;
use crate::base::Hook;
use crate::patch::Patch;
use patchhost_runtime::hooks::{HookCause, HookError, RefitWatch};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Refits that may be under way at once: each keeps an instance. A host has one, and one beside it.
const WATCHES: usize = 4;

/// A patch that answers recorded questions.
pub(super) struct Player {
    patch: Arc<Patch>,
    /// By their numbers in the recording.
    watches: VecDeque<(u64, Box<dyn RefitWatch>)>,
}

impl Player {
    pub(super) fn new(patch: Arc<Patch>) -> Self {
        Self { patch, watches: VecDeque::new() }
    }

    pub(super) fn patch(&self) -> &Arc<Patch> {
        &self.patch
    }

    /// Its answer. The error says why no host can have asked this.
    pub(super) fn ask(&mut self, question: &Question) -> Result<Outcome, String> {
        match question {
            Question::PanelScales { blocks, rows, amax } => {
                let panel = rows.lend().ok_or("a panel has another number of bytes than its shape says")?;
                let quant = self.patch.block_quant();
                let asked = quant.ok_or_else(|| self.without(Hook::BlockQuantRows));
                Ok(asked.and_then(|q| q.panel_scales(&blocks.lend(), &panel, amax)).map(Answer::Numbers))
            }
            Question::ImportState(snapshot) => {
                // What a file says is not yet what the interface allows.
                let (schema, payload) = (snapshot.schema().to_owned(), snapshot.payload().to_vec());
                let checked = Snapshot::new(schema, snapshot.version(), payload)?;
                self.watches.clear();
                Ok(self.patch.import_state(checked).map(|()| Answer::Done))
            }
            other => Ok(self.answer(other)),
        }
    }

    fn answer(&mut self, question: &Question) -> Outcome {
        let patch = &self.patch;
        let quant = || patch.block_quant().ok_or_else(|| self.without(Hook::BlockQuant));
        Ok(match question {
            Question::Resolve { model, registry, checkpoint } => {
                let loader = patch.loader_map().ok_or_else(|| self.without(Hook::LoaderMap))?;
                Answer::Placements(loader.resolve(model, registry, checkpoint)?)
            }
            Question::Decide { model, reader, tensors } => Answer::Decisions(quant()?.decide(model, reader, tensors)?),
            Question::Activation(model) => Answer::Activation(quant()?.activation(model)?),
            Question::Scales { blocks, amax } => Answer::Numbers(quant()?.scales(&blocks.lend(), amax)?),
            Question::ScalesWithMoments { blocks, amax, sum_squares } => {
                Answer::Numbers(quant()?.scales_with_moments(&blocks.lend(), amax, sum_squares)?)
            }
            Question::ActivationScales(amax) => Answer::Numbers(quant()?.activation_scales(amax)?),
            Question::Passes { model, reader, tensors } => {
                let layout = patch.layout().ok_or_else(|| self.without(Hook::Layout))?;
                Answer::Passes(layout.passes(model, reader, tensors)?)
            }
            Question::Admit { model, peft_config, registry, adapter } => {
                let lora = patch.lora().ok_or_else(|| self.without(Hook::Lora))?;
                Answer::Plan(lora.admit(model, peft_config, registry, adapter)?)
            }
            Question::Masked { model, rows, vocabulary } => {
                let mask = patch.logits_mask().ok_or_else(|| self.without(Hook::LogitsMask))?;
                ranges(&mask.masked(model, *rows, *vocabulary)?)
            }
            Question::Begin { version, expected } => {
                let observer = patch.refit_observer().ok_or_else(|| self.without(Hook::RefitObserver))?;
                let (verdict, watch) = observer.begin(version, expected.as_deref())?;
                Answer::Begun(verdict, self.keep(watch))
            }
            Question::Tensors { watch, batch } => Answer::Verdict(self.watch(*watch)?.tensors(batch)?),
            Question::Finish { watch, total } => Answer::Verdict(self.watch(*watch)?.finish(*total)?),
            Question::Forget { watch } => {
                self.watches.retain(|(number, _)| number != watch);
                Answer::Done
            }
            Question::ExportState => Answer::State(patch.export_state()?),
            Question::PanelScales { .. } | Question::ImportState(_) => Answer::Done,
        })
    }

    /// Keeps what watches a refit, under a number that [`Player::name`] then gives it.
    fn keep(&mut self, watch: Box<dyn RefitWatch>) -> u64 {
        if self.watches.len() >= WATCHES {
            self.watches.pop_front();
        }
        self.watches.push_back((u64::MAX, watch));
        u64::MAX
    }

    /// The refit that began last has this number in the recording.
    pub(super) fn name(&mut self, recorded: u64) {
        if let Some((number, _)) = self.watches.back_mut().filter(|(number, _)| *number == u64::MAX) {
            *number = recorded;
        }
    }

    fn watch(&mut self, wanted: u64) -> Result<&mut Box<dyn RefitWatch>, HookError> {
        let at = self.watches.iter().position(|(number, _)| *number == wanted);
        match at.and_then(|at| self.watches.get_mut(at)) {
            Some((_, watch)) => Ok(watch),
            None => Err(HookError {
                patch: self.patch.info().name.clone(),
                call: "`tensors`".to_owned(),
                cause: HookCause::Trap,
                why: "the refit that this call belongs to did not begin in the replay".to_owned(),
                next: "look at the call of `begin` before it".to_owned(),
            }),
        }
    }

    fn without(&self, hook: Hook) -> HookError {
        HookError {
            patch: self.patch.info().name.clone(),
            call: format!("`{hook}`"),
            cause: HookCause::Unsupported,
            why: format!("it does not claim {hook}"),
            next: "replay a component that claims the same hooks".to_owned(),
        }
    }
}

pub(super) fn ranges(ranges: &[Range<u32>]) -> Answer {
    Answer::Ranges(ranges.iter().map(|range| (range.start, range.end)).collect())
}
