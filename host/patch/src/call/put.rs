//! Questions put to a patch's hooks: by the child process that runs it, by a witness on the way, by a replay.

use super::ask::Ask;
use super::question::{Answer, Outcome, Question};
use crate::abi::Hooks;
use crate::base::{Function, Hook};
use patchhost_runtime::hooks::{HookCause, HookError, RefitWatch};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Refits that may be under way at once: each keeps an instance. The one that began first makes room for the next. A host
/// has one, and one beside it; more are left over where who asks died.
const WATCHES: usize = 16;

/// Why no host can have asked a question: a text for a message.
pub(crate) type Nonsense = String;

/// A patch that answers questions.
pub(crate) struct Put {
    hooks: Hooks,
    watches: Mutex<Watches>,
}

#[derive(Default)]
struct Watches {
    /// Refits that began.
    begun: u64,
    /// Numbers, and what watches; none: it is being asked.
    open: VecDeque<(u64, Option<Box<dyn RefitWatch>>)>,
}

impl Ask for Put {
    fn name(&self) -> &str {
        &self.hooks.name
    }

    fn ask(&self, question: Question) -> Outcome {
        self.put(&question).unwrap_or_else(|why| {
            let call = question.function().map(|f| format!("`{f}`")).unwrap_or_default();
            let next = "report this: a host does not ask it";
            Err(self.error(call, HookCause::BadOutput, why, next))
        })
    }
}

impl Put {
    /// Over the hooks of a patch.
    pub(crate) fn new(hooks: Hooks) -> Self {
        Self { hooks, watches: Mutex::default() }
    }

    /// The patch's answer.
    pub(crate) fn put(&self, question: &Question) -> Result<Outcome, Nonsense> {
        self.put_as(question, question.watch())
    }

    /// The same, where the refit that it belongs to has this number here and another one in the question.
    pub(crate) fn put_as(&self, question: &Question, watch: Option<u64>) -> Result<Outcome, Nonsense> {
        match question {
            Question::PanelScales { blocks, rows, amax } => {
                let panel = rows.lend().ok_or("a panel has another number of bytes than its shape says")?;
                let quant = claimed(self, &self.hooks.block_quant, Hook::BlockQuantRows);
                Ok(quant.and_then(|q| q.panel_scales(&blocks.lend(), &panel, amax)).map(Answer::Numbers))
            }
            Question::ImportState(snapshot) => {
                // What a file or a process says is not yet what the interface allows.
                let checked = snapshot.clone().checked()?;
                self.lock().open.clear();
                Ok(self.hooks.memory.import_state(checked).map(|()| Answer::Done))
            }
            other => Ok(self.answer(other, watch.unwrap_or_default())),
        }
    }

    fn answer(&self, question: &Question, watch: u64) -> Outcome {
        let hooks = &self.hooks;
        let quant = || claimed(self, &hooks.block_quant, Hook::BlockQuant);
        Ok(match question {
            Question::Resolve { model, registry, checkpoint } => {
                let loader = claimed(self, &hooks.loader_map, Hook::LoaderMap)?;
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
                Answer::Passes(claimed(self, &hooks.layout, Hook::Layout)?.passes(model, reader, tensors)?)
            }
            Question::Admit { model, peft_config, registry, adapter } => {
                let lora = claimed(self, &hooks.lora, Hook::Lora)?;
                Answer::Plan(lora.admit(model, peft_config, registry, adapter)?)
            }
            Question::Masked { model, rows, vocabulary } => {
                let mask = claimed(self, &hooks.logits_mask, Hook::LogitsMask)?;
                ranges(&mask.masked(model, *rows, *vocabulary)?)
            }
            Question::Begin { version, expected } => {
                let observer = claimed(self, &hooks.refit_observer, Hook::RefitObserver)?;
                let (verdict, watch) = observer.begin(version, expected.as_deref())?;
                Answer::Begun(verdict, self.keep(watch))
            }
            Question::Tensors { batch, .. } => {
                Answer::Verdict(self.with(watch, Function::Tensors, |watch| watch.tensors(batch))?)
            }
            Question::Finish { total, .. } => {
                Answer::Verdict(self.with(watch, Function::Finish, |watch| watch.finish(*total))?)
            }
            Question::Forget { .. } => {
                // Dropped after the lock is free: that may call the patch.
                let mut watches = self.lock();
                let at = watches.open.iter().position(|(number, _)| *number == watch);
                let gone = at.and_then(|at| watches.open.remove(at));
                drop(watches);
                drop(gone);
                Answer::Done
            }
            Question::ExportState => Answer::State(hooks.memory.export_state()?),
            Question::PanelScales { .. } | Question::ImportState(_) => Answer::Done,
        })
    }

    /// Keeps what watches a refit, and gives its number.
    fn keep(&self, watch: Box<dyn RefitWatch>) -> u64 {
        let mut watches = self.lock();
        let oldest = (watches.open.len() >= WATCHES).then(|| watches.open.pop_front());
        let number = watches.begun;
        watches.begun += 1;
        watches.open.push_back((number, Some(watch)));
        drop(watches);
        drop(oldest);
        number
    }

    /// Asks what watches a refit. Refits do not wait for each other.
    fn with<R>(
        &self,
        number: u64,
        function: Function,
        ask: impl FnOnce(&mut dyn RefitWatch) -> Result<R, HookError>,
    ) -> Result<R, HookError> {
        let taken = self.lock().open.iter_mut().find(|(open, _)| *open == number).and_then(|(_, watch)| watch.take());
        let Some(mut watch) = taken else {
            let why = "the refit that this call belongs to did not begin here".to_owned();
            return Err(self.error(
                format!("`{function}`"),
                HookCause::Trap,
                why,
                "look at the call of `begin` before it",
            ));
        };
        let answer = ask(&mut *watch);
        if let Some((_, place)) = self.lock().open.iter_mut().find(|(open, _)| *open == number) {
            *place = Some(watch);
        }
        answer
    }

    fn error(&self, call: String, cause: HookCause, why: String, next: &str) -> HookError {
        HookError { patch: self.hooks.name.clone(), call, cause, why, next: next.to_owned() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hook, if the patch claims it.
fn claimed<'a, T: ?Sized>(put: &Put, hook: &'a Option<std::sync::Arc<T>>, name: Hook) -> Result<&'a T, HookError> {
    hook.as_deref().ok_or_else(|| {
        let why = format!("it does not claim {name}");
        put.error(format!("`{name}`"), HookCause::Unsupported, why, "ask a component that claims the same hooks")
    })
}

fn ranges(ranges: &[Range<u32>]) -> Answer {
    Answer::Ranges(ranges.iter().map(|range| (range.start, range.end)).collect())
}
