//! Stopping, aborting, memory and caches: `/pause_generation`, `/continue_generation`, `/abort_request`, `/flush_cache`,
//! `/release_memory_occupation`, `/resume_memory_occupation`.

use std::sync::Arc;

use axum::extract::State;
use patchhost_runtime::scheduler::PauseMode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{SgResult, Success};
use crate::serve::auth::RlControl;
use crate::serve::control;
use crate::serve::error::ApiError;
use crate::serve::json::{Json, OptionalJson};
use crate::serve::state::{App, Memory, blocking};

/// What happens to requests that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They end with what they have.
    #[default]
    Abort,
    /// Their keys and values are dropped; afterwards the newest weights compute them anew, and they go on.
    Retract,
    /// They are frozen, keys and values included, and go on with the newest weights.
    InPlace,
}

/// Body of `/pause_generation`.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct PauseGeneration {
    /// What happens to requests that run; the default is `abort`.
    pub mode: Option<Mode>,
}

/// What happened.
#[derive(Debug, Serialize, ToSchema)]
pub struct Message {
    /// In words.
    pub message: &'static str,
    /// `ok`.
    pub status: &'static str,
}

/// Stop generating, for new weights
#[utoipa::path(post, path = "/pause_generation", tag = "rl", request_body = Option<PauseGeneration>, responses(
    (status = 200, description = "Nothing runs", body = Message),
    (status = "4XX", description = "Refused", body = Success),
))]
async fn pause_generation(
    _who: RlControl,
    State(app): State<Arc<App>>,
    OptionalJson(body): OptionalJson<PauseGeneration>,
) -> SgResult<Json<Message>> {
    let mode = match body.mode.unwrap_or_default() {
        Mode::Abort => PauseMode::Abort,
        Mode::Retract => PauseMode::Retract,
        Mode::InPlace => PauseMode::Keep,
    };
    blocking(&app, move |app| Ok(app.scheduler.pause(mode))).await?;
    Ok(Json(Message { message: "Generation paused successfully.", status: "ok" }))
}

/// Go on
#[utoipa::path(post, path = "/continue_generation", tag = "rl", responses(
    (status = 200, description = "Requests run", body = Message),
    (status = "4XX", description = "Refused", body = Success),
))]
async fn continue_generation(_who: RlControl, State(app): State<Arc<App>>) -> SgResult<Json<Message>> {
    control::resume(&app).await?;
    Ok(Json(Message { message: "Generation continued successfully.", status: "ok" }))
}

/// Body of `/abort_request`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct AbortRequest {
    /// Id of the request.
    pub rid: Option<String>,
    /// All requests.
    pub abort_all: bool,
}

/// End a request with what it has, or all
#[utoipa::path(post, path = "/abort_request", tag = "rl", request_body = AbortRequest, responses(
    (status = 200, description = "They end", body = Success),
    (status = "4XX", description = "Refused", body = Success),
))]
async fn abort_request(
    _who: RlControl,
    State(app): State<Arc<App>>,
    OptionalJson(body): OptionalJson<AbortRequest>,
) -> SgResult<Json<Success>> {
    let ids = match (body.abort_all, body.rid.filter(|rid| !rid.is_empty())) {
        (true, _) => None,
        (false, Some(rid)) => Some(vec![rid]),
        (false, None) => {
            return Err(ApiError::bad("this abort", "it names no request", "give `rid`, or `abort_all`").into());
        }
    };
    let n = blocking(&app, move |app| Ok(control::abort(app, ids.as_deref()))).await?;
    Ok(Json(Success::good(format!("Aborted {n} sequences."))))
}

/// Forget all prefixes
#[utoipa::path(method(get, post), path = "/flush_cache", tag = "rl", responses(
    (status = 200, description = "They are forgotten", body = Success),
    (status = "4XX", description = "Refused", body = Success),
))]
async fn flush_cache(_who: RlControl, State(app): State<Arc<App>>) -> SgResult<Json<Success>> {
    control::forget_prefixes(&app).await?;
    Ok(Json(Success::good("Cache flushed.")))
}

/// Body of `/release_memory_occupation` and `/resume_memory_occupation`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct MemoryOccupation {
    /// `weights`, `kv_cache`; all if absent.
    pub tags: Option<Vec<String>>,
}

impl MemoryOccupation {
    fn memory(&self) -> Result<Vec<Memory>, ApiError> {
        let Some(tags) = &self.tags else { return Ok(vec![Memory::Weights, Memory::KvCache]) };
        let mut all = Vec::new();
        for tag in tags {
            all.extend(control::tagged(tag)?);
        }
        Ok(all)
    }
}

/// Give memory back: requests that run are aborted; those that come wait
#[utoipa::path(post, path = "/release_memory_occupation", tag = "rl", request_body = Option<MemoryOccupation>, responses(
    (status = 200, description = "It is given back", body = Success),
    (status = "4XX", description = "Refused", body = Success),
))]
async fn release_memory_occupation(
    _who: RlControl,
    State(app): State<Arc<App>>,
    OptionalJson(body): OptionalJson<MemoryOccupation>,
) -> SgResult<Json<Success>> {
    let what = body.memory()?;
    blocking(&app, move |app| control::release(app, &what, PauseMode::Abort, 1)).await?;
    Ok(Json(Success::good("Memory released.")))
}

/// Get ready again
#[utoipa::path(post, path = "/resume_memory_occupation", tag = "rl", request_body = Option<MemoryOccupation>, responses(
    (status = 200, description = "It is awake, or a part of it", body = Success),
    (status = "4XX", description = "Refused", body = Success),
))]
async fn resume_memory_occupation(
    _who: RlControl,
    State(app): State<Arc<App>>,
    OptionalJson(body): OptionalJson<MemoryOccupation>,
) -> SgResult<Json<Success>> {
    let what = body.memory()?;
    blocking(&app, move |app| {
        control::restore(app, &what);
        Ok(())
    })
    .await?;
    Ok(Json(Success::good("Memory resumed.")))
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(pause_generation))
        .routes(routes!(continue_generation))
        .routes(routes!(abort_request))
        .routes(routes!(flush_cache))
        .routes(routes!(release_memory_occupation))
        .routes(routes!(resume_memory_occupation))
}
