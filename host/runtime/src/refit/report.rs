//! What a refit says: of each tensor, and of the whole.

use std::collections::BTreeMap;

use super::partial::Stayed;
use crate::hooks::{Dtype, LayoutPass, Role, Slot};

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
    /// The part of it that a loader map named; none where the host's own map placed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placed: Option<Placed>,
    /// Where the host's own map would put it, where that is another place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_map: Option<String>,
    /// Kept, quantized or ignored.
    pub outcome: Outcome,
}

/// The part of a runtime tensor that a loader map named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Placed {
    /// Which part.
    pub slot: Slot,
    /// Of which expert; none: of all, or of a tensor without experts.
    pub expert: Option<usize>,
    /// The last two dimensions are swapped in the checkpoint.
    pub transposed: bool,
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
        /// What the scheme does with NaN and infinity: `strict`, `propagate-nan`, `ignore-nan`.
        edges: &'static str,
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
    /// Blocks whose scale was proved against the contract of its scheme before the first value was cast.
    pub blocks_proved: u64,
    /// Values that were clipped to ±448 times the scale.
    pub saturated: u64,
    /// Values other than zero that became zero.
    pub flushed: u64,
    /// Weights of the source that are NaN or infinite; 0 unless the operator's policy lets them pass.
    pub non_finite: u64,
    /// Checkpoint tensors that a loader map placed elsewhere than the host's own map would.
    pub placed_elsewhere: usize,
    /// What somebody should know of the patches' answers, although they were followed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// Elements of the quantized tensors.
    pub quantized_elements: u64,
    /// What whoever sent the tensors should know: what was rounded, narrowed, or ignored though it says something else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What a partial update left as it was; none of a whole one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stayed: Option<Box<Stayed>>,
    /// Wall time.
    pub seconds: f64,
}
