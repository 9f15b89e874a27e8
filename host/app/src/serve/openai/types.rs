//! What answers to completions and to conversations both have: the usage, and which patch set made them.

use axum::http::HeaderName;
use serde::Serialize;
use utoipa::ToSchema;

use crate::serve::ask::Output;

/// The header of answers that says which patch set made them.
pub const PATCH_SET: HeaderName = HeaderName::from_static("x-patchhost-patch-set");

/// How many tokens a request took.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct Usage {
    /// Of the prompts.
    pub prompt_tokens: usize,
    /// Of the answers.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// More about the prompts.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// More about the tokens of the prompts.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Those whose keys and values came from the prefix cache.
    pub cached_tokens: usize,
}

impl Usage {
    /// Usage of that many tokens; `cached_tokens` of the prompts came from the prefix cache.
    pub fn new(prompt_tokens: usize, completion_tokens: usize, cached_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }

    /// Of finished sequences; each prompt counts once, however many sequences it has.
    pub fn of(prompts: &[Vec<u32>], n: usize, outputs: &[Output]) -> Self {
        Self::new(
            prompts.iter().map(Vec::len).sum(),
            outputs.iter().map(|o| o.token_ids.len()).sum(),
            outputs.iter().step_by(n.max(1)).map(|o| o.cached_tokens).sum(),
        )
    }
}

/// Short name of a patch set: OpenAI's `system_fingerprint` says when answers can differ for the same seed.
pub fn fingerprint(patch_set: &str) -> Option<String> {
    let hex = patch_set.strip_prefix("sha256:")?;
    Some(format!("fp_{}", hex.get(..12).unwrap_or(hex)))
}

/// The set that made the last tokens of an answer.
pub fn patch_set(outputs: &[Output]) -> String {
    let last = outputs.iter().rev().find_map(|o| o.weight_versions.last());
    last.map(|v| v.patches.clone()).unwrap_or_default()
}
