//! Which layers cause the mismatch: the model with only one class of layers quantized (or only one layer), against the
//! model with none. Activations before quantized matrices are treated as they will be served, so a class's effect holds
//! that of its activations.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::Engine;
use patchhost_runtime::hooks::{Decision, LoaderMap};
use patchhost_runtime::refit::RefitHooks;
use patchhost_runtime::weights::WeightSet;
use serde::Serialize;

pub use super::logprobs::Distance;

use super::class::{Class, layer_of};
use super::error::Result;
use super::logprobs::{Sequences, Sums, logits, logits_exact};
use super::paired::Paired;
use super::subset::{Only, Subset};
use super::units::Unit;

/// Logits of the reference are kept up to this many bytes; beyond it they are computed again for each candidate.
const KEPT_LOGITS: usize = 512 << 20;

/// What quantizing one subset does.
#[derive(Debug, Clone, Serialize)]
pub struct Effect {
    /// The subset.
    pub only: Subset,
    /// Tensors of it that are quantized.
    pub tensors: usize,
    /// Distance from the unquantized model.
    #[serde(flatten)]
    pub distance: Distance,
}

/// One side's effects.
#[derive(Debug, Clone, Serialize)]
pub struct Candidate {
    /// Only one class quantized.
    pub classes: Vec<Effect>,
    /// Only one layer quantized, where that was asked for.
    pub layers: Vec<Effect>,
    /// Everything that the side quantizes.
    pub all: Distance,
    /// Sum of `kl_vocab` over the classes: what `all` would have if classes did not interact.
    pub sum_of_classes: f64,
    /// The same over layers.
    pub sum_of_layers: Option<f64>,
    /// Where activations are quantized: the distance of the very same weights from themselves when products are summed in f64
    /// instead of f32. A rounding that falls the other way is a whole step of e4m3 in the next layer, so distances below this one
    /// say nothing.
    pub noise_floor: Option<Distance>,
    /// The KL of each position of `all`.
    #[serde(skip)]
    pub(super) each: Vec<f64>,
}

/// The whole answer.
#[derive(Debug, Clone, Serialize)]
pub struct Ablation {
    /// Sequences of tokens that were run.
    pub sequences: usize,
    /// Side A.
    pub a: Candidate,
    /// Side B, where it quantizes.
    pub b: Option<Candidate>,
    /// B against A, both whole: A is the reference.
    pub between: Option<Distance>,
    /// The KL of B against that of A, both whole, position by position.
    pub paired: Option<Paired>,
}

impl Ablation {
    /// What was found for both sides, on so many sequences.
    pub fn new(sequences: usize, a: Candidate, b: Option<Candidate>, between: Option<Distance>) -> Self {
        let paired = b.as_ref().and_then(|b| Paired::of(&a.each, &b.each));
        Self { sequences, a, b, between, paired }
    }

    /// The greater of the two sides' noise floors, as a KL; 0 where there is none.
    pub(super) fn noise_floor(&self) -> f64 {
        let floors = [Some(&self.a), self.b.as_ref()].into_iter().flatten().filter_map(|c| c.noise_floor.as_ref());
        floors.map(|d| d.kl_vocab).fold(0.0, f64::max)
    }
}

/// A model, its reference weights and the tokens to run.
pub struct Runs<'a> {
    engine: &'a Engine,
    checkpoint: &'a Checkpoint,
    sequences: &'a Sequences,
    reference: WeightSet,
    kept: Option<Vec<Vec<f32>>>,
}

impl<'a> Runs<'a> {
    /// Stages the unquantized weights and runs them.
    pub fn new(
        engine: &'a Engine,
        checkpoint: &'a Checkpoint,
        loader: Option<Arc<dyn LoaderMap>>,
        sequences: &'a Sequences,
    ) -> Result<Self> {
        let plain = RefitHooks { loader, ..RefitHooks::default() };
        let (reference, _) = engine.stage(checkpoint, &plain, &|_, _, _| {})?;
        let bytes = sequences.iter().map(|s| s.len() * engine.model().vocab() * size_of::<f32>()).sum::<usize>();
        let kept = match bytes <= KEPT_LOGITS {
            true => Some(sequences.iter().map(|s| logits(engine.model(), &reference, s)).collect::<Result<_>>()?),
            false => None,
        };
        Ok(Self { engine, checkpoint, sequences, reference, kept })
    }

    /// The unquantized weights.
    pub fn reference(&self) -> &WeightSet {
        &self.reference
    }

