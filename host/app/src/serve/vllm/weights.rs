//! New weights: `/start_weight_update`, `/update_weights`, `/finish_weight_update`, `/abort_weight_update`, and the calls
//! around them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri};
use patchhost_runtime::refit::Begin;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::serve::auth::RlControl;
use crate::serve::error::{ApiError, ApiResult, ErrorBody};
use crate::serve::json::{Json, OptionalJson};
use crate::serve::state::{App, blocking};
use crate::serve::weights::{
    ALLOW_NARROWING, Begun, Claim, Dialect, Narrowing, OfUpdate, Payload, Published, Terms, UpdateInfo, Updated,
    begin_of, version_text,
};

/// Transports that need no group of processes: their tensors come in requests.
const BACKENDS: [&str; 5] = ["http", "safetensors", "disk", "none", ""];

/// What happened.
#[derive(Debug, Serialize, ToSchema)]
pub struct Message {
    /// In words.
    pub message: String,
}

/// Body of `/init_weight_transfer_engine`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct InitWeightTransfer {
    /// The transport. Only those that need no group of processes: {} or {"backend": "http"}.
    #[schema(value_type = Option<Object>)]
    pub init_info: Value,
}

/// Prepare a transport: nothing is to be prepared for tensors in requests
#[utoipa::path(post, path = "/init_weight_transfer_engine", tag = "rl", request_body = Option<InitWeightTransfer>, responses(
    (status = 200, description = "Ready", body = Message),
    (status = "4XX", description = "A transport that is not here", body = ErrorBody),
))]
async fn init_weight_transfer_engine(
    _who: RlControl,
    OptionalJson(body): OptionalJson<InitWeightTransfer>,
) -> ApiResult<Json<Message>> {
    let empty = serde_json::Map::new();
    let info = body.init_info.as_object().unwrap_or(&empty);
    let backend = info.get("backend").and_then(Value::as_str).unwrap_or_default();
    if !BACKENDS.contains(&backend) || info.keys().any(|k| k != "backend") {
        return Err(ApiError::unsupported(
            "init_info",
            "it asks for a group of processes (NCCL, IPC, RDMA), and this host has CPUs only: tensors come in requests",
        ));
    }
    Ok(Json(Message { message: "Weight transfer initialized: send safetensors to /update_weights".to_string() }))
}

/// Give up a transport: there is none
#[utoipa::path(post, path = "/shutdown_weight_transfer_engine", tag = "rl", responses(
    (status = 200, description = "There is none", body = Message),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn shutdown_weight_transfer_engine(_who: RlControl) -> Json<Message> {
    Json(Message { message: "Weight transfer shut down".to_string() })
}

/// Body of `/start_weight_update`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct StartWeightUpdate {
    /// What the new weights are called; `/finish_weight_update` can say it too.
    pub weight_version: Option<Value>,
    /// What will come: {"tensors": {NAME: {"dtype", "shape", "sha256"}}}; anything else is refused then.
    #[schema(value_type = Option<Object>)]
    pub manifest: Option<Value>,
    /// vLLM: the tensors have the checkpoint's names. Always so here.
    pub is_checkpoint_format: Option<bool>,
    /// Take tensors that come less precise than the model is declared. Every request of an update can say it, in the query
    /// (`?allow_narrowing=true`) and as the header `X-Allow-Narrowing: true` too.
    pub allow_narrowing: bool,
    /// False where only a part of the tensors will come: the rest stays as it is live. Every request of an update can say it, in
    /// the query (`?complete=false`) and as the header `X-Complete: false` too.
    #[schema(value_type = Option<bool>)]
    pub complete: Option<Value>,
    /// What the names of the tensors become: {FROM: TO}, FROM at the beginning of a component of a name, or with `^` at the
    /// beginning of the name. Every request with tensors can say it, in the query (`?rename=FROM=TO`) and as the header
    /// `X-Rename` too.
    #[schema(value_type = Option<Object>)]
    pub rename: Option<Value>,
    /// The trainer's own step: swaps that wait for a step go by it.
    pub step: Option<u64>,
    /// An id of the client's own; each request of the update has to name it then.
    pub update_id: Option<String>,
}

