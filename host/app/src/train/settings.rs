//! What a run is made of. A checkpoint holds it, and a run resumes only with the same.

use serde::{Deserialize, Serialize};

use super::error::{Result, usage};
use super::optimizer::AdamWSettings;
use super::task::Task;
use crate::compare::rollout_corr::{Level, Threshold};

/// How master weights are kept between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum MasterDtype {
    /// f32; the engine gets them rounded
    F32,
    /// Rounded to bf16 after each step: what the engine gets is what is trained
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum RolloutIs {
    /// A weight for each token
    Token,
    /// A weight for each sequence: the product over its tokens
    Sequence,
    /// Every token counts alike
    None,
}

/// A model by its content: folders may move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelId {
    /// Of config.json.
    pub config_sha256: String,
    /// Of the weights ([`super::Masters::digest`]).
    pub weights_sha256: String,
}

/// Everything that decides what a run computes, but for its patches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// What training starts from.
    pub model: ModelId,
    /// What is rewarded.
    pub task: Task,
    /// Texts to continue.
    pub prompts: Vec<String>,
    pub prompts_per_step: usize,
    /// Completions of a prompt.
    pub samples: usize,
    /// Most tokens of a completion.
    pub max_tokens: usize,
    /// Seed of everything that is drawn.
    pub seed: u64,
    pub optimizer: AdamWSettings,
    /// Largest norm of the gradients.
    pub max_grad_norm: f64,
    /// Importance weights.
    pub rollout_is: RolloutIs,
    /// Where they are cut.
    pub threshold: Threshold,
    /// How master weights are kept.
    pub master: MasterDtype,
    /// Sequences of one forward and backward pass.
    pub micro_batch: usize,
    /// Activations before FP8 matrices in the rollout engine.
    pub fp8_activation: String,
}

impl Settings {
    /// The importance weights of the loss.
    pub fn importance(&self) -> Option<(Level, Threshold)> {
        match self.rollout_is {
            RolloutIs::Token => Some((Level::Token, self.threshold)),
            RolloutIs::Sequence => Some((Level::Sequence, self.threshold)),
            RolloutIs::None => None,
        }
    }

    /// As a checkpoint holds them: through text, because reading a float back may change its last bit.
    pub(super) fn value(&self) -> serde_json::Value {
        let text = serde_json::to_string(self).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Refuses what cannot be trained with, by name.
    pub(super) fn check(&self) -> Result<()> {
        let o = &self.optimizer;
        let numbers: [(&str, f64, bool, &str); 4] = [
            ("--lr", o.lr, o.lr > 0.0 && o.lr <= 1.0, "above 0 and at most 1"),
            ("--weight-decay", o.weight_decay, (0.0..=1.0).contains(&o.weight_decay), "from 0 to 1"),
            ("--max-grad-norm", self.max_grad_norm, self.max_grad_norm > 0.0, "above 0"),
            ("--samples", self.samples as f64, self.samples >= 2, "at least 2: an advantage compares completions"),
        ];
        for (name, value, good, range) in numbers {
            if !good {
                return Err(usage(format!("{name} {value}"), format!("it must be {range}"), "give another value"));
            }
        }
        if self.prompts_per_step > self.prompts.len() {
            return Err(usage(
                format!("--prompts-per-step {}", self.prompts_per_step),
                format!("there are {} prompts, and a step takes each at most once", self.prompts.len()),
                "give fewer, or a longer --prompts file",
            ));
        }
        Ok(())
    }
}
