//! `/v1/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use patchhost_runtime::scheduler::{Event, TokenLogprob};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::logprobs::{CompletionLogprobs, PromptLogprobs, Writer, prompt as prompt_logprobs};
use super::rendered::{Rendered, sampling_params};
use super::request::{StreamOptions, request};
use super::types::{PATCH_SET, Usage, fingerprint, patch_set};
use crate::serve::ask::sse::{self, Chunks};
use crate::serve::ask::{
    Asked, Batch, Limit, Output, Prompt, Running, Stopped, WeightVersion, check_choices, check_logprobs, max_tokens,
    refuse, weight_versions,
};
use crate::serve::error::{ApiError, ApiResult, ErrorBody};
use crate::serve::json::Json;
use crate::serve::metrics::reason_name;
use crate::serve::state::{App, unix_seconds};

/// Tokens of a completion where nobody says how many, as OpenAI has it.
const DEFAULT_MAX_TOKENS: u32 = 16;

request! {
    /// What to complete, and how.
    pub struct CompletionRequest {
        /// A text, texts, the tokens of a prompt, or those of several.
        pub prompt: Prompt,
        /// Most tokens per sequence.
        #[schema(default = 16)]
        pub max_tokens: Option<u32>,
        /// Begin the answer with the prompt.
        pub echo: Option<bool>,
        /// Log probabilities, with this many of the most likely tokens.
        #[schema(minimum = 0, maximum = 20)]
        pub logprobs: Option<i64>,
        #[schema(ignore)]
        suffix: Option<serde_json::Value>,
        #[schema(ignore)]
        prompt_embeds: Option<serde_json::Value>,
    }
}

/// An answer, or a chunk of one.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CompletionResponse {
    /// Id of the request.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// The sequences.
    pub choices: Vec<CompletionChoice>,
    /// Tokens used; in a stream only where asked for.
    pub usage: Option<Usage>,
    /// Changes with the patch set.
    pub system_fingerprint: Option<String>,
    /// Digest of the patch set that made the last tokens.
    pub patch_set: String,
}

/// A sequence, or a piece of one.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// Which sequence: prompt times `n` plus number.
    pub index: usize,
    /// Its text.
    pub text: String,
    /// Log probabilities, where asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended: `stop`, `length`, `abort`; none in chunks before the last.
    pub finish_reason: Option<&'static str>,
    /// Which stop text or token ended it.
    pub stop_reason: Option<Stopped>,
    /// What made which of its tokens; in the last chunk of a stream.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weight_versions: Vec<WeightVersion>,
    /// Log probabilities of the prompt, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<std::collections::HashMap<String, super::logprobs::PromptLogprob>>>>)]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Tokens of the prompt, where asked for; in the first chunk of a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// Tokens of the text, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// What the answer needs to know of the request.
struct Answer {
    app: Arc<App>,
    id: String,
    created: u64,
    model: String,
    prompts: Vec<Vec<u32>>,
    /// The texts of the prompts, where they are echoed.
    echo: Option<Vec<String>>,
    asked: Asked,
    /// What a stream says about usage.
    usage: StreamOptions,
    logprobs: bool,
    /// Prompt log probabilities in vLLM's form were asked for (an echo with log probabilities needs them too).
    prompt_logprobs: bool,
    token_ids: bool,
    as_ids: bool,
}

/// Completes prompts
#[utoipa::path(post, path = "/v1/completions", tag = "openai", request_body = CompletionRequest, responses(
    (status = 200, description = "The answer, or with `stream` its chunks", content(
        (CompletionResponse = "application/json"), (String = "text/event-stream"),
    )),
    (status = 400, description = "The request is wrong", body = ErrorBody),
    (status = 404, description = "There is no such model", body = ErrorBody),
    (status = 408, description = "It took too long", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
    (status = 415, description = "The body is not JSON", body = ErrorBody),
    (status = 429, description = "The queue is full", body = ErrorBody),
    (status = 503, description = "The server is going down", body = ErrorBody),
))]
async fn completions(State(app): State<Arc<App>>, Json(request): Json<CompletionRequest>) -> ApiResult<Response> {
    request.refuse_unsupported()?;
    let adapter = app.adapter(request.model.as_deref())?;
    let mut asked = request.asked(&app)?.structured(&app).await?;
    let streamed = request.streamed()?;
    let logprobs = check_logprobs(&app, "logprobs", request.logprobs)?;
    let prompts =
        request.prompt.tokens(&app, request.add_special_tokens.unwrap_or(true), request.truncate_prompt_tokens).await?;
    check_choices(&app, prompts.len(), asked.n)?;
    let echo = request.echo.unwrap_or(false);
    let tokenizer = &app.tokenizer;
    let texts = prompts.iter().map(|ids| tokenizer.decode_all(ids).map_err(ApiError::from));
    let params = &mut asked.params;
    params.max_tokens = max_tokens(&app, &prompts, Some(request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)))?;
    params.logprobs = logprobs;
    if echo && params.prompt_logprobs.is_none() {
        params.prompt_logprobs = params.logprobs;
    }
    let id = app.claim("cmpl-", request.request_id.as_deref())?;
    let answer = Answer {
        id: id.as_str().to_string(),
        created: unix_seconds(),
        model: request.model.clone().unwrap_or_else(|| app.served_name.clone()),
        echo: echo.then(|| texts.collect::<ApiResult<_>>()).transpose()?,
        logprobs: logprobs.is_some(),
        prompt_logprobs: request.prompt_logprobs.is_some(),
        token_ids: request.return_token_ids.unwrap_or(false),
        as_ids: request.return_tokens_as_token_ids.unwrap_or(false),
        app: Arc::clone(&app),
        prompts,
        asked,
        usage: streamed.clone().unwrap_or_default(),
    };
    let batch =
        Batch { prompts: answer.prompts.clone(), n: answer.asked.n, params: answer.asked.params.clone(), adapter };
    if streamed.is_some() {
        let running = Running::start(&app, id, batch, Limit::Idle)?;
        let choices = (0..answer.prompts.len() * answer.asked.n).map(|_| Choice::default()).collect();
        return Ok(sse::stream(running, Stream { answer, choices, patch_set: String::new() }));
    }
    let outputs = Running::start(&app, id, batch, Limit::Total)?.collect().await?;
    Ok(answer.whole(&outputs))
}

