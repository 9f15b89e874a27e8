//! The receipt of a refit: what came, what was handed on, and what was counted on the way, as one value that can be kept,
//! sent, and compared with that of another rank or another step.
//!
//! **Roots.** A root is the SHA-256 of lines `name dtype shape sha256`, one for each tensor, sorted by their bytes, each with a
//! line feed: `model.norm.weight BF16 [128] 9f86…`. The dtype is a word of safetensors, the shape has no spaces, the digest is 64
//! hex digits. A name with white space, control characters or quotes stands there as a JSON string. `root_before` is over what
//! came, `root_after` over what was handed on: where two ranks have one root, they have the same bytes under the same names.
//!
//! **The seal** is the SHA-256 of everything else in the receipt (`seal.rs` has the text). It shows that a receipt was changed by
//! accident or by hand. Who wants to forge one can seal it anew; the ledger's record of the refit has the seal too, and the
//! chain of the ledger holds that.

mod difference;
mod read;
mod seal;

use patchhost_runtime::refit::{RefitReport, Source};
use serde::{Deserialize, Serialize};

use super::RefitAt;
use super::ledger::canonical;
use crate::base::Digest;
pub use read::ReceiptError;
use seal::{line, root};

/// The version of the form that is written here.
const FORMAT: u32 = 1;

/// What one refit did, to be kept and compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The version of this form.
    #[serde(rename = "patchhost_receipt")]
    format: u32,
    /// Number of the refit in its process, from 1.
    pub refit: u64,
    /// The trainer's step, where it named one.
    pub step: Option<u64>,
    /// What the trainer calls the weights.
    pub version: String,
    /// The patches that made the weights.
    pub patch_set: Digest,
    /// SHA-256 of the manifest as canonical JSON (sorted keys, no spaces), where one was given.
    pub manifest: Option<Digest>,
    /// What was counted.
    pub counts: Counts,
    /// One digest of all tensors that came; none where nobody asked for it.
    pub root_before: Option<Digest>,
    /// One digest of all tensors that were handed on; none where nobody asked for it.
    pub root_after: Option<Digest>,
    /// SHA-256 over the list of tensors, where there is one: a summary without the list still says which list it was.
    pub tensors_sha256: Option<Digest>,
    /// Every tensor with its digests, where somebody asked for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensors: Option<Vec<TensorReceipt>>,
    /// SHA-256 of everything else.
    pub seal: Digest,
}

/// What a refit counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Tensors that came.
    pub tensors: u64,
    /// Tensors that became FP8.
    pub quantized: u64,
    /// Tensors that were handed on as they were. With `quantized` less than `tensors` where an engine ignores some of them.
    pub kept: u64,
    /// Values of all tensors that came.
    pub elements: u64,
    /// Blocks whose scale was proved before the first value was cast.
    pub blocks_proved: u64,
    /// Values that were clipped to the largest of FP8.
    pub saturated: u64,
    /// Values other than zero that became zero.
    pub flushed: u64,
    /// Weights that are NaN or infinite.
    pub non_finite: u64,
    /// Relative root mean square error of the quantized weights, estimated, to nine digits; none where nothing was quantized.
    pub relative_rmse: Option<f64>,
    /// Wall time of the refit, to a microsecond.
    pub seconds: f64,
    /// Bytes of the tensors that came.
    pub bytes_before: u64,
    /// Bytes of what was handed on.
    pub bytes_after: u64,
}

/// One tensor of a refit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorReceipt {
    /// Its name.
    pub name: String,
    /// Type of the elements that came, in the words of safetensors.
    pub dtype: String,
    /// Dimensions of what came.
    pub shape: Vec<u64>,
    /// SHA-256 of the bytes that came.
    pub before: Digest,
    /// What was handed on for it: itself, or its codes and its scales.
    pub after: Vec<Handed>,
    /// Whether it was handed on without being quantized.
    pub kept: bool,
    /// Blocks whose scale was proved.
    pub blocks: u64,
    /// Values that were clipped to the largest of FP8.
    pub saturated: u64,
}

/// One tensor that was handed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handed {
    /// Its name.
    pub name: String,
    /// Type of its elements, in the words of safetensors.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
}

