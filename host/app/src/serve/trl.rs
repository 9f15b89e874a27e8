//! Endpoints by the names of TRL's `trl vllm-serve`, with its trailing slashes.
//!
//! TRL sends one parameter after the other and then `/reset_prefix_cache/`; there is no call that begins or ends an
//! update. So the first parameter opens one, and `/reset_prefix_cache/` ends it: until then the old weights serve. When the
//! first comes again, the trainer was started again, and so is the update.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri};
use patchhost_runtime::grammar::Source;
use patchhost_runtime::refit::Begin;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ask::{
    Batch, Limit, Prompt, Running, SamplingParams, Structure, WeightVersion, check_choices, max_tokens, number, refuse,
    weight_versions,
};
use super::auth::RlControl;
use super::doors::Door;
use super::error::{ApiError, ApiResult, ErrorBody};
use super::fields::Ignored;
use super::health::serves;
use super::json::{Json, of_value};
use super::state::{App, blocking};
use super::weights::{
    BucketEntry, BucketMeta, Claim, Content, Dialect, Narrowing, OfUpdate, Payload, Published, Terms, base64_bytes,
    bucket,
};

/// It serves.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    /// `ok`.
    status: &'static str,
}

/// Health, as TRL asks for it
#[utoipa::path(get, path = "/health/", tag = "trl", responses(
    (status = 200, description = "It serves", body = Health),
    (status = 503, description = "Weights are being loaded, or it goes down", body = ErrorBody),
))]
async fn health(State(app): State<Arc<App>>) -> ApiResult<Json<Health>> {
    serves(&app, "health").map(|()| Json(Health { status: "ok" }))
}

/// How many processes share the model.
#[derive(Debug, Serialize, ToSchema)]
struct World {
    /// One.
    world_size: usize,
}

/// How many processes share the model: one
#[utoipa::path(get, path = "/get_world_size/", tag = "trl", responses((status = 200, description = "One", body = World)))]
async fn get_world_size() -> Json<World> {
    Json(World { world_size: 1 })
}

/// The same for older clients.
#[derive(Debug, Serialize, ToSchema)]
struct TensorParallel {
    /// One.
    tensor_parallel_size: usize,
}

/// How many processes share the model, for older clients
#[utoipa::path(get, path = "/get_tensor_parallel_size/", tag = "trl", responses(
    (status = 200, description = "One", body = TensorParallel),
))]
async fn get_tensor_parallel_size() -> Json<TensorParallel> {
    Json(TensorParallel { tensor_parallel_size: 1 })
}

/// Body of `/generate/`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct GenerateRequest {
    /// Texts, or lists of tokens.
    pub prompts: Prompt,
    /// Sequences for each.
    #[serde(default = "one")]
    pub n: u32,
    /// Above 1, tokens that were there become less likely.
    pub repetition_penalty: Option<f32>,
    /// 0 is greedy; the default is 1.
    pub temperature: Option<f32>,
    /// Only the most likely tokens whose probabilities sum to this.
    pub top_p: Option<f32>,
    /// Only this many of the most likely tokens; -1 is all.
    pub top_k: Option<i32>,
    /// Only tokens at least this times as likely as the best.
    pub min_p: Option<f32>,
    /// Most tokens; the default is 16.
    pub max_tokens: Option<u32>,
    /// Only this many of the last tokens of each prompt.
    pub truncate_prompt_tokens: Option<u32>,
    /// Give log probabilities; 0 (the default) those of the sampled tokens.
    pub logprobs: Option<u32>,
    /// More of vLLM's sampling parameters.
    pub generation_kwargs: Option<SamplingParams>,
    #[schema(ignore)]
    images: Option<Value>,
    /// Older name of `structured_outputs_regex`.
    guided_decoding_regex: Option<String>,
    /// A regular expression that matches each answer as a whole.
    structured_outputs_regex: Option<String>,
}

fn one() -> u32 {
    1
}

/// Answer of `/generate/`.
#[derive(Debug, Serialize, ToSchema)]
pub struct GenerateResponse {
    /// Tokens of each prompt.
    pub prompt_ids: Vec<Vec<u32>>,
    /// Tokens of each sequence, those of one prompt after the other.
    pub completion_ids: Vec<Vec<u32>>,
    /// Log probability of each token.
    pub logprobs: Vec<Vec<f64>>,
    /// What they are: `processed_logprobs`, as `trl vllm-serve` has them, unless `--logprobs-mode` says otherwise.
    pub logprobs_mode: &'static str,
    /// Which weights made which sequence.
    pub weight_versions: Vec<Vec<WeightVersion>>,
}

