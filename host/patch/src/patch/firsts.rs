//! The first answers of a generation, kept: where a tensor goes, what becomes FP8, which layout it has, which ids are masked.
//!
//! These answers are functions of the question alone, and the digest of a patch set stands for them. A patch that answers
//! honestly a few times and then otherwise would publish another model under the same digest; here its second word is held
//! against its first, tensor by tensor, whoever asks (a probe, a load, a refit, a swap `now`, a rollback) and in whichever
//! instance or child process it is asked. Scales are not kept: the cast proves each of them.

use super::Patch;
use crate::base::{Digest, Function, text};
use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, Consumer, Decision, Dtype, HookCause, HookError, Layout, LayoutPass, LoaderMap,
    LogitsMask, ModelInfo, Placement, Role, RowPanel, TensorInfo,
};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Generations whose answers are kept although no patch of them is there any more.
const MOST_GENERATIONS: usize = 64;
/// Tensors of one question that are kept; a checkpoint has fewer.
const MOST_TENSORS: usize = 1 << 18;

/// The first answers of all generations that one site started. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct FirstAnswers(Arc<Mutex<HashMap<Digest, Arc<Firsts>>>>);

/// Those of one generation.
#[derive(Default)]
pub(crate) struct Firsts {
    placements: Kept<Placement>,
    decisions: Kept<Decision>,
    activation: Kept<Option<ActivationRule>>,
    passes: Kept<Vec<LayoutPass>>,
    masked: Kept<Vec<Range<u32>>>,
}

/// Answers by question and tensor.
struct Kept<A>(Mutex<HashMap<Digest, HashMap<TensorInfo, Arc<A>>>>);

impl<A> Default for Kept<A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl FirstAnswers {
    /// Those of a generation, which is there for as long as a patch holds them, and mostly longer.
    pub(super) fn of(&self, generation: Digest) -> Arc<Firsts> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST_GENERATIONS && !all.contains_key(&generation) {
            all.retain(|_, firsts| Arc::strong_count(firsts) > 1);
        }
        all.entry(generation).or_default().clone()
    }
}

impl<A: PartialEq + Clone + serde::Serialize> Kept<A> {
    /// Holds answers against the first ones and keeps those that are new. The error says what changed; then nothing is kept.
    fn hold(&self, question: Digest, about: &[TensorInfo], answers: &[A]) -> Result<(), String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.entry(question).or_default();
        let before = |(tensor, answer): (&TensorInfo, &A)| {
            kept.get(tensor).filter(|first| ***first != *answer).map(|first| (tensor.name.clone(), first.clone()))
        };
        let mut changed = about.iter().zip(answers).filter_map(|both| Some((before(both)?, both.1)));
        if let Some(((name, first), now)) = changed.next() {
            let more = match changed.count() {
                0 => String::new(),
                n => format!("; and {n} more changed"),
            };
            let subject = if name.is_empty() { String::new() } else { format!(" about `{}`", text::clean(&name, 200)) };
            let (first, now) = (text::clean(&text::answer(&*first), 300), text::clean(&text::answer(now), 300));
            return Err(format!("its first answer{subject} was {first}, and now it is {now}{more}"));
        }
        let mut last: Option<Arc<A>> = None;
        for (tensor, answer) in about.iter().zip(answers) {
            if kept.contains_key(tensor) || kept.len() >= MOST_TENSORS {
                continue;
            }
            // Neighbors are often told the same.
            let shared = last.filter(|last| **last == *answer).unwrap_or_else(|| Arc::new(answer.clone()));
            kept.insert(tensor.clone(), shared.clone());
            last = Some(shared);
        }
        Ok(())
    }
}

/// What a question is about besides its tensors.
fn question<T: serde::Serialize>(model: &ModelInfo, rest: &T) -> Digest {
    Digest::of(serde_json::json!([model, rest]).to_string().as_bytes())
}

/// Stands for a question about the model as a whole.
fn the_model() -> [TensorInfo; 1] {
    [TensorInfo { name: String::new(), dtype: Dtype::Other, shape: Vec::new(), role: Role::Other }]
}

/// A hook whose answers are held against the first ones.
struct Steady<H: ?Sized> {
    hook: Arc<H>,
    firsts: Arc<Firsts>,
}

impl<H: ?Sized> Steady<H> {
    fn changed(&self, patch: &str, function: Function, why: String) -> HookError {
        HookError {
            patch: patch.to_owned(),
            call: format!("`{function}`"),
            cause: HookCause::BadOutput,
            why,
            next:
                "do not use it: such answers may depend on nothing but the question, or one digest would stand for two \
                   models; the old weights keep serving"
                    .to_owned(),
        }
    }
}

impl Patch {
    fn steady<H: ?Sized>(&self, hook: &Option<Arc<H>>) -> Option<Arc<Steady<H>>> {
        let hook = hook.clone()?;
        Some(Arc::new(Steady { hook, firsts: self.firsts().clone() }))
    }

    /// Where checkpoint tensors go, as it said first.
    pub(super) fn steady_loader_map(&self) -> Option<Arc<dyn LoaderMap>> {
        self.steady(&self.asked().loader_map).map(|hook| hook as _)
    }

    /// What becomes FP8, as it said first.
    pub(super) fn steady_block_quant(&self) -> Option<Arc<dyn BlockQuant>> {
        self.steady(&self.asked().block_quant).map(|hook| hook as _)
    }

