//! Stopping and going on: `/pause`, `/resume`, `/is_paused`, `/abort_requests`, `/reset_prefix_cache`.

use std::sync::Arc;

use axum::extract::State;
use patchhost_runtime::scheduler::PauseMode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::serve::auth::RlControl;
use crate::serve::control;
use crate::serve::error::{ApiResult, ErrorBody};
use crate::serve::json::{Json, OptionalJson, UrlQuery};
use crate::serve::state::{App, blocking};

/// What happened, in a word.
#[derive(Debug, Serialize, ToSchema)]
pub struct Status {
    /// `paused`, `resumed`, …
    pub status: &'static str,
}

/// What happens to requests that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They end with what they have.
    #[default]
    Abort,
    /// They run to their end first.
    Wait,
    /// They are frozen, and go on with the newest weights.
    Keep,
}

impl From<Mode> for PauseMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Abort => PauseMode::Abort,
            Mode::Wait => PauseMode::Wait,
            Mode::Keep => PauseMode::Keep,
        }
    }
}

/// Query of `/pause`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct PauseQuery {
    /// What happens to requests that run.
    pub mode: Mode,
    /// Forget the prefixes too; the default is true.
    pub clear_cache: Option<bool>,
}

/// Stop generating, for new weights
#[utoipa::path(post, path = "/pause", tag = "rl", params(PauseQuery), responses(
    (status = 200, description = "Nothing runs", body = Status),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn pause(
    _who: RlControl,
    State(app): State<Arc<App>>,
    UrlQuery(query): UrlQuery<PauseQuery>,
) -> ApiResult<Json<Status>> {
    blocking(&app, move |app| {
        app.scheduler.pause(query.mode.into());
        if query.clear_cache.unwrap_or(true) {
            app.scheduler.reset_prefix_cache();
        }
        Ok(())
    })
    .await?;
    Ok(Json(Status { status: "paused" }))
}

/// Go on
#[utoipa::path(post, path = "/resume", tag = "rl", responses(
    (status = 200, description = "Requests run", body = Status),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn resume(_who: RlControl, State(app): State<Arc<App>>) -> ApiResult<Json<Status>> {
    control::resume(&app).await?;
    Ok(Json(Status { status: "resumed" }))
}

/// Whether the server is paused.
#[derive(Debug, Serialize, ToSchema)]
pub struct IsPaused {
    /// Whether it is.
    pub is_paused: bool,
    /// How it was paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// Whether the server is paused
#[utoipa::path(get, path = "/is_paused", tag = "rl", responses((status = 200, description = "Whether it is", body = IsPaused)))]
async fn is_paused(State(app): State<Arc<App>>) -> Json<IsPaused> {
    let mode = app.scheduler.is_paused();
    Json(IsPaused { is_paused: mode.is_some(), mode: mode.map(|m| format!("{m:?}").to_lowercase()) })
}

/// Body of `/abort_requests`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct AbortRequests {
    /// Ids as the answers have them; all requests if absent.
    pub request_ids: Option<Vec<String>>,
}

/// What was aborted.
#[derive(Debug, Serialize, ToSchema)]
pub struct Aborted {
    /// `aborted`.
    pub status: &'static str,
    /// Sequences.
    pub aborted: usize,
}

/// End requests with what they have
#[utoipa::path(post, path = "/abort_requests", tag = "rl", request_body = Option<AbortRequests>, responses(
    (status = 200, description = "They end", body = Aborted),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn abort_requests(
    _who: RlControl,
    State(app): State<Arc<App>>,
    OptionalJson(body): OptionalJson<AbortRequests>,
) -> ApiResult<Json<Aborted>> {
    let aborted = blocking(&app, move |app| Ok(control::abort(app, body.request_ids.as_deref()))).await?;
    Ok(Json(Aborted { status: "aborted", aborted }))
}

/// The prefixes are forgotten.
#[derive(Debug, Serialize, ToSchema)]
pub struct Forgotten {
    /// Always true; a refusal is an error.
    pub success: bool,
    /// `reset`.
    pub status: &'static str,
}

/// Forget all prefixes
#[utoipa::path(post, path = "/reset_prefix_cache", tag = "rl", responses(
    (status = 200, description = "They are forgotten", body = Forgotten),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn reset_prefix_cache(_who: RlControl, State(app): State<Arc<App>>) -> ApiResult<Json<Forgotten>> {
    control::forget_prefixes(&app).await?;
    Ok(Json(Forgotten { success: true, status: "reset" }))
}

/// Forget processed images: there are none
#[utoipa::path(post, path = "/reset_mm_cache", tag = "rl", responses(
    (status = 200, description = "There are none", body = Status),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn reset_mm_cache(_who: RlControl) -> Json<Status> {
    Json(Status { status: "reset" })
}

/// Forget the outputs of encoders: there are none
#[utoipa::path(post, path = "/reset_encoder_cache", tag = "rl", responses(
    (status = 200, description = "There are none", body = Status),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn reset_encoder_cache(_who: RlControl) -> Json<Status> {
    Json(Status { status: "reset" })
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(is_paused))
        .routes(routes!(abort_requests))
        .routes(routes!(reset_prefix_cache))
        .routes(routes!(reset_mm_cache))
        .routes(routes!(reset_encoder_cache))
}
