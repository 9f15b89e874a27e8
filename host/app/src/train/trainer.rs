//! The loop: refit, sample, reward, gradient, update.

use std::sync::Arc;
use std::time::Instant;

use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::Engine;
use patchhost_runtime::families::Arch;
use patchhost_runtime::refit::{Progress, RefitReport};
use patchhost_runtime::tokenizer::Tokenizer;
use patchhost_runtime::weights::WeightSet;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::error::{Result, refused, usage};
use super::loss::{Gradients, How, advantages, gradients};
use super::masters::Masters;
use super::metrics::{PatchId, Record, Spread, Swap, Timing};
use super::model::Model;
use super::optimizer::{AdamW, clip_grad_norm};
use super::rollout::{Ask, Sample, sample};
use super::settings::{MasterDtype, Settings};
use crate::compare::rollout_corr::{self, Level, Metrics};

/// The engine that samples, behind its patches.
pub trait Rollout {
    fn engine(&self) -> &Engine;
    /// Publishes these weights under `label`, through the patches that are live now.
    fn refit(&mut self, weights: &Checkpoint, label: &str, progress: Progress<'_>) -> Result<Refitted>;
}

/// What a refit published.
pub struct Refitted {
    /// The weights. Every forward pass of the step holds them, and with them the patches that made them.
    pub weights: Arc<WeightSet>,
    /// What the refit did.
    pub report: RefitReport,
    /// Digest of the patch set.
    pub patch_set: String,
    pub patches: Vec<PatchId>,
    /// Why a candidate did not land that should have, or why another set than the active one made the weights.
    pub note: Option<String>,
}

/// A training run.
pub struct Trainer {
    pub(super) settings: Settings,
    prompts: Vec<Vec<u32>>,
    pub(super) masters: Masters,
    model: Model,
    pub(super) optimizer: AdamW,
    /// Steps done.
    pub(super) step: u64,
    /// Digest of the patch set of the last step.
    pub(super) patch_set: Option<String>,
}

impl Trainer {
    /// A run that has not begun.
    pub fn new(
        settings: Settings,
        masters: Masters,
        arch: &Arch,
        engine: &Engine,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        settings.check()?;
        let model = Model::new(arch, engine.registry(), &masters)?;
        if settings.master == MasterDtype::Bf16 {
            masters.round_to_bf16()?;
        }
        let most = engine.model().max_positions().saturating_sub(settings.max_tokens);
        let mut prompts = Vec::with_capacity(settings.prompts.len());
        for text in &settings.prompts {
            let ids = tokenizer.encode(text)?;
            if ids.is_empty() || ids.len() > most {
                let shown = crate::base::text::clean(text, 60);
                return Err(usage(
                    format!("prompt `{shown}`"),
                    format!(
                        "it has {} tokens, --max-tokens is {}, and the model has {} positions",
                        ids.len(),
                        settings.max_tokens,
                        engine.model().max_positions()
                    ),
                    "shorten the prompt or --max-tokens",
                ));
            }
            prompts.push(ids);
        }
        let optimizer = AdamW::new(settings.optimizer, &masters);
        Ok(Self { settings, prompts, masters, model, optimizer, step: 0, patch_set: None })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its master weights.
    pub fn masters(&self) -> &Masters {
        &self.masters
    }

    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Digest of the patch set of the last step.
    pub fn patch_set(&self) -> Option<&str> {
        self.patch_set.as_deref()
    }

    /// One step. `progress` follows the refit, `phase` is told what is being done.
    pub fn step(
        &mut self,
        rollout: &mut dyn Rollout,
        tokenizer: &Tokenizer,
        progress: Progress<'_>,
        phase: &dyn Fn(&str),
    ) -> Result<(Record, Vec<Sample>)> {
        let step = self.step + 1;
        let started = Instant::now();
        let mut clock = Clock(started);
        let mut timing = Timing::default();

        phase("refit");
        let label = step.to_string();
        let refitted = rollout.refit(&self.masters.checkpoint()?, &label, progress)?;
        let weights = &refitted.weights;
        timing.refit = clock.lap();

        phase("rollout");
        let asks = self.asks(step);
        let samples = sample(rollout.engine().model(), weights, tokenizer, &asks, self.settings.max_tokens)?;
        timing.rollout = clock.lap();
        let rewards: Vec<f64> = samples.iter().map(|s| self.settings.task.reward(&s.text)).collect();
        let advantages: Vec<f64> = rewards.chunks(self.settings.samples).flat_map(advantages).collect();
        timing.reward = clock.lap();

        phase("gradients");
        let how = How { importance: self.settings.importance(), micro_batch: self.settings.micro_batch };
        let mut made = gradients(&self.model, &self.masters, &samples, &advantages, weights.masked(), &how)?;
        timing.gradients = clock.lap();

        phase("update");
        let grad_norm = clip_grad_norm(&mut made.of, self.settings.max_grad_norm);
        finite(step, &made, grad_norm)?;
        self.optimizer.update(&self.masters, &made.of)?;
        if self.settings.master == MasterDtype::Bf16 {
            self.masters.round_to_bf16()?;
        }
        timing.update = clock.lap();
        let weights_sha256 = weights.digest(rollout.engine().registry());
        let master_sha256 = self.masters.digest()?;
        timing.digests = clock.lap();

        self.step = step;
        let before = self.patch_set.replace(refitted.patch_set.clone());
        let swap = before.filter(|b| *b != refitted.patch_set);
        let lengths: Vec<f64> = samples.iter().map(|s| s.response.len() as f64).collect();
        timing.step = started.elapsed().as_secs_f64();
        let record = Record {
            step,
            reward: Spread::of(&rewards),
            loss: made.loss,
            grad_norm,
            response_length: Spread::of(&lengths),
            mismatch: self.mismatch(&made),
            swap: swap.map(|from| Swap { from, to: refitted.patch_set.clone() }),
            patch_set: refitted.patch_set,
            patches: refitted.patches,
            note: refitted.note,
            refit_version: refitted.report.label,
            weights_sha256,
            master_sha256,
            timing,
        };
        Ok((record, samples))
    }

    /// The completions of a step: some prompts, each several times, with seeds of their own.
    fn asks(&self, step: u64) -> Vec<Ask<'_>> {
        let mut rng = StdRng::seed_from_u64(mix(&[self.settings.seed, step]));
        let mut order: Vec<usize> = (0..self.prompts.len()).collect();
        let count = self.settings.prompts_per_step;
        for i in 0..count {
            let with = rng.random_range(i as u64..order.len() as u64) as usize;
            order.swap(i, with);
        }
        let samples = 0..self.settings.samples as u64;
        let of = |prompt: usize| {
            let seed = move |sample| mix(&[self.settings.seed, step, prompt as u64, sample]);
            samples.clone().map(move |s| Ask { prompt: &self.prompts[prompt], seed: seed(s) })
        };
        order[..count].iter().flat_map(|prompt| of(*prompt)).collect()
    }

