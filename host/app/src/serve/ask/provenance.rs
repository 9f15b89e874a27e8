//! Where an answer's tokens come from, and what ended them: the same words in every dialect.

use patchhost_runtime::generate::TokenVersion;
use patchhost_runtime::scheduler::StopReason;
use serde::Serialize;
use utoipa::ToSchema;

/// Which weights and patches made a range of an answer's tokens.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WeightVersion {
    /// What the trainer calls the weights.
    pub version: String,
    /// Digest of the patch set that made them.
    pub patch_set: String,
    /// Name and version of the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterVersion>,
    /// First token.
    pub start: usize,
    /// One behind the last token.
    pub end: usize,
}

/// An adapter as it was when it was used.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AdapterVersion {
    /// Its name.
    pub name: String,
    /// Counts the loads of adapters, from 1.
    pub version: u64,
}

impl From<&TokenVersion> for WeightVersion {
    fn from(v: &TokenVersion) -> Self {
        Self {
            version: v.version.clone(),
            patch_set: v.patches.clone(),
            adapter: v.adapter.clone().map(|(name, version)| AdapterVersion { name, version }),
            start: v.start,
            end: v.end,
        }
    }
}

/// What made the tokens of a sequence, range by range.
pub fn weight_versions(versions: &[TokenVersion]) -> Vec<WeightVersion> {
    versions.iter().map(WeightVersion::from).collect()
}

/// Which stop text or token ended a sequence.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Stopped {
    /// A stop text.
    Text(String),
    /// A stop token.
    Token(u32),
}

impl From<StopReason> for Stopped {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::Text(text) => Self::Text(text),
            StopReason::Token(id) => Self::Token(id),
        }
    }
}
