//! `/inference/v1/generate`: tokens in, tokens out.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use patchhost_runtime::scheduler::{Event, TokenLogprob};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::serve::ask::sse::{self, Chunks};
use crate::serve::ask::{
    Batch, Limit, Output, Running, SamplingParams, Stopped, WeightVersion, cache_salt, check, check_choices,
    check_logprobs, max_tokens, number, refuse, weight_versions,
};
use crate::serve::error::{ApiResult, ErrorBody};
use crate::serve::json::Json;
use crate::serve::metrics::reason_name;
use crate::serve::state::App;

/// Body of `/inference/v1/generate`.
#[derive(Debug, Deserialize, ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: some fields are accepted and ask for nothing here")]
pub struct GenerateRequest {
    /// Id of the request, for aborts; a fresh one if absent.
    pub request_id: Option<String>,
    /// Tokens of the prompt.
    #[schema(min_items = 1)]
    pub token_ids: Vec<u32>,
    /// How tokens are chosen.
    #[serde(default)]
    pub sampling_params: SamplingParams,
    /// The served model, or a loaded adapter.
    pub model: Option<String>,
    /// Send tokens as they come.
    #[serde(default)]
    pub stream: bool,
    /// Accepted; sequences run in the order in which they come.
    pub priority: Option<i64>,
    /// Prefixes are shared only with requests that have the same salt.
    #[schema(min_length = 1, max_length = 1024)]
    pub cache_salt: Option<String>,
    #[schema(ignore)]
    features: Option<Value>,
    #[schema(ignore)]
    kv_transfer_params: Option<Value>,
}

/// Answer of `/inference/v1/generate`.
#[derive(Debug, Serialize, ToSchema)]
pub struct GenerateResponse {
    /// Id of the request.
    pub request_id: String,
    /// The sequences.
    pub choices: Vec<GenerateChoice>,
    /// Log probabilities of the prompt's tokens, none for the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<Logprob>>>,
}

/// One sequence, or a piece of one.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct GenerateChoice {
    /// Its number.
    pub index: usize,
    /// Its tokens.
    pub token_ids: Vec<u32>,
    /// Their log probabilities, where asked for.
    pub logprobs: Option<Logprobs>,
    /// Why it ended: `stop`, `length`, `abort`.
    pub finish_reason: Option<&'static str>,
    /// Which stop text or token ended it.
    pub stop_reason: Option<Stopped>,
    /// Which weights and patches made which of its tokens.
    pub weight_versions: Vec<WeightVersion>,
}

/// Log probabilities of a sequence.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Logprobs {
    /// One per token.
    pub content: Vec<Logprob>,
}

/// Log probability of a token.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Logprob {
    /// The token.
    pub token_id: u32,
    /// Its log probability.
    pub logprob: f64,
    /// How many tokens are at least as likely.
    pub rank: u32,
    /// The best at its place, and those that were asked for by id.
    pub top_logprobs: Vec<TopLogprob>,
}

/// Log probability of a token that could have been.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TopLogprob {
    /// The token.
    pub token_id: u32,
    /// Its log probability.
    pub logprob: f64,
}

impl From<&TokenLogprob> for Logprob {
    fn from(l: &TokenLogprob) -> Self {
        let top = |(id, logprob): &(u32, f32)| TopLogprob { token_id: *id, logprob: number(*logprob) };
        Self {
            token_id: l.token_id,
            logprob: number(l.logprob),
            rank: l.rank,
            top_logprobs: l.top.iter().chain(&l.extra).map(top).collect(),
        }
    }
}

