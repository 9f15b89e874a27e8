//! What a refit says: of each tensor, and of the whole.

use std::collections::BTreeMap;

use crate::hooks::{Dtype, LayoutPass, Role};

/// What became of one checkpoint tensor.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TensorOutcome {
    /// Checkpoint name.
    pub name: String,
    /// Stored element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// Role in the registry.
    pub role: Role,
    /// Runtime tensor, where it is loaded.
    pub target: Option<String>,
    /// Kept, quantized or ignored.
    pub outcome: Outcome,
}

/// Kept, quantized or ignored, and why.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Outcome {
    /// Not loaded.
    Ignored {
        /// Why.
        reason: String,
    },
    /// FP8 in the checkpoint, its bytes and scales used as they are.
    AsStored {
        /// Why it is not quantized anew.
        reason: String,
        /// Name of its scale tensor.
        scale_name: String,
        /// How that is stored.
        scale_dtype: String,
        /// Dimensions of the scale tensor.
        scale_shape: Vec<usize>,
        /// Block rows and columns.
        block: [usize; 2],
    },
    /// Loaded as it is.
    Kept {
        /// Why it is not quantized.
        reason: String,
    },
    /// Quantized.
    Quantized {
        /// By which rule.
        rule: String,
        /// With which arithmetic.
        profile: String,
        /// Name of its scale tensor.
        scale_name: String,
        /// Dimensions of the scale tensor.
        scale_shape: Vec<usize>,
        /// Block rows and columns.
        block: [usize; 2],
    },
}

/// What a refit did.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct RefitReport {
    /// Number of this publish, from 1.
    pub version: u64,
    /// What the trainer calls these weights.
    pub label: String,
    /// Tensors that became FP8.
    pub quantized: usize,
    /// Tensors loaded as they were.
    pub kept: usize,
    /// FP8 tensors of the checkpoint whose bytes are used as they are.
    pub as_stored: usize,
    /// Tensors that were deliberately not loaded.
    pub ignored: usize,
    /// Tensors of experts that another rank holds.
    pub not_local: usize,
    /// How many runtime tensors went through each layout pass.
    pub layout: BTreeMap<LayoutPass, usize>,
    /// Patches that watched the refit and accepted it.
    pub observers: Vec<String>,
    /// Bytes of the loaded tensors in the checkpoint.
    pub bytes_before: u64,
    /// Bytes of the published weights.
    pub bytes_after: u64,
    /// Relative root mean square error of the quantized weights, estimated from one row of each 32; `None` where nothing
    /// was quantized.
    pub relative_rmse: Option<f64>,
    /// Values that were clipped to ±448 times the scale.
    pub saturated: u64,
    /// Values other than zero that became zero.
    pub flushed: u64,
    /// Elements of the quantized tensors.
    pub quantized_elements: u64,
    /// What whoever sent the tensors should know: what was rounded, narrowed, or ignored though it says something else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Wall time.
    pub seconds: f64,
}