/// The digests of a refit, where somebody asked for them.
#[derive(Debug, Clone)]
pub struct Digests {
    root_before: Option<Digest>,
    root_after: Digest,
    tensors: Option<Vec<TensorReceipt>>,
}

impl Digests {
    /// Of every tensor, and the roots of all of them.
    pub fn of_tensors(tensors: Vec<TensorReceipt>) -> Self {
        let (root_before, root_after) = roots(&tensors);
        Self { root_before: Some(root_before), root_after, tensors: Some(tensors) }
    }

    /// Of an engine whose tensors are not those that came (fused, stacked): the root of what it holds now. The root of what
    /// came is added by the receipt, where somebody has hashed it.
    pub fn of_engine<'a>(held: impl IntoIterator<Item = &'a Handed>) -> Self {
        let root_after = root(held.into_iter().map(|h| line(&h.name, &h.dtype, &h.shape, &h.sha256)));
        Self { root_before: None, root_after, tensors: None }
    }
}

impl Receipt {
    /// The receipt of a refit that is about to be published.
    pub fn of(at: RefitAt, report: &RefitReport, patch_set: Digest, source: &Source, digests: Option<Digests>) -> Self {
        let (mut tensors, mut elements) = (0, 0);
        for tensor in source.checkpoint().tensors() {
            tensors += 1;
            elements += tensor.shape.iter().map(|d| *d as u64).product::<u64>();
        }
        let manifest = source.begin().manifest.as_ref().and_then(|m| serde_json::to_value(m).ok());
        let (root_before, root_after, list) = match digests {
            Some(Digests { root_before, root_after, tensors }) => (root_before, Some(root_after), tensors),
            None => (None, None, None),
        };
        let counts = Counts {
            tensors,
            quantized: report.quantized as u64,
            kept: report.kept as u64,
            elements,
            blocks_proved: report.blocks_proved,
            saturated: report.saturated,
            flushed: report.flushed,
            non_finite: report.non_finite,
            relative_rmse: report.relative_rmse.filter(|x| x.is_finite()).map(|x| rounded(&format!("{x:.8e}"))),
            seconds: rounded(&format!("{:.6}", report.seconds)),
            bytes_before: report.bytes_before,
            bytes_after: report.bytes_after,
        };
        let mut receipt = Self {
            format: FORMAT,
            refit: at.refit,
            step: at.step,
            version: report.label.clone(),
            patch_set,
            manifest: manifest.map(|m| Digest::of(canonical(&m).as_bytes())),
            counts,
            root_before: root_before.or_else(|| came(source)),
            root_after,
            tensors_sha256: list.as_deref().map(seal::list),
            tensors: list,
            seal: Digest::ZERO,
        };
        receipt.seal = receipt.sealed();
        receipt
    }

    /// The same without its list of tensors: for the ledger and for status pages.
    #[must_use]
    pub fn summary(&self) -> Self {
        Self {
            format: self.format,
            refit: self.refit,
            step: self.step,
            version: self.version.clone(),
            patch_set: self.patch_set,
            manifest: self.manifest,
            counts: self.counts.clone(),
            root_before: self.root_before,
            root_after: self.root_after,
            tensors_sha256: self.tensors_sha256,
            tensors: None,
            seal: self.seal,
        }
    }
}

/// The roots of what came and of what was handed on.
fn roots(tensors: &[TensorReceipt]) -> (Digest, Digest) {
    let before = root(tensors.iter().map(|t| line(&t.name, &t.dtype, &t.shape, &t.before)));
    let handed = tensors.iter().flat_map(|t| &t.after);
    (before, root(handed.map(|h| line(&h.name, &h.dtype, &h.shape, &h.sha256))))
}

/// The root of what came, where its bytes were hashed anyway: for an observer, or for a manifest with digests.
fn came(source: &Source) -> Option<Digest> {
    let sums = source.known_sums()?;
    let lines = source.checkpoint().tensors().zip(sums).map(|(tensor, sum)| {
        let shape: Vec<u64> = tensor.shape.iter().map(|d| *d as u64).collect();
        Some(line(&tensor.name, &format!("{:?}", tensor.stored), &shape, &sum.parse().ok()?))
    });
    Some(root(lines.collect::<Option<Vec<_>>>()?))
}

/// A number as it was written, so that reading and writing it again gives the same digits.
fn rounded(text: &str) -> f64 {
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests;