    /// Which layout the published weights have, as it said first.
    pub(super) fn steady_layout(&self) -> Option<Arc<dyn Layout>> {
        self.steady(&self.asked().layout).map(|hook| hook as _)
    }

    /// Which token ids are never sampled, as it said first; a patch that exports `state` may have learned other ones.
    pub(super) fn steady_logits_mask(&self) -> Option<Arc<dyn LogitsMask>> {
        match self.has_state() {
            true => self.asked().logits_mask.clone(),
            false => self.steady(&self.asked().logits_mask).map(|hook| hook as _),
        }
    }
}

impl LoaderMap for Steady<dyn LoaderMap> {
    fn name(&self) -> &str {
        self.hook.name()
    }

    fn resolve(
        &self,
        model: &ModelInfo,
        registry: &[TensorInfo],
        checkpoint: &[TensorInfo],
    ) -> Result<Vec<Placement>, HookError> {
        let answer = self.hook.resolve(model, registry, checkpoint)?;
        // A trainer may send f32 for what was loaded as bf16: it goes to the same place.
        let about: Vec<_> = checkpoint.iter().map(|t| TensorInfo { dtype: Dtype::Other, ..t.clone() }).collect();
        let held = self.firsts.placements.hold(question(model, &registry), &about, &answer);
        held.map_err(|why| self.changed(self.name(), Function::Resolve, why))?;
        Ok(answer)
    }
}

impl BlockQuant for Steady<dyn BlockQuant> {
    fn name(&self) -> &str {
        self.hook.name()
    }

    fn decide(&self, model: &ModelInfo, reader: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        let answer = self.hook.decide(model, reader, tensors)?;
        let held = self.firsts.decisions.hold(question(model, reader), tensors, &answer);
        held.map_err(|why| self.changed(self.name(), Function::Decide, why))?;
        Ok(answer)
    }

    fn activation(&self, model: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        let answer = self.hook.activation(model)?;
        let held = self.firsts.activation.hold(question(model, &()), &the_model(), std::slice::from_ref(&answer));
        held.map_err(|why| self.changed(self.name(), Function::Activation, why))?;
        Ok(answer)
    }

    fn scales(&self, blocks: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.hook.scales(blocks, amax)
    }

    fn scales_with_moments(&self, blocks: &Blocks<'_>, amax: &[f32], squares: &[f32]) -> Result<Vec<f32>, HookError> {
        self.hook.scales_with_moments(blocks, amax, squares)
    }

    fn panel_scales(&self, blocks: &Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.hook.panel_scales(blocks, panel, amax)
    }

    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.hook.activation_scales(amax)
    }
}

impl Layout for Steady<dyn Layout> {
    fn name(&self) -> &str {
        self.hook.name()
    }

    fn passes(
        &self,
        model: &ModelInfo,
        reader: &Consumer,
        tensors: &[TensorInfo],
    ) -> Result<Vec<Vec<LayoutPass>>, HookError> {
        let answer = self.hook.passes(model, reader, tensors)?;
        let held = self.firsts.passes.hold(question(model, reader), tensors, &answer);
        held.map_err(|why| self.changed(self.name(), Function::Passes, why))?;
        Ok(answer)
    }
}

impl LogitsMask for Steady<dyn LogitsMask> {
    fn name(&self) -> &str {
        self.hook.name()
    }

    fn masked(&self, model: &ModelInfo, rows: u32, vocabulary: u32) -> Result<Vec<Range<u32>>, HookError> {
        let answer = self.hook.masked(model, rows, vocabulary)?;
        let about = question(model, &(rows, vocabulary));
        let held = self.firsts.masked.hold(about, &the_model(), std::slice::from_ref(&answer));
        held.map_err(|why| self.changed(self.name(), Function::Masked, why))?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tensor(name: &str, shape: &[u64]) -> TensorInfo {
        TensorInfo { name: name.into(), dtype: Dtype::Bf16, shape: shape.into(), role: Role::Other }
    }

    #[test]
    fn a_second_word_is_held_against_the_first() {
        let kept = Kept::default();
        let q = Digest::of(b"question");
        let (a, b) = (tensor("a", &[1]), tensor("b", &[1]));
        kept.hold(q, std::slice::from_ref(&a), &[1]).unwrap();
        // Another tensor comes with it, in another order; another shape is another question.
        kept.hold(q, &[b.clone(), a.clone()], &[2, 1]).unwrap();
        kept.hold(q, &[tensor("a", &[2])], &[9]).unwrap();
        kept.hold(Digest::of(b"other"), std::slice::from_ref(&a), &[9]).unwrap();
        let why = kept.hold(q, &[tensor("new", &[]), a.clone(), b.clone()], &[7, 3, 3]).unwrap_err();
        assert_eq!(why, "its first answer about `a` was 1, and now it is 3; and 1 more changed");
        // What was refused is not kept.
        kept.hold(q, &[tensor("new", &[])], &[8]).unwrap();
    }

    #[test]
    fn answers_are_kept_while_a_patch_holds_them() {
        let answers = FirstAnswers::default();
        let held = answers.of(Digest::of(b"0"));
        for i in 0..500u32 {
            answers.of(Digest::of(&i.to_le_bytes()));
        }
        assert!(Arc::ptr_eq(&held, &answers.of(Digest::of(b"0"))));
        assert!(answers.0.lock().unwrap().len() <= MOST_GENERATIONS + 1);
    }
}
