//! The runtime's hooks, recorded on their way. A tape belongs to one patch; what it wraps does not know of it.

use super::call::{Answer, Blocks, Question, Rows};
use super::recorder::Recorder;
use crate::abi::Snapshot;
use patchhost_runtime::hooks::{
    self, ActivationRule, Arrival, BlockQuant, Consumer, Decision, HookError, Layout, LayoutPass, LoaderMap,
    LogitsMask, Lora, LoraPlan, ModelInfo, Placement, RefitObserver, RefitWatch, RowPanel, TensorInfo, Verdict,
};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Records the calls of one patch.
pub(crate) struct Tape {
    recorder: Arc<Recorder>,
    patch: u32,
    /// Only for a patch with state. Its answers depend on the order of its calls, so the recording must have them in
    /// that order: this lock is held from before a call until the call is recorded. Such a patch has one instance
    /// anyway, so the lock makes nobody wait longer.
    order: Option<Mutex<()>>,
    watches: AtomicU64,
}

impl Tape {
    pub(super) fn new(recorder: Arc<Recorder>, patch: u32, state: bool) -> Arc<Self> {
        Arc::new(Self { recorder, patch, order: state.then(Mutex::default), watches: AtomicU64::new(0) })
    }

    /// Makes a call, and records it unless the recording is over.
    fn call<R>(
        &self,
        ask: impl FnOnce() -> Result<R, HookError>,
        question: impl FnOnce() -> Option<Question>,
        answer: impl FnOnce(&R) -> Answer,
    ) -> Result<R, HookError> {
        let _order = self.order.as_ref().map(|order| order.lock().unwrap_or_else(PoisonError::into_inner));
        let result = ask();
        match self.recorder.is_open().then(question).flatten() {
            Some(question) => {
                let outcome = result.as_ref().map(answer).map_err(HookError::clone);
                self.recorder.call(self.patch, question, outcome);
            }
            None => self.recorder.left_out(),
        }
        result
    }

    /// What the patch remembers.
    pub(crate) fn export_state(
        &self,
        ask: impl FnOnce() -> Result<Option<Snapshot>, HookError>,
    ) -> Result<Option<Snapshot>, HookError> {
        self.call(ask, || Some(Question::ExportState), |state| Answer::State(state.clone()))
    }

    /// What it is to remember.
    pub(crate) fn import_state(
        &self,
        snapshot: Snapshot,
        ask: impl FnOnce(Snapshot) -> Result<(), HookError>,
    ) -> Result<(), HookError> {
        let copy = snapshot.clone();
        self.call(|| ask(snapshot), || Some(Question::ImportState(copy)), |()| Answer::Done)
    }

    /// A hook of the patch, recorded. `T` is one of the runtime's traits.
    pub(crate) fn over<T: ?Sized>(self: &Arc<Self>, inner: Arc<T>) -> Recorded<T> {
        Recorded { tape: Arc::clone(self), inner }
    }
}

/// A hook that is recorded.
pub(crate) struct Recorded<T: ?Sized> {
    tape: Arc<Tape>,
    inner: Arc<T>,
}

impl LoaderMap for Recorded<dyn LoaderMap> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn resolve(
        &self,
        model: &ModelInfo,
        registry: &[TensorInfo],
        checkpoint: &[TensorInfo],
    ) -> Result<Vec<Placement>, HookError> {
        let question = || {
            let (registry, checkpoint) = (registry.to_vec(), checkpoint.to_vec());
            Some(Question::Resolve { model: model.clone(), registry, checkpoint })
        };
        let ask = || self.inner.resolve(model, registry, checkpoint);
        self.tape.call(ask, question, |places| Answer::Placements(places.clone()))
    }
}

impl BlockQuant for Recorded<dyn BlockQuant> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn decide(&self, model: &ModelInfo, reader: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        let question =
            || Some(Question::Decide { model: model.clone(), reader: reader.clone(), tensors: tensors.to_vec() });
        let ask = || self.inner.decide(model, reader, tensors);
        self.tape.call(ask, question, |decisions| Answer::Decisions(decisions.clone()))
    }

    fn activation(&self, model: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        let question = || Some(Question::Activation(model.clone()));
        self.tape.call(|| self.inner.activation(model), question, |rule| Answer::Activation(*rule))
    }

    fn scales(&self, blocks: &hooks::Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let question = || Some(Question::Scales { blocks: Blocks::of(blocks), amax: amax.to_vec() });
        self.tape.call(|| self.inner.scales(blocks, amax), question, numbers)
    }

    fn scales_with_moments(
        &self,
        blocks: &hooks::Blocks<'_>,
        amax: &[f32],
        sum_squares: &[f32],
    ) -> Result<Vec<f32>, HookError> {
        let question = || {
            let (amax, sum_squares) = (amax.to_vec(), sum_squares.to_vec());
            Some(Question::ScalesWithMoments { blocks: Blocks::of(blocks), amax, sum_squares })
        };
        self.tape.call(|| self.inner.scales_with_moments(blocks, amax, sum_squares), question, numbers)
    }

    fn panel_scales(&self, blocks: &hooks::Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let question = || {
            let (blocks, rows) = (Blocks::of(blocks), Rows::of(panel)?);
            Some(Question::PanelScales { blocks, rows, amax: amax.to_vec() })
        };
        self.tape.call(|| self.inner.panel_scales(blocks, panel, amax), question, numbers)
    }

    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        let question = || Some(Question::ActivationScales(amax.to_vec()));
        self.tape.call(|| self.inner.activation_scales(amax), question, numbers)
    }
}

