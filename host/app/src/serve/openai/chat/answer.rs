//! An answer in a conversation, whole.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use patchhost_runtime::scheduler::TokenLogprob;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::logprobs::{ChatLogprobs, PromptLogprobs, Writer, chat as chat_logprob, prompt as prompt_logprobs};
use super::super::request::StreamOptions;
use super::super::tools::{Listener, Thoughts, ToolCall, Tools, Whole};
use super::super::types::{PATCH_SET, Usage, fingerprint, patch_set};
use crate::serve::ask::{Asked, Output, Stopped, WeightVersion, weight_versions};
use crate::serve::json::Json;
use crate::serve::metrics::reason_name;
use crate::serve::state::App;

/// An answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatResponse {
    /// Id of the request.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// The answers.
    pub choices: Vec<ChatChoice>,
    /// Tokens used.
    pub usage: Usage,
    /// Changes with the patch set.
    pub system_fingerprint: Option<String>,
    /// Digest of the patch set that made the last tokens.
    pub patch_set: String,
    /// Log probabilities of the prompt, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<std::collections::HashMap<String, super::super::logprobs::PromptLogprob>>>>)]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Tokens of the prompt, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// One of the answers.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Its number.
    pub index: usize,
    /// What is said.
    pub message: AssistantMessage,
    /// Log probabilities, where asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended: `stop`, `tool_calls`, `length`, `abort`.
    pub finish_reason: &'static str,
    /// Which stop text or token ended it.
    pub stop_reason: Option<Stopped>,
    /// What made which of its tokens.
    pub weight_versions: Vec<WeightVersion>,
    /// Its tokens, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// What the model says.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The text; null where there are only calls.
    pub content: Option<String>,
    /// What the model thought, where `--reasoning-parser` takes that out of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The same under its newer name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The tools that the model calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Always none: models that refuse say so in the text.
    pub refusal: Option<String>,
}

/// What the answer needs to know of the request.
pub(super) struct Answer {
    pub(super) app: Arc<App>,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) prompt: Vec<u32>,
    pub(super) asked: Asked,
    /// What a stream says about usage.
    pub(super) usage: StreamOptions,
    /// How calls of tools are found in the text.
    pub(super) tools: Tools,
    /// How thoughts are taken out of the text.
    pub(super) thoughts: Option<Thoughts>,
    pub(super) logprobs: bool,
    pub(super) token_ids: bool,
    pub(super) as_ids: bool,
}

impl Answer {
    pub(super) fn writer(&self) -> Writer<'_> {
        Writer { tokenizer: &self.app.tokenizer, as_ids: self.as_ids }
    }

    pub(super) fn prompt_logprobs(&self, all: Option<&[Option<TokenLogprob>]>) -> Option<PromptLogprobs> {
        all.map(|all| prompt_logprobs(all, self.writer()))
    }

    pub(super) fn whole(&self, outputs: &[Output]) -> Response {
        let choice = |(index, output): (usize, &Output)| {
            let mut listener = Listener::new(&self.tools, self.thoughts.as_ref());
            let Whole { reasoning, content, calls: tool_calls } = listener.whole(&output.text);
            ChatChoice {
                index,
                message: AssistantMessage {
                    role: "assistant",
                    content,
                    reasoning_content: reasoning.clone(),
                    reasoning,
                    tool_calls,
                    refusal: None,
                },
                logprobs: self.logprobs.then(|| ChatLogprobs {
                    content: output.logprobs.iter().map(|l| chat_logprob(l, self.writer())).collect(),
                }),
                finish_reason: listener.reason(reason_name(output.finish_reason)),
                stop_reason: output.stop_reason.clone().map(Stopped::from),
                weight_versions: weight_versions(&output.weight_versions),
                token_ids: self.token_ids.then(|| output.token_ids.clone()),
            }
        };
        let set = patch_set(outputs);
        let response = ChatResponse {
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: self.model.clone(),
            choices: outputs.iter().enumerate().map(choice).collect(),
            usage: Usage::of(std::slice::from_ref(&self.prompt), self.asked.n, outputs),
            system_fingerprint: fingerprint(&set),
            patch_set: set.clone(),
            prompt_logprobs: self.prompt_logprobs(outputs.first().and_then(|o| o.prompt_logprobs.as_deref())),
            prompt_token_ids: self.token_ids.then(|| self.prompt.clone()),
        };
        ([(PATCH_SET, set)], Json(response)).into_response()
    }
}