/// What began.
#[derive(Debug, Serialize, ToSchema)]
pub struct StartAnswer {
    /// In words.
    pub message: &'static str,
    /// Its id.
    #[serde(flatten)]
    pub begun: Begun,
}

/// Begin an update of the weights
#[utoipa::path(post, path = "/start_weight_update", tag = "rl", params(OfUpdate), request_body = Option<StartWeightUpdate>, responses(
    (status = 200, description = "Send tensors", body = StartAnswer),
    (status = 409, description = "Another update is open", body = ErrorBody),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn start_weight_update(
    RlControl(actor): RlControl,
    narrowing: Narrowing,
    terms: Terms,
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    OptionalJson(body): OptionalJson<StartWeightUpdate>,
) -> ApiResult<Json<StartAnswer>> {
    let claim = Claim::of(Dialect::Vllm, &uri, &headers)?.or(body.update_id)?;
    if body.is_checkpoint_format == Some(false) {
        return Err(ApiError::unsupported(
            "is_checkpoint_format",
            "tensors come under the checkpoint's names; patches and the host decide where they go",
        ));
    }
    let terms = terms.and(Terms::of(body.complete.as_ref(), body.rename.as_ref())?)?;
    let mut begin = terms.begin(begin_of(version_text(body.weight_version)?, body.manifest)?);
    (begin.allow_narrowing, begin.step) = (narrowing.allowed(body.allow_narrowing), body.step);
    let begun = blocking(&app, move |app| app.rl.begin(begin, &claim, &actor)).await?;
    Ok(Json(StartAnswer { message: "Weight update started", begun }))
}

/// Body of `/update_weights` as JSON.
#[derive(Debug, Deserialize, ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: the body is read as a payload")]
pub struct UpdateWeights {
    /// One, or several.
    #[schema(value_type = UpdateInfo)]
    update_info: Value,
    /// Take tensors that come less precise than the model is declared.
    #[serde(default)]
    allow_narrowing: bool,
    /// False where only a part of the tensors comes: the rest stays as it is live.
    #[serde(default)]
    complete: Option<bool>,
    /// What the names become: {FROM: TO}.
    #[schema(value_type = Option<Object>)]
    rename: Option<Value>,
}

/// What happened to tensors.
#[derive(Debug, Serialize, ToSchema)]
pub struct UpdateAnswer {
    /// In words.
    pub message: String,
    /// In numbers.
    #[serde(flatten)]
    pub updated: Updated,
}

/// Send tensors: a part of the update that was begun, or (where none was) all of them at once
///
/// The body is safetensors bytes (`application/octet-stream` or `application/x-safetensors`); or raw bytes described by
/// the query or header (`update_info`, `bucket_meta`, or `name`, `dtype`, `shape`, `offset`); or `application/x-bucket`
/// (eight bytes of length, JSON, raw bytes); or JSON with base64 or a path in a root. Pickles and IPC handles are refused.
#[utoipa::path(post, path = "/update_weights", tag = "rl", params(OfUpdate),
    request_body(content(
        (UpdateWeights = "application/json"),
        (Vec<u8> = "application/octet-stream"),
    )),
    responses(
        (status = 200, description = "They are here, or live", body = UpdateAnswer),
        (status = 409, description = "Another update is open", body = ErrorBody),
        (status = 422, description = "The weights were refused; the old ones serve on", body = ErrorBody),
        (status = "4XX", description = "Refused", body = ErrorBody),
    ))]
