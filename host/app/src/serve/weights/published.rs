//! What an update did, as answers tell it.

use serde::Serialize;
use utoipa::ToSchema;

use crate::base::text::clean;
use crate::live::Refitted;

/// Weights that are live now.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Published {
    /// What they are called.
    pub weight_version: String,
    /// Digest of the patch set that made them.
    pub patch_set: String,
    /// Number of the refit.
    pub refit: u64,
    /// The trainer's step, where it named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Tensors that became FP8.
    pub quantized: usize,
    /// Tensors loaded as they were.
    pub kept: usize,
    /// Bytes of the tensors that came.
    pub bytes: u64,
    /// What a partial update left as it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stayed: Option<Stayed>,
    /// What was rounded, narrowed, or ignored though it says something else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Why another set than the active one made them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
    /// The swap that landed with them: from, to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swapped: Option<[String; 2]>,
    /// Why a candidate that should have landed did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reversed: Option<String>,
}

/// What a partial update left as it was.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Stayed {
    /// Tensors that came.
    pub came: usize,
    /// Tensors that stayed.
    pub tensors: usize,
    /// Their names, in order; the first of them, where they are many.
    pub names: Vec<String>,
    /// SHA-256 of all their names, each with a line feed.
    pub names_sha256: String,
}

impl Published {
    /// Of a refit that is live.
    pub(super) fn of(done: &Refitted) -> Self {
        let report = &done.report;
        Self {
            weight_version: done.weights.label().to_string(),
            patch_set: done.patch_set.to_string(),
            refit: done.refit,
            step: done.step,
            quantized: report.quantized,
            kept: report.kept,
            bytes: report.stayed.as_ref().map_or(report.bytes_before, |stayed| stayed.came_bytes),
            stayed: report.stayed.as_ref().map(|stayed| Stayed {
                came: stayed.came,
                tensors: stayed.tensors,
                names: stayed.names.iter().map(|name| clean(name, 200)).collect(),
                names_sha256: stayed.names_sha256.clone(),
            }),
            notes: report.notes.iter().map(|note| clean(note, 600)).collect(),
            degraded: done.degraded.as_deref().map(|t| clean(t, 600)),
            swapped: done.swap.map(|s| [s.from.to_string(), s.to.to_string()]),
            reversed: done.reversed.as_deref().map(|t| clean(t, 600)),
        }
    }
}
