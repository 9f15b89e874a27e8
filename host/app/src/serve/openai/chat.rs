//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use patchhost_runtime::scheduler::{Event, TokenLogprob};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::logprobs::{ChatLogprobs, PromptLogprobs, Writer, chat as chat_logprob, prompt as prompt_logprobs};
use super::request::{StreamOptions, request};
use super::types::{PATCH_SET, Usage, fingerprint, patch_set};
use crate::serve::ask::sse::{self, Chunks};
use crate::serve::ask::{
    Asked, Batch, ChatMessage, Conversation, Limit, Output, Running, Stopped, WeightVersion, check_choices,
    check_logprobs, max_tokens, refuse, weight_versions,
};
use crate::serve::error::{ApiError, ApiResult, ErrorBody};
use crate::serve::json::Json;
use crate::serve::metrics::reason_name;
use crate::serve::state::{App, unix_seconds};

request! {
    /// A conversation to go on with, and how.
    pub struct ChatRequest {
        /// The turns so far.
        #[schema(min_items = 1)]
        pub messages: Vec<ChatMessage>,
        /// Most tokens per answer; the rest of the context where it is absent.
        pub max_completion_tokens: Option<u32>,
        /// The older name of `max_completion_tokens`.
        pub max_tokens: Option<u32>,
        /// Log probabilities of the answer's tokens.
        pub logprobs: Option<bool>,
        /// With this many of the most likely tokens; needs `logprobs`.
        #[schema(minimum = 0, maximum = 20)]
        pub top_logprobs: Option<i64>,
        /// End the prompt where the assistant's answer begins; the default is true.
        pub add_generation_prompt: Option<bool>,
        /// Further variables of the chat template.
        #[schema(value_type = Option<Object>)]
        pub chat_template_kwargs: Option<serde_json::Map<String, serde_json::Value>>,
        #[schema(ignore)]
        tools: Option<serde_json::Value>,
        #[schema(ignore)]
        tool_choice: Option<serde_json::Value>,
        #[schema(ignore)]
        functions: Option<serde_json::Value>,
        #[schema(ignore)]
        function_call: Option<serde_json::Value>,
        #[schema(ignore)]
        modalities: Option<serde_json::Value>,
        #[schema(ignore)]
        audio: Option<serde_json::Value>,
        #[schema(ignore)]
        prediction: Option<serde_json::Value>,
        #[schema(ignore)]
        web_search_options: Option<serde_json::Value>,
        #[schema(ignore)]
        chat_template: Option<serde_json::Value>,
        #[schema(ignore)]
        continue_final_message: Option<serde_json::Value>,
    }
}

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
    #[schema(value_type = Option<Vec<Option<std::collections::HashMap<String, super::logprobs::PromptLogprob>>>>)]
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
    /// Why it ended: `stop`, `length`, `abort`.
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
    /// The text.
    pub content: String,
    /// Always none: models that refuse say so in the text.
    pub refusal: Option<String>,
}

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
}

/// What the answer needs to know of the request.
struct Answer {
    app: Arc<App>,
    id: String,
    created: u64,
    model: String,
    prompt: Vec<u32>,
    asked: Asked,
    /// What a stream says about usage.
    usage: StreamOptions,
    logprobs: bool,
    token_ids: bool,
    as_ids: bool,
}