    /// verl's metrics, with verl's prefix.
    fn mismatch(&self, made: &Gradients) -> Metrics {
        let mut settings = rollout_corr::Settings::default();
        // The metrics of weights are given where none are applied too: they say what applying them would do.
        settings.rollout_is_threshold = self.settings.threshold;
        settings.rollout_is = self.settings.importance().map_or(Level::Token, |(level, _)| level);
        let found = rollout_corr::metrics(&made.tokens, &settings).unwrap_or_default();
        let named = |name: String| if name.contains('/') { name } else { format!("rollout_corr/{name}") };
        Metrics(found.0.into_iter().map(|(name, value)| (named(name), value)).collect())
    }
}

/// Weights that are no numbers must not reach the engine, and a run must not go on without being able to learn.
fn finite(step: u64, made: &Gradients, grad_norm: f64) -> Result<()> {
    if made.loss.is_finite() && grad_norm.is_finite() {
        return Ok(());
    }
    Err(refused(
        format!("the update of step {step}"),
        format!("the loss is {} and the gradient norm {grad_norm}", made.loss),
        "lower --lr, and resume from the last checkpoint",
    ))
}

/// Seconds since the last lap.
struct Clock(Instant);

impl Clock {
    fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let seconds = now.duration_since(self.0).as_secs_f64();
        self.0 = now;
        seconds
    }
}

/// One seed of several numbers (splitmix64 over each).
fn mix(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |state: u64, n| {
        let mut z = (state ^ n).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}
