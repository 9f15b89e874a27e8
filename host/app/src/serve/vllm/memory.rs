//! Giving memory back between rollouts: `/sleep`, `/wake_up`, `/is_sleeping`, `/release_kv_cache_memory`.
//!
//! Keys, values and prefixes are given back. Weights lie in the host's memory anyway, where vLLM's level 1 moves them to;
//! they stay there at level 2 too. Requests that come while the server sleeps wait in the queue.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::control::{Mode, Status};
use crate::serve::auth::RlControl;
use crate::serve::control::{forget_prefixes, release, restore, tagged};
use crate::serve::error::{ApiError, ApiResult, ErrorBody};
use crate::serve::json::{Json, UrlQuery};
use crate::serve::state::{App, Memory, blocking};

/// Query of `/sleep`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct SleepQuery {
    /// 1 or 2; both give the same memory back.
    pub level: Option<u8>,
    /// What happens to requests that run: `abort` (the default) or `wait`. `keep` is refused: they hold what is to be
    /// given back.
    pub mode: Mode,
}

/// Give memory back
#[utoipa::path(post, path = "/sleep", tag = "rl", params(SleepQuery), responses(
    (status = 200, description = "It sleeps", body = Status),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn sleep(
    _who: RlControl,
    State(app): State<Arc<App>>,
    UrlQuery(query): UrlQuery<SleepQuery>,
) -> ApiResult<Json<Status>> {
    let level = query.level.unwrap_or(1);
    if !(1..=2).contains(&level) {
        return Err(ApiError::bad(format!("`level` {level}"), "it must be 1 or 2", "give one of them").param("level"));
    }
    if query.mode == Mode::Keep {
        return Err(ApiError::unsupported("mode", "requests that are kept hold the memory that is to be given back"));
    }
    blocking(&app, move |app| release(app, &[Memory::Weights, Memory::KvCache], query.mode.into(), level)).await?;
    Ok(Json(Status { status: "sleeping" }))
}

/// Get ready again
#[utoipa::path(post, path = "/wake_up", tag = "rl",
    params(("tags" = Option<Vec<String>>, Query, description = "weights, kv_cache; all if absent. Requests run when both are awake")),
    responses(
        (status = 200, description = "It is awake, or a part of it", body = Status),
        (status = "4XX", description = "Refused", body = ErrorBody),
    ))]
async fn wake_up(_who: RlControl, State(app): State<Arc<App>>, uri: axum::http::Uri) -> ApiResult<Json<Status>> {
    // `tags` may stand there several times.
    let mut what: Vec<Memory> = Vec::new();
    let mut any = false;
    for tag in uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.strip_prefix("tags=")) {
        any = true;
        what.extend(tagged(tag)?);
    }
    if !any {
        what = vec![Memory::Weights, Memory::KvCache];
    }
    blocking(&app, move |app| {
        restore(app, &what);
        Ok(())
    })
    .await?;
    let status = if app.is_sleeping() { "partly awake" } else { "awake" };
    Ok(Json(Status { status }))
}

/// Whether the server sleeps.
#[derive(Debug, Serialize, ToSchema)]
struct IsSleeping {
    /// Whether any part of it does.
    is_sleeping: bool,
}

/// Whether the server sleeps
#[utoipa::path(get, path = "/is_sleeping", tag = "rl", responses((status = 200, description = "Whether it does", body = IsSleeping)))]
async fn is_sleeping(State(app): State<Arc<App>>) -> Json<IsSleeping> {
    Json(IsSleeping { is_sleeping: app.is_sleeping() })
}

/// Give the memory of keys, values and prefixes back; refused while requests hold some
#[utoipa::path(post, path = "/release_kv_cache_memory", tag = "rl", responses(
    (status = 200, description = "It is given back", body = Status),
    (status = 409, description = "Requests hold some", body = ErrorBody),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn release_kv_cache_memory(_who: RlControl, State(app): State<Arc<App>>) -> ApiResult<Json<Status>> {
    let load = app.scheduler.load();
    if load.running > 0 {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "conflict",
            "the release of the KV cache",
            format!("{} sequences hold keys and values", load.running),
            "pause first (POST /pause?mode=abort or wait)",
        ));
    }
    forget_prefixes(&app).await?;
    Ok(Json(Status { status: "released" }))
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(sleep))
        .routes(routes!(wake_up))
        .routes(routes!(is_sleeping))
        .routes(routes!(release_kv_cache_memory))
}