/// Answers in a conversation
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest, responses(
    (status = 200, description = "The answer, or with `stream` its chunks", content(
        (ChatResponse = "application/json"), (String = "text/event-stream"),
    )),
    (status = 400, description = "The request is wrong", body = ErrorBody),
    (status = 404, description = "There is no such model", body = ErrorBody),
    (status = 408, description = "It took too long", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
    (status = 415, description = "The body is not JSON", body = ErrorBody),
    (status = 429, description = "The queue is full", body = ErrorBody),
    (status = 503, description = "The server is going down", body = ErrorBody),
))]
async fn chat(State(app): State<Arc<App>>, Json(request): Json<ChatRequest>) -> ApiResult<Response> {
    request.refuse_unsupported()?;
    let adapter = app.adapter(request.model.as_deref())?;
    let mut asked = request.asked(&app)?.structured(&app).await?;
    let streamed = request.streamed()?;
    let logprobs = request.logprobs.unwrap_or(false);
    let top_logprobs = check_logprobs(&app, "top_logprobs", request.top_logprobs)?;
    if top_logprobs.is_some_and(|n| n > 0) && !logprobs {
        return Err(ApiError::bad(
            "`top_logprobs`",
            "`logprobs` is not true",
            "set `logprobs` to true, or leave `top_logprobs` away",
        )
        .param("top_logprobs"));
    }
    let conversation = Conversation {
        messages: &request.messages,
        add_generation_prompt: request.add_generation_prompt.unwrap_or(true),
        more: request.chat_template_kwargs.clone().unwrap_or_default(),
    };
    let specials = request.add_special_tokens.unwrap_or(false);
    let prompt = conversation.prompt(&app, specials, request.truncate_prompt_tokens).await?;
    check_choices(&app, 1, asked.n)?;
    let params = &mut asked.params;
    let asked_tokens = request.max_completion_tokens.or(request.max_tokens);
    params.max_tokens = max_tokens(&app, std::slice::from_ref(&prompt), asked_tokens)?;
    params.logprobs = logprobs.then(|| top_logprobs.unwrap_or(0));
    let id = app.claim("chatcmpl-", request.request_id.as_deref())?;
    let answer = Answer {
        id: id.as_str().to_string(),
        created: unix_seconds(),
        model: request.model.clone().unwrap_or_else(|| app.served_name.clone()),
        logprobs,
        token_ids: request.return_token_ids.unwrap_or(false),
        as_ids: request.return_tokens_as_token_ids.unwrap_or(false),
        app: Arc::clone(&app),
        prompt: prompt.clone(),
        asked,
        usage: streamed.clone().unwrap_or_default(),
    };
    let batch = Batch { prompts: vec![prompt], n: answer.asked.n, params: answer.asked.params.clone(), adapter };
    if streamed.is_some() {
        let running = Running::start(&app, id, batch, Limit::Idle)?;
        return Ok(sse::stream(
            running,
            Stream { tokens: 0, cached: 0, opened: false, patch_set: String::new(), answer },
        ));
    }
    let outputs = Running::start(&app, id, batch, Limit::Total)?.collect().await?;
    Ok(answer.whole(&outputs))
}

impl ChatRequest {
    fn refuse_unsupported(&self) -> ApiResult<()> {
        let text_only = "the model reads and writes text only";
        let no_tools = "this server calls no tools";
        let template = "a template is code; it is given when the server starts (--chat-template)";
        refuse(
            &[
                ("tools", &self.tools, no_tools),
                ("tool_choice", &self.tool_choice, no_tools),
                ("functions", &self.functions, no_tools),
                ("function_call", &self.function_call, no_tools),
                ("modalities", &self.modalities, text_only),
                ("audio", &self.audio, text_only),
                ("prediction", &self.prediction, "predicted output is not used"),
                ("web_search_options", &self.web_search_options, no_tools),
                ("chat_template", &self.chat_template, template),
                ("continue_final_message", &self.continue_final_message, "use /v1/completions to continue a text"),
            ],
            harmless,
        )
    }
}

/// Values that clients send as defaults and that ask for nothing.
fn harmless(_: &str, value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Bool(false) => true,
        Value::String(text) => text == "none" || text == "auto",
        Value::Array(list) => list.iter().all(|v| v == "text"),
        _ => false,
    }
}

impl Answer {
    fn writer(&self) -> Writer<'_> {
        Writer { tokenizer: &self.app.tokenizer, as_ids: self.as_ids }
    }

    fn prompt_logprobs(&self, all: Option<&[Option<TokenLogprob>]>) -> Option<PromptLogprobs> {
        all.map(|all| prompt_logprobs(all, self.writer()))
    }

    fn whole(&self, outputs: &[Output]) -> Response {
        let choice = |(index, output): (usize, &Output)| ChatChoice {
            index,
            message: AssistantMessage { role: "assistant", content: output.text.clone(), refusal: None },
            logprobs: self.logprobs.then(|| ChatLogprobs {
                content: output.logprobs.iter().map(|l| chat_logprob(l, self.writer())).collect(),
            }),
            finish_reason: reason_name(output.finish_reason),
            stop_reason: output.stop_reason.clone().map(Stopped::from),
            weight_versions: weight_versions(&output.weight_versions),
            token_ids: self.token_ids.then(|| output.token_ids.clone()),
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

struct Stream {
    answer: Answer,
    tokens: usize,
    cached: usize,
    /// What belongs to the prompt has been sent.
    opened: bool,
    patch_set: String,
}

impl Stream {
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
                choice.delta = Delta { role: Some("assistant"), content: Some(String::new()) };
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
                if token.text.is_empty() && choice.logprobs.is_none() && choice.token_ids.is_none() {
                    return Ok(Vec::new());
                }
                choice.delta.content = Some(token.text);
                Ok(vec![sse::chunk(&self.chunk(vec![choice]))?])
            }
            Event::Done(done) => {
                if let Some(last) = done.weight_versions.last() {
                    self.patch_set.clone_from(&last.patches);
                }
                choice.delta.content = Some(done.text_tail).filter(|text| !text.is_empty());
                choice.finish_reason = Some(reason_name(done.finish_reason));
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

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(chat))
}