impl CompletionRequest {
    fn refuse_unsupported(&self) -> ApiResult<()> {
        refuse(
            &[
                ("suffix", &self.suffix, "the model writes behind a prompt, not into a gap"),
                ("prompt_embeds", &self.prompt_embeds, "prompts are texts or token ids"),
            ],
            |_, _| false,
        )
    }
}

impl Answer {
    fn writer(&self) -> Writer<'_> {
        Writer { tokenizer: &self.app.tokenizer, as_ids: self.as_ids }
    }

    fn response(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>, patch_set: &str) -> CompletionResponse {
        CompletionResponse {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            system_fingerprint: fingerprint(patch_set),
            patch_set: patch_set.to_string(),
        }
    }

    /// What a sequence's first piece holds of its prompt: its text, its log probabilities, its tokens.
    fn opening(&self, index: usize, prompt: Option<&[Option<TokenLogprob>]>, offset: &mut usize) -> CompletionChoice {
        let at = index / self.asked.n;
        let (tokens, writer) = (&self.prompts[at], self.writer());
        let echo = self.echo.as_ref().map(|texts| texts[at].clone());
        let logprobs = self.logprobs.then(|| {
            let mut all = CompletionLogprobs::default();
            if echo.is_some() {
                for (i, id) in tokens.iter().enumerate() {
                    let logprob = prompt.and_then(|p| p.get(i)).and_then(Option::as_ref);
                    *offset = all.push(*id, logprob, *offset, writer);
                }
            }
            all
        });
        CompletionChoice {
            index,
            text: echo.unwrap_or_default(),
            logprobs,
            prompt_logprobs: prompt.filter(|_| self.prompt_logprobs).map(|p| prompt_logprobs(p, writer)),
            prompt_token_ids: self.token_ids.then(|| tokens.clone()),
            token_ids: self.token_ids.then(Vec::new),
            ..CompletionChoice::default()
        }
    }

    fn whole(&self, outputs: &[Output]) -> Response {
        let choice = |(index, output): (usize, &Output)| {
            let mut offset = 0;
            let mut choice = self.opening(index, output.prompt_logprobs.as_deref(), &mut offset);
            choice.text.push_str(&output.text);
            if let Some(all) = &mut choice.logprobs {
                for l in &output.logprobs {
                    offset = all.push(l.token_id, Some(l), offset, self.writer());
                }
            }
            if let Some(ids) = &mut choice.token_ids {
                ids.extend(&output.token_ids);
            }
            choice.finish_reason = Some(reason_name(output.finish_reason));
            choice.stop_reason = output.stop_reason.clone().map(Stopped::from);
            choice.weight_versions = weight_versions(&output.weight_versions);
            choice
        };
        let choices = outputs.iter().enumerate().map(choice).collect();
        let usage = Usage::of(&self.prompts, self.asked.n, outputs);
        let set = patch_set(outputs);
        ([(PATCH_SET, set.clone())], Json(self.response(choices, Some(usage), &set))).into_response()
    }
}

/// What a stream remembers of one sequence.
#[derive(Default)]
struct Choice {
    /// Where the next token's text begins.
    offset: usize,
    tokens: usize,
    cached: usize,
}

struct Stream {
    answer: Answer,
    choices: Vec<Choice>,
    patch_set: String,
}