/// Generate, as TRL asks for it
#[utoipa::path(post, path = "/generate/", tag = "trl", request_body = GenerateRequest, responses(
    (status = 200, description = "The tokens", body = GenerateResponse),
    (status = "4XX", description = "Refused", body = ErrorBody),
    (status = 503, description = "Not now", body = ErrorBody),
))]
async fn generate(
    State(app): State<Arc<App>>,
    Json(request): Json<GenerateRequest>,
) -> ApiResult<Json<GenerateResponse>> {
    refuse(&[("images", &request.images, "the model takes text only")], |_, _| false)?;
    let regex = |field, regex: &Option<String>| regex.clone().map(|r| Structure::new(field, Source::Regex(r)));
    let structure = Structure::only([
        regex("guided_decoding_regex", &request.guided_decoding_regex),
        regex("structured_outputs_regex", &request.structured_outputs_regex),
    ])?;
    let more = request.generation_kwargs.clone().unwrap_or_default();
    let sampling = SamplingParams {
        n: Some(request.n),
        repetition_penalty: request.repetition_penalty.or(more.repetition_penalty),
        temperature: request.temperature.or(more.temperature),
        top_p: request.top_p.or(more.top_p),
        top_k: request.top_k.or(more.top_k),
        min_p: request.min_p.or(more.min_p),
        structure,
        ..more
    };
    let mut asked = sampling.asked(&app)?.structured(&app).await?;
    let prompts = request.prompts.tokens(&app, true, request.truncate_prompt_tokens).await?;
    check_choices(&app, prompts.len(), asked.n)?;
    let most = request.max_tokens.or(sampling.max_tokens).unwrap_or(16);
    asked.params.max_tokens = max_tokens(&app, &prompts, Some(most))?;
    asked.params.logprobs = Some(request.logprobs.unwrap_or(0).min(1) as usize);
    asked.params.logprobs_mode = app.logprobs_mode(Door::Trl);
    let logprobs_mode = asked.params.logprobs_mode.name();
    let id = app.claim("", None)?;
    let batch = Batch { prompts: prompts.clone(), n: asked.n, params: asked.params, adapter: None };
    let outputs = Running::start(&app, id, batch, Limit::Total)?.collect().await?;
    Ok(Json(GenerateResponse {
        prompt_ids: prompts,
        completion_ids: outputs.iter().map(|o| o.token_ids.clone()).collect(),
        logprobs: outputs.iter().map(|o| o.logprobs.iter().map(|l| number(l.logprob)).collect()).collect(),
        logprobs_mode,
        weight_versions: outputs.iter().map(|o| weight_versions(&o.weight_versions)).collect(),
    }))
}

/// Join an NCCL group: refused
#[utoipa::path(post, path = "/init_communicator/", tag = "refused", request_body = Object, responses(
    (status = "4XX", description = "Always", body = ErrorBody),
))]
async fn init_communicator(_who: RlControl) -> ApiError {
    ApiError::bad(
        "`/init_communicator/`",
        "it joins an NCCL group, and this host has CPUs only: parameters come in requests",
        "send each to POST /update_named_param/?name=…&dtype=…&shape=… with its bytes as the body, then POST \
         /reset_prefix_cache/",
    )
}

/// What happened.
#[derive(Debug, Serialize, ToSchema)]
struct Message {
    /// In words.
    message: String,
    /// The weights that are live now, where an update ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<Published>,
}

impl Message {
    fn plain(message: impl Into<String>) -> Json<Self> {
        Json(Self { message: message.into(), published: None })
    }
}

/// Leave the NCCL group: there is none
#[utoipa::path(post, path = "/close_communicator/", tag = "trl", responses(
    (status = 200, description = "There is none", body = Message),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn close_communicator(_who: RlControl) -> Json<Message> {
    Message::plain("There is no communicator to close")
}

/// Body of `/update_named_param/` as JSON.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct UpdateNamedParam {
    /// Name of the parameter.
    pub name: String,
    /// `torch.bfloat16`, …
    pub dtype: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Base64 of its bytes. (Upstream they come over NCCL.)
    pub data: Option<String>,
    /// Take parameters that come less precise than the model is declared. Also in the query (`?allow_narrowing=true`) and as
    /// the header `X-Allow-Narrowing: true`, here and with `/reset_prefix_cache/`.
    #[serde(default)]
    pub allow_narrowing: bool,
    /// False where only a part of the parameters comes: the rest stays as it is live. Also in the query (`?complete=false`) and as
    /// the header `X-Complete: false`, here and with `/reset_prefix_cache/`.
    #[schema(value_type = Option<bool>)]
    pub complete: Option<Value>,
    /// What the name becomes: {FROM: TO}. Also in the query (`?rename=FROM=TO`) and as the header `X-Rename`.
    #[schema(value_type = Option<Object>)]
    pub rename: Option<Value>,
}

