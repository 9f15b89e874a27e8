//! What a fresh load of a checkpoint computes, by patchhost's own runtime: the judge where an engine cannot be started on
//! every checkpoint.

use std::sync::Arc;

use clap::Parser;
use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::error::RuntimeError;
use patchhost_runtime::model::{Rows, Sequence};
use patchhost_runtime::refit::RefitHooks;
use patchhost_runtime::weights::WeightSet;

use crate::base::Exit;
use crate::certify::{Fresh, KitError, Tensor};
use crate::cmd::args::PatchArgs;
use crate::cmd::failure::Result;
use crate::cmd::session::{Load, Patches};

/// Patches as a verb without arguments about them loads them.
#[derive(Debug, Parser)]
struct Defaults {
    #[command(flatten)]
    patches: PatchArgs,
}

/// patchhost's runtime with several sets of weights of one model.
pub struct Own {
    engine: Engine,
    hooks: RefitHooks,
    weights: Vec<Vec<Tensor>>,
    loaded: Vec<Option<Arc<WeightSet>>>,
    /// Keeps the patches that experts are loaded with.
    _patches: Arc<Patches>,
}

impl Own {
    /// A runtime for the model of this config.json.
    pub fn new(config: &str, weights: Vec<Vec<Tensor>>) -> Result<Self> {
        let engine = Engine::new(config, EngineOptions::default())?;
        let defaults = Defaults::parse_from(["patchhost"]);
        let patches = Patches::load(Load::new(&defaults.patches, &engine.info().architecture))?;
        let mut hooks = patches.hooks(ActivationMode::None);
        // The numbers of the checkpoint, not those of a quantization.
        hooks.quant = None;
        let loaded = weights.iter().map(|_| None).collect();
        Ok(Self { engine, hooks, weights, loaded, _patches: Arc::new(patches) })
    }

    /// The same runtime with only these checkpoints, in this order.
    pub fn keep(&mut self, numbers: &[usize]) {
        self.weights = numbers.iter().filter_map(|n| self.weights.get(*n).cloned()).collect();
        self.loaded = numbers.iter().map(|n| self.loaded.get(*n).cloned().flatten()).collect();
    }

    fn weights(&mut self, number: usize) -> Result<Arc<WeightSet>, RuntimeError> {
        if let Some(loaded) = self.loaded.get(number).cloned().flatten() {
            return Ok(loaded);
        }
        let tensors = self.weights.get(number).map(Vec::as_slice).unwrap_or_default();
        let tensors = tensors.iter().filter_map(|t| {
            let bytes = TensorBytes::new(Arc::clone(&t.data) as _, 0..t.data.len())?;
            Some(CheckpointTensor::new(t.name.clone(), t.dtype, t.shape.clone(), bytes))
        });
        self.engine.refit(&Checkpoint::from_tensors(tensors)?, &self.hooks, &|_, _, _| {})?;
        let live = self.engine.live()?;
        if let Some(place) = self.loaded.get_mut(number) {
            *place = Some(Arc::clone(&live));
        }
        Ok(live)
    }

    fn compute(&mut self, number: usize, prompt: &[u32], tokens: &[u32]) -> Result<Vec<(f64, f64)>, RuntimeError> {
        let weights = self.weights(number)?;
        let model = self.engine.model();
        let mut cache = model.new_cache();
        // The last token of an answer is chosen, and nothing is computed behind it.
        let all: Vec<u32> = prompt.iter().chain(tokens.iter().take(tokens.len().saturating_sub(1))).copied().collect();
        let logits = model.forward(&weights, &mut [Sequence { tokens: &all, cache: &mut cache }], Rows::All)?;
        let rows = logits.rows().skip(prompt.len().saturating_sub(1));
        Ok(rows.zip(tokens).map(|(row, token)| logprob(row, *token)).collect())
    }
}

/// The log probability of a token, and of the most likely one.
fn logprob(row: &[f32], token: u32) -> (f64, f64) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|v| f64::from(v - most).exp()).sum();
    let of = |value: f32| f64::from(value - most) - sum.ln();
    (row.get(token as usize).map_or(f64::NEG_INFINITY, |value| of(*value)), of(most))
}

impl Fresh for Own {
    fn logprobs(&mut self, checkpoint: usize, prompt: &[u32], tokens: &[u32]) -> Result<Vec<(f64, f64)>, KitError> {
        self.compute(checkpoint, prompt, tokens).map_err(|e| {
            let parts = e.parts();
            KitError::usage(parts.what, parts.why, parts.next)
        })
    }
}