async fn update_weights(
    RlControl(actor): RlControl,
    narrowing: Narrowing,
    terms: Terms,
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<Json<UpdateAnswer>> {
    let claim = Claim::of(Dialect::Vllm, request.uri(), request.headers())?;
    app.rl.expects(&claim)?;
    let mut payload = Payload::read(request, &app.rl).await?;
    let claim = claim.or(payload.text("update_id"))?;
    let version = payload.text("weight_version");
    let narrow = narrowing.allowed(payload.flag(ALLOW_NARROWING, false));
    let terms = terms.and(payload.terms()?)?;
    let updated = blocking(&app, move |app| {
        let _place = payload.place();
        let pieces = payload.pieces(&app.roots)?;
        let begin = terms.begin(Begin { allow_narrowing: narrow, ..begin_of(version, None)? });
        app.rl.take(begin, &claim, &pieces, &actor)
    })
    .await?;
    let message = match &updated {
        Updated::Received(received) => format!("Received; nothing is live before {}", received.ends_with),
        Updated::Published(_) => "Weights updated".to_string(),
    };
    Ok(Json(UpdateAnswer { message, updated }))
}

/// Body of `/finish_weight_update`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct FinishWeightUpdate {
    /// What the new weights are called.
    pub weight_version: Option<Value>,
    /// Take tensors that came less precise than the model is declared.
    pub allow_narrowing: bool,
    /// False where only a part of the tensors came: the rest stays as it is live.
    #[schema(value_type = Option<bool>)]
    pub complete: Option<Value>,
    /// Which update, as begin answered it.
    pub update_id: Option<String>,
}

/// What was published.
#[derive(Debug, Serialize, ToSchema)]
pub struct FinishAnswer {
    /// In words.
    pub message: &'static str,
    /// In numbers.
    #[serde(flatten)]
    pub published: Published,
}

/// End an update: all of it is proved, and live in one step
#[utoipa::path(post, path = "/finish_weight_update", tag = "rl", params(OfUpdate), request_body = Option<FinishWeightUpdate>, responses(
    (status = 200, description = "The new weights are live", body = FinishAnswer),
    (status = 409, description = "No update is open", body = ErrorBody),
    (status = 422, description = "The weights were refused; the old ones serve on", body = ErrorBody),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn finish_weight_update(
    _who: RlControl,
    narrowing: Narrowing,
    terms: Terms,
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    OptionalJson(body): OptionalJson<FinishWeightUpdate>,
) -> ApiResult<Json<FinishAnswer>> {
    let claim = Claim::of(Dialect::Vllm, &uri, &headers)?.or(body.update_id)?;
    let (version, allow_narrowing) = (version_text(body.weight_version)?, narrowing.allowed(body.allow_narrowing));
    let said = terms.and(Terms::of(body.complete.as_ref(), None)?)?;
    let said = said.begin(Begin { version, allow_narrowing, ..Begin::default() });
    let published = blocking(&app, move |app| app.rl.finish(&claim, said)).await?;
    Ok(Json(FinishAnswer { message: "Weight update finished", published }))
}

/// Give an update up: what came is forgotten
#[utoipa::path(post, path = "/abort_weight_update", tag = "rl", responses(
    (status = 200, description = "It is forgotten, or none was open", body = Message),
    (status = 409, description = "Another update than the one that is named is open", body = ErrorBody),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn abort_weight_update(
    _who: RlControl,
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> ApiResult<Json<Message>> {
    let claim = Claim::of(Dialect::Vllm, &uri, &headers)?;
    let was = blocking(&app, move |app| app.rl.abort(&claim)).await?;
    let message = if was { "Weight update aborted" } else { "No weight update was open" };
    Ok(Json(Message { message: message.to_string() }))
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(init_weight_transfer_engine))
        .routes(routes!(shutdown_weight_transfer_engine))
        .routes(routes!(start_weight_update))
        .routes(routes!(update_weights))
        .routes(routes!(finish_weight_update))
        .routes(routes!(abort_weight_update))
}