impl Stream {
    fn usage(&self) -> Usage {
        let (answer, n) = (&self.answer, self.answer.asked.n);
        Usage::new(
            answer.prompts.iter().map(Vec::len).sum(),
            self.choices.iter().map(|c| c.tokens).sum(),
            self.choices.iter().step_by(n).map(|c| c.cached).sum(),
        )
    }

    fn chunk(&self, choice: CompletionChoice) -> ApiResult<String> {
        let usage = self.answer.usage.continuous_usage_stats.unwrap_or(false).then(|| self.usage());
        sse::chunk(&self.answer.response(vec![choice], usage, &self.patch_set))
    }
}

impl Chunks for Stream {
    fn event(&mut self, index: usize, event: Event) -> ApiResult<Vec<String>> {
        match event {
            Event::Started(started) => {
                self.patch_set = started.version.patches;
                let mut offset = 0;
                let opening = self.answer.opening(index, started.prompt_logprobs.as_deref(), &mut offset);
                let choice = &mut self.choices[index];
                (choice.offset, choice.cached) = (offset, started.cached_tokens);
                // An opening that holds nothing is not sent.
                if opening.text.is_empty() && opening.prompt_token_ids.is_none() && opening.prompt_logprobs.is_none() {
                    return Ok(Vec::new());
                }
                Ok(vec![self.chunk(opening)?])
            }
            Event::Token(token) => {
                let mut piece = CompletionChoice { index, ..CompletionChoice::default() };
                self.choices[index].tokens += 1;
                piece.text = token.text;
                if self.answer.logprobs {
                    let mut all = CompletionLogprobs::default();
                    let offset = self.choices[index].offset;
                    self.choices[index].offset =
                        all.push(token.token_id, token.logprob.as_ref(), offset, self.answer.writer());
                    piece.logprobs = Some(all);
                }
                piece.token_ids = self.answer.token_ids.then(|| vec![token.token_id]);
                if piece.text.is_empty() && piece.logprobs.is_none() && piece.token_ids.is_none() {
                    return Ok(Vec::new());
                }
                Ok(vec![self.chunk(piece)?])
            }
            Event::Done(done) => {
                if let Some(last) = done.weight_versions.last() {
                    self.patch_set.clone_from(&last.patches);
                }
                let mut piece = CompletionChoice { index, ..CompletionChoice::default() };
                piece.text = done.text_tail;
                piece.finish_reason = Some(reason_name(done.finish_reason));
                piece.stop_reason = done.stop_reason.map(Stopped::from);
                piece.weight_versions = weight_versions(&done.weight_versions);
                Ok(vec![self.chunk(piece)?])
            }
        }
    }

    fn end(&mut self) -> ApiResult<Vec<String>> {
        if !self.answer.usage.include_usage.unwrap_or(false) {
            return Ok(Vec::new());
        }
        let last = self.answer.response(Vec::new(), Some(self.usage()), &self.patch_set);
        Ok(vec![sse::chunk(&last)?])
    }
}

/// The prompts of completions
#[utoipa::path(post, path = "/v1/completions/render", tag = "openai", request_body = CompletionRequest, responses(
    (status = 200, description = "What would be generated from, for each prompt", body = Vec<Rendered>),
    (status = 400, description = "The request is wrong", body = ErrorBody),
    (status = 404, description = "There is no such model", body = ErrorBody),
    (status = 408, description = "It took too long", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
    (status = 415, description = "The body is not JSON", body = ErrorBody),
))]
async fn render_completions(
    State(app): State<Arc<App>>,
    Json(request): Json<CompletionRequest>,
) -> ApiResult<Json<Vec<Rendered>>> {
    request.refuse_unsupported()?;
    app.adapter(request.model.as_deref())?;
    let mut asked = request.asked(&app)?;
    let stream_options = request.streamed()?;
    asked.params.logprobs = check_logprobs(&app, "logprobs", request.logprobs)?;
    let specials = request.add_special_tokens.unwrap_or(true);
    let prompts = request.prompt.tokens(&app, specials, request.truncate_prompt_tokens).await?;
    check_choices(&app, prompts.len(), asked.n)?;
    asked.params.max_tokens = max_tokens(&app, &prompts, Some(request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)))?;
    let one = |token_ids: Vec<u32>| {
        Ok(Rendered {
            request_id: app.claim("cmpl-", None)?.as_str().to_owned(),
            token_ids,
            features: None,
            sampling_params: sampling_params(&asked),
            model: request.model.clone().unwrap_or_else(|| app.served_name.clone()),
            stream: stream_options.is_some(),
            stream_options: stream_options.clone().filter(|_| request.stream_options.is_some()),
            cache_salt: request.cache_salt.clone(),
            priority: request.priority.unwrap_or(0),
        })
    };
    prompts.into_iter().map(one).collect::<ApiResult<Vec<_>>>().map(Json)
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(completions)).routes(routes!(render_completions))
}
