//! An answer in a conversation, as a stream of chunks.

use patchhost_runtime::scheduler::Event;
use serde::Serialize;

use super::super::logprobs::{ChatLogprobs, PromptLogprobs, chat as chat_logprob};
use super::super::tools::{CallDelta, Listener, joined};
use super::super::types::{Usage, fingerprint};
use super::answer::Answer;
use crate::serve::ask::sse::{self, Chunks};
use crate::serve::ask::{Stopped, WeightVersion, weight_versions};
use crate::serve::error::ApiResult;
use crate::serve::metrics::reason_name;

/// A piece of an answer in a stream.
#[derive(Debug, Clone, Serialize)]
struct ChatChunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    system_fingerprint: Option<String>,
    patch_set: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

#[derive(Debug, Clone, Default, Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Stopped>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weight_versions: Vec<WeightVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Clone, Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallDelta>,
}

/// The events of an answer as OpenAI's chunks.
pub(super) struct Stream {
    answer: Answer,
    /// One for each sequence.
    listeners: Vec<Listener>,
    tokens: usize,
    cached: usize,
    /// What belongs to the prompt has been sent.
    opened: bool,
    patch_set: String,
}

impl Stream {
    pub(super) fn new(answer: Answer) -> Self {
        let listeners = (0..answer.asked.n).map(|_| Listener::new(&answer.tools, answer.thoughts.as_ref())).collect();
        Self { answer, listeners, tokens: 0, cached: 0, opened: false, patch_set: String::new() }
    }

    fn usage(&self) -> Usage {
        Usage::new(self.answer.prompt.len(), self.tokens, self.cached)
    }

    fn chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk<'_> {
        let answer = &self.answer;
        ChatChunk {
            id: &answer.id,
            object: "chat.completion.chunk",
            created: answer.created,
            model: &answer.model,
            choices,
            usage: answer.usage.continuous_usage_stats.unwrap_or(false).then(|| self.usage()),
            system_fingerprint: fingerprint(&self.patch_set),
            patch_set: &self.patch_set,
            prompt_logprobs: None,
            prompt_token_ids: None,
        }
    }
}

impl Chunks for Stream {
    fn event(&mut self, index: usize, event: Event) -> ApiResult<Vec<String>> {
        let mut choice = ChunkChoice { index, ..ChunkChoice::default() };
        match event {
            Event::Started(started) => {
                self.patch_set = started.version.patches;
                self.cached = started.cached_tokens;
                choice.delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
                let first = !std::mem::replace(&mut self.opened, true);
                let mut chunk = self.chunk(vec![choice]);
                if first {
                    chunk.prompt_logprobs = self.answer.prompt_logprobs(started.prompt_logprobs.as_deref());
                    chunk.prompt_token_ids = self.answer.token_ids.then_some(self.answer.prompt.as_slice());
                }
                Ok(vec![sse::chunk(&chunk)?])
            }
            Event::Token(token) => {
                self.tokens += 1;
                if self.answer.logprobs {
                    let content = token.logprob.iter().map(|l| chat_logprob(l, self.answer.writer())).collect();
                    choice.logprobs = Some(ChatLogprobs { content });
                }
                choice.token_ids = self.answer.token_ids.then(|| vec![token.token_id]);
                let heard = self.listeners[index].hear(&token.text);
                let wordless = heard.reasoning.is_none() && heard.calls.is_empty();
                let silent = heard.content.is_none() && wordless;
                if silent && choice.logprobs.is_none() && choice.token_ids.is_none() {
                    return Ok(Vec::new());
                }
                choice.delta.content = heard.content.or_else(|| wordless.then(String::new));
                choice.delta.reasoning_content = heard.reasoning.clone();
                choice.delta.reasoning = heard.reasoning;
                choice.delta.tool_calls = heard.calls;
                Ok(vec![sse::chunk(&self.chunk(vec![choice]))?])
            }
            Event::Done(done) => {
                if let Some(last) = done.weight_versions.last() {
                    self.patch_set.clone_from(&last.patches);
                }
                let listener = &mut self.listeners[index];
                let (tail, rest) = (listener.hear(&done.text_tail), listener.end());
                choice.delta.content = joined([tail.content, rest.content]);
                choice.delta.reasoning = joined([tail.reasoning, rest.reasoning]);
                choice.delta.reasoning_content.clone_from(&choice.delta.reasoning);
                choice.delta.tool_calls = tail.calls.into_iter().chain(rest.calls).collect();
                choice.finish_reason = Some(self.listeners[index].reason(reason_name(done.finish_reason)));
                choice.stop_reason = done.stop_reason.map(Stopped::from);
                choice.weight_versions = weight_versions(&done.weight_versions);
                Ok(vec![sse::chunk(&self.chunk(vec![choice]))?])
            }
        }
    }

    fn end(&mut self) -> ApiResult<Vec<String>> {
        if !self.answer.usage.include_usage.unwrap_or(false) {
            return Ok(Vec::new());
        }
        let mut last = self.chunk(Vec::new());
        last.usage = Some(self.usage());
        Ok(vec![sse::chunk(&last)?])
    }
}