#[allow(clippy::ptr_arg)] // it is given where the answer is a `Vec`
fn numbers(numbers: &Vec<f32>) -> Answer {
    Answer::Numbers(numbers.clone())
}

impl Layout for Recorded<dyn Layout> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn passes(
        &self,
        model: &ModelInfo,
        reader: &Consumer,
        tensors: &[TensorInfo],
    ) -> Result<Vec<Vec<LayoutPass>>, HookError> {
        let question =
            || Some(Question::Passes { model: model.clone(), reader: reader.clone(), tensors: tensors.to_vec() });
        let ask = || self.inner.passes(model, reader, tensors);
        self.tape.call(ask, question, |passes| Answer::Passes(passes.clone()))
    }
}

impl Lora for Recorded<dyn Lora> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn admit(
        &self,
        model: &ModelInfo,
        peft_config: &str,
        registry: &[TensorInfo],
        adapter: &[TensorInfo],
    ) -> Result<LoraPlan, HookError> {
        let question = || {
            let (model, peft_config) = (model.clone(), peft_config.to_owned());
            Some(Question::Admit { model, peft_config, registry: registry.to_vec(), adapter: adapter.to_vec() })
        };
        let ask = || self.inner.admit(model, peft_config, registry, adapter);
        self.tape.call(ask, question, |plan| Answer::Plan(plan.clone()))
    }
}

impl LogitsMask for Recorded<dyn LogitsMask> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn masked(&self, model: &ModelInfo, rows: u32, vocabulary: u32) -> Result<Vec<Range<u32>>, HookError> {
        let question = || Some(Question::Masked { model: model.clone(), rows, vocabulary });
        let ask = || self.inner.masked(model, rows, vocabulary);
        self.tape.call(ask, question, |ranges| super::player::ranges(ranges))
    }
}

impl RefitObserver for Recorded<dyn RefitObserver> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn begin(&self, version: &str, expected: Option<&[String]>) -> Result<(Verdict, Box<dyn RefitWatch>), HookError> {
        let watch = self.tape.watches.fetch_add(1, Ordering::Relaxed);
        let question =
            || Some(Question::Begin { version: version.to_owned(), expected: expected.map(<[String]>::to_vec) });
        let ask = || self.inner.begin(version, expected);
        let (verdict, inner) = self.tape.call(ask, question, |(verdict, _)| Answer::Begun(verdict.clone(), watch))?;
        let forget = Forget { tape: Arc::clone(&self.tape), watch };
        Ok((verdict, Box::new(Watched { forget, inner })))
    }
}

/// One refit that is recorded.
struct Watched {
    /// Dropped before the patch lets go of the refit: in the file, the end of a refit is before the begin of the next.
    forget: Forget,
    inner: Box<dyn RefitWatch>,
}

struct Forget {
    tape: Arc<Tape>,
    watch: u64,
}

impl Drop for Forget {
    fn drop(&mut self) {
        if self.tape.recorder.is_open() {
            self.tape.recorder.call(self.tape.patch, Question::Forget { watch: self.watch }, Ok(Answer::Done));
        }
    }
}

impl RefitWatch for Watched {
    fn tensors(&mut self, batch: &[Arrival]) -> Result<Verdict, HookError> {
        let Self { forget: Forget { tape, watch }, inner } = self;
        let question = || Some(Question::Tensors { watch: *watch, batch: batch.to_vec() });
        tape.call(|| inner.tensors(batch), question, |verdict| Answer::Verdict(verdict.clone()))
    }

    fn finish(&mut self, total: u32) -> Result<Verdict, HookError> {
        let Self { forget: Forget { tape, watch }, inner } = self;
        let question = || Some(Question::Finish { watch: *watch, total });
        tape.call(|| inner.finish(total), question, |verdict| Answer::Verdict(verdict.clone()))
    }
}
