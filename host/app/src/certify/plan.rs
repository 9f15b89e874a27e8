//! The plan of a run, as it lies in plan.json: which checkpoints there are, what is asked, and which updates are sent.

use std::collections::BTreeMap;

use patchhost_runtime::hooks::Role;
use serde::Serialize;

use super::cases::Case;
use super::dice::Dice;
use super::weights::Tensor;
use crate::base::Digest;

/// Version of plan.json.
pub const VERSION: u32 = 1;
/// How many prompts are asked after each update.
const PROMPTS: usize = 6;

/// Everything that a kit needs to try an engine.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Version of this format.
    pub version: u32,
    /// The program that made it: `patchhost 0.1.0`.
    pub kit: String,
    /// The same seed gives the same plan.
    pub seed: u64,
    /// The family, as `--family` names it.
    pub family: String,
    /// `architectures[0]` of config.json.
    pub architecture: String,
    /// The head is the embedding.
    pub tied: bool,
    /// The experts have a width that engines pad.
    pub padded: bool,
    /// Token ids to complete, greedily.
    pub prompts: Vec<Vec<u32>>,
    /// So many tokens for each prompt, whatever they are.
    pub max_tokens: usize,
    /// No token ends an answer.
    pub ignore_eos: bool,
    /// The checkpoints that updates are made of; the first is what the engine starts with.
    pub checkpoints: Vec<Held>,
    /// The updates, in the order in which they are sent.
    pub cases: Vec<Case>,
}

/// A checkpoint of a plan.
#[derive(Debug, Clone, Serialize)]
pub struct Held {
    /// `base`, `c1`, `c2`, …
    pub name: String,
    /// Its folder, below the one of plan.json.
    pub path: String,
    /// How it differs from `base`.
    pub change: String,
    /// SHA-256 of its model.safetensors, as hexadecimal digits.
    pub sha256: String,
    /// Its tensors, in the order in which they are sent.
    pub tensors: serde_json::Map<String, serde_json::Value>,
}

/// What a plan says of a tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TensorEntry {
    /// What it is for.
    pub class: Role,
    /// Element type, as safetensors names it.
    pub dtype: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// SHA-256 of its bytes, as hexadecimal digits.
    pub sha256: String,
}

impl TensorEntry {
    /// What is said of this tensor.
    pub fn of(tensor: &Tensor) -> Self {
        let (class, dtype) = (tensor.class, format!("{:?}", tensor.dtype));
        Self { class, dtype, shape: tensor.shape.clone(), sha256: tensor.digest().hex() }
    }
}

/// The digest of each tensor, by name.
pub fn digests(tensors: &[Tensor]) -> BTreeMap<String, Digest> {
    tensors.iter().map(|t| (t.name.clone(), t.digest())).collect()
}

/// Prompts of 8 to 24 token ids below `vocabulary`.
pub fn prompts(seed: u64, vocabulary: usize) -> Vec<Vec<u32>> {
    let mut dice = Dice::new(seed, "prompts");
    let mut prompt = || {
        let length = 8 + dice.below(17);
        // A vocabulary of more than 2^32 tokens cannot be loaded.
        (0..length).map(|_| u32::try_from(dice.below(vocabulary)).unwrap_or(0)).collect()
    };
    (0..PROMPTS).map(|_| prompt()).collect()
}