    /// How many models a candidate costs.
    pub fn steps(units: &[Unit], decisions: &[Decision], per_layer: bool) -> usize {
        let layers = if per_layer { layers(units, decisions).len() } else { 0 };
        classes(units, decisions).len() + layers + 2
    }

    /// One side: every class alone, every layer alone if asked for, and all together, whose weights are given back.
    /// `step` is told what was done.
    pub fn candidate(
        &self,
        hooks: &RefitHooks,
        units: &[Unit],
        decisions: &[Decision],
        per_layer: bool,
        step: &dyn Fn(&str),
    ) -> Result<(Candidate, WeightSet)> {
        let (sums, weights) = self.staged(hooks)?;
        step("all");
        let noise_floor = match hooks.activation {
            ActivationMode::None => None,
            ActivationMode::Dynamic128 => Some(self.noise_floor(&weights)?),
        };
        step("noise floor");
        let only = |subset: Subset, tensors: usize| -> Result<Effect> {
            let quant = hooks.quant.clone().map(|inner| Arc::new(Only { inner, subset }) as _);
            let (sums, _) = self.staged(&RefitHooks { quant, ..hooks.clone() })?;
            step(&match subset {
                Subset::Class(class) => class.name().to_string(),
                Subset::Layer(layer) => format!("layer {layer}"),
            });
            Ok(Effect { only: subset, tensors, distance: sums.finish() })
        };
        let by_class = classes(units, decisions);
        let by_class: Vec<Effect> =
            by_class.into_iter().map(|(c, n)| only(Subset::Class(c), n)).collect::<Result<_>>()?;
        let by_layer = if per_layer { layers(units, decisions) } else { BTreeMap::new() };
        let by_layer: Vec<Effect> =
            by_layer.into_iter().map(|(l, n)| only(Subset::Layer(l), n)).collect::<Result<_>>()?;
        let sum = |effects: &[Effect]| effects.iter().map(|e| e.distance.kl_vocab).sum::<f64>();
        let candidate = Candidate {
            all: sums.finish(),
            each: sums.each,
            sum_of_classes: sum(&by_class),
            sum_of_layers: per_layer.then(|| sum(&by_layer)),
            classes: by_class,
            layers: by_layer,
            noise_floor,
        };
        Ok((candidate, weights))
    }

    /// The distance of `candidate` from `reference`, both staged.
    pub fn between(&self, reference: &WeightSet, candidate: &WeightSet) -> Result<Distance> {
        let mut sums = Sums::default();
        for ids in self.sequences {
            let (r, c) = (logits(self.engine.model(), reference, ids)?, logits(self.engine.model(), candidate, ids)?);
            sums.take(ids, &r, &c, self.engine.model().vocab());
        }
        Ok(sums.finish())
    }

    /// The distance of weights from themselves, their products summed in f64.
    fn noise_floor(&self, weights: &WeightSet) -> Result<Distance> {
        let model = self.engine.model();
        let mut sums = Sums::default();
        for ids in self.sequences {
            sums.take(ids, &logits(model, weights, ids)?, &logits_exact(model, weights, ids)?, model.vocab());
        }
        Ok(sums.finish())
    }

    fn staged(&self, hooks: &RefitHooks) -> Result<(Sums, WeightSet)> {
        let (weights, _) = self.engine.stage(self.checkpoint, hooks, &|_, _, _| {})?;
        let model = self.engine.model();
        let mut sums = Sums::default();
        for (i, ids) in self.sequences.iter().enumerate() {
            let reference = match self.kept.as_ref().and_then(|kept| kept.get(i)) {
                Some(kept) => Cow::Borrowed(kept),
                None => Cow::Owned(logits(model, &self.reference, ids)?),
            };
            sums.take(ids, &reference, &logits(model, &weights, ids)?, model.vocab());
        }
        Ok((sums, weights))
    }
}

fn quantized<'a>(units: &'a [Unit], decisions: &'a [Decision]) -> impl Iterator<Item = &'a Unit> {
    units.iter().zip(decisions).filter(|(_, d)| matches!(d, Decision::Quantize(_))).map(|(unit, _)| unit)
}

fn classes(units: &[Unit], decisions: &[Decision]) -> BTreeMap<Class, usize> {
    let mut found = BTreeMap::new();
    quantized(units, decisions).for_each(|u| *found.entry(u.class).or_insert(0) += 1);
    found
}

fn layers(units: &[Unit], decisions: &[Decision]) -> BTreeMap<usize, usize> {
    let mut found = BTreeMap::new();
    quantized(units, decisions).filter_map(|u| layer_of(&u.info.name)).for_each(|l| *found.entry(l).or_insert(0) += 1);
    found
}