/// Tokens in, tokens out
#[utoipa::path(post, path = "/inference/v1/generate", tag = "rl", request_body = GenerateRequest, responses(
    (status = 200, description = "The tokens, or a stream of them", content(
        (GenerateResponse = "application/json"),
        (String = "text/event-stream"),
    )),
    (status = "4XX", description = "Refused", body = ErrorBody),
    (status = 503, description = "Not now", body = ErrorBody),
))]
async fn generate(State(app): State<Arc<App>>, Json(request): Json<GenerateRequest>) -> ApiResult<Response> {
    let why = "this server takes tokens of text only, and keeps its own KV cache";
    refuse(
        &[("features", &request.features, why), ("kv_transfer_params", &request.kv_transfer_params, why)],
        |_, _| false,
    )?;
    check(&app, &request.token_ids)?;
    let mut asked = request.sampling_params.asked(&app)?.structured(&app).await?;
    asked.params.cache_salt = cache_salt("cache_salt", request.cache_salt.as_deref())?;
    let prompts = vec![request.token_ids];
    check_choices(&app, 1, asked.n)?;
    asked.params.max_tokens = max_tokens(&app, &prompts, Some(request.sampling_params.max_tokens.unwrap_or(16)))?;
    asked.params.logprobs = check_logprobs(&app, "logprobs", request.sampling_params.logprobs)?;
    let adapter = app.adapter(request.model.as_deref())?;
    let id = app.claim("", request.request_id.as_deref())?;
    let request_id = id.as_str().to_string();
    let batch = Batch { prompts, n: asked.n, params: asked.params, adapter };
    if request.stream {
        let running = Running::start(&app, id, batch, Limit::Idle)?;
        return Ok(sse::stream(running, Stream { request_id }));
    }
    let outputs = Running::start(&app, id, batch, Limit::Total)?.collect().await?;
    let prompt_logprobs = outputs
        .first()
        .and_then(|o| o.prompt_logprobs.as_ref())
        .map(|all| all.iter().map(|l| l.as_ref().map(Logprob::from)).collect());
    let choices = outputs.into_iter().enumerate().map(choice).collect();
    Ok(Json(GenerateResponse { request_id, choices, prompt_logprobs }).into_response())
}

fn choice((index, output): (usize, Output)) -> GenerateChoice {
    let content: Vec<Logprob> = output.logprobs.iter().map(Logprob::from).collect();
    GenerateChoice {
        index,
        token_ids: output.token_ids,
        logprobs: (!content.is_empty()).then_some(Logprobs { content }),
        finish_reason: Some(reason_name(output.finish_reason)),
        stop_reason: output.stop_reason.map(Stopped::from),
        weight_versions: weight_versions(&output.weight_versions),
    }
}

struct Stream {
    request_id: String,
}

impl Stream {
    fn chunk(&self, choice: GenerateChoice, prompt: Option<Vec<Option<Logprob>>>) -> ApiResult<Vec<String>> {
        let request_id = self.request_id.clone();
        Ok(vec![sse::chunk(&GenerateResponse { request_id, choices: vec![choice], prompt_logprobs: prompt })?])
    }
}

fn piece(index: usize) -> GenerateChoice {
    GenerateChoice { index, ..GenerateChoice::default() }
}

impl Chunks for Stream {
    fn event(&mut self, index: usize, event: Event) -> ApiResult<Vec<String>> {
        match event {
            Event::Started(started) => match started.prompt_logprobs {
                Some(all) if index == 0 => {
                    let all = all.iter().map(|l| l.as_ref().map(Logprob::from)).collect();
                    self.chunk(piece(index), Some(all))
                }
                _ => Ok(Vec::new()),
            },
            Event::Token(token) => {
                let logprobs = token.logprob.as_ref().map(|l| Logprobs { content: vec![l.into()] });
                self.chunk(GenerateChoice { token_ids: vec![token.token_id], logprobs, ..piece(index) }, None)
            }
            Event::Done(done) => {
                let last = GenerateChoice {
                    finish_reason: Some(reason_name(done.finish_reason)),
                    stop_reason: done.stop_reason.map(Stopped::from),
                    weight_versions: weight_versions(&done.weight_versions),
                    ..piece(index)
                };
                self.chunk(last, None)
            }
        }
    }

    fn end(&mut self) -> ApiResult<Vec<String>> {
        Ok(Vec::new())
    }
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(generate))
}