/// Send one parameter; the first one opens an update, `/reset_prefix_cache/` ends it
#[utoipa::path(post, path = "/update_named_param/", tag = "trl",
    params(
        ("name" = Option<String>, Query, description = "Name of the parameter, with raw bytes as the body"),
        ("dtype" = Option<String>, Query, description = "Its element type"),
        ("shape" = Option<String>, Query, description = "Its dimensions, with commas"),
        ("allow_narrowing" = Option<bool>, Query, description = "Take parameters that come less precise than the model is declared"),
        ("complete" = Option<bool>, Query, description = "False where only a part of the parameters comes, and the rest stays"),
        ("rename" = Option<String>, Query, description = "FROM=TO: what the name becomes"),
        ("update_id" = Option<String>, Query, description = "The sender's own name of this update: all of its requests have to give it then"),
    ),
    request_body(content(
        (UpdateNamedParam = "application/json"),
        (Vec<u8> = "application/octet-stream"),
    )),
    responses(
        (status = 200, description = "It is here", body = Message),
        (status = "4XX", description = "Refused", body = ErrorBody),
    ))]
async fn update_named_param(
    RlControl(actor): RlControl,
    narrowing: Narrowing,
    terms: Terms,
    State(app): State<Arc<App>>,
    ignored: Ignored,
    request: Request,
) -> ApiResult<Json<Message>> {
    let claim = Claim::of(Dialect::Trl, request.uri(), request.headers())?;
    app.rl.expects(&claim)?;
    let mut payload = Payload::read(request, &app.rl).await?;
    let received = blocking(&app, move |app| {
        let _place = payload.place();
        let (pieces, narrow, terms) = match payload.content {
            Content::Json(value) => {
                let body: UpdateNamedParam = of_value(value, &ignored)?;
                let terms = terms.and(Terms::of(body.complete.as_ref(), body.rename.as_ref())?)?;
                let data = body.data.ok_or_else(|| {
                    ApiError::bad(
                        "this parameter",
                        "its bytes are not here: this server has no NCCL group to receive them from",
                        "send them as base64 in `data`, or as the body with ?name=…&dtype=…&shape=…",
                    )
                    .param("data")
                })?;
                let bytes = base64_bytes("`data`", &data)?;
                let entry = BucketEntry {
                    name: body.name,
                    dtype: body.dtype,
                    shape: body.shape,
                    offset: 0,
                    nbytes: Some(bytes.len()),
                    tensor_offset: 0,
                };
                (bucket(BucketMeta::List(vec![entry]), &bytes)?, body.allow_narrowing, terms)
            }
            _ => {
                let terms = terms.and(payload.terms()?)?;
                (payload.pieces(&app.roots)?, false, terms)
            }
        };
        let begin = terms.begin(Begin { allow_narrowing: narrowing.allowed(narrow), ..Begin::default() });
        app.rl.parameter(begin, &claim, &pieces, &actor)
    })
    .await?;
    Ok(Message::plain(format!("Request received, {} parameters came so far", received.tensors_total)))
}

/// Forget the prefixes, and publish the parameters that were sent
#[utoipa::path(post, path = "/reset_prefix_cache/", tag = "trl", params(OfUpdate), responses(
    (status = 200, description = "Done", body = Message),
    (status = 422, description = "The weights were refused; the old ones serve on", body = ErrorBody),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn reset_prefix_cache(
    _who: RlControl,
    narrowing: Narrowing,
    terms: Terms,
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> ApiResult<Json<Message>> {
    let claim = Claim::of(Dialect::Trl, &uri, &headers)?;
    let published = blocking(&app, move |app| {
        if app.rl.is_implicit() {
            let allow_narrowing = narrowing.allowed(false);
            return app.rl.finish(&claim, terms.begin(Begin { allow_narrowing, ..Begin::default() })).map(Some);
        }
        app.scheduler.reset_prefix_cache();
        Ok(None)
    })
    .await?;
    Ok(Json(Message { message: "Request received, resetting prefix cache".to_string(), published }))
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(get_world_size))
        .routes(routes!(get_tensor_parallel_size))
        .routes(routes!(generate))
        .routes(routes!(init_communicator))
        .routes(routes!(close_communicator))
        .routes(routes!(update_named_param))
        .routes(routes!(reset_prefix_cache))
}
