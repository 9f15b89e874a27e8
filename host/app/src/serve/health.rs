//! Whether the server lives, is ready, what it runs, and its metrics.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::{ApiError, ApiResult, ErrorBody};
use super::json::Json;
use super::state::App;

/// Seconds after which a server that is not ready may be asked again.
const RETRY: u32 = 5;

/// Liveness, as vLLM answers it: 200 without a body
#[utoipa::path(get, path = "/health", tag = "server", responses((status = 200, description = "It lives")))]
async fn health() -> StatusCode {
    StatusCode::OK
}

/// Liveness
#[utoipa::path(get, path = "/healthz", tag = "server", responses((status = 200, description = "It lives", body = Alive)))]
async fn healthz() -> Json<Alive> {
    Json(Alive { status: "ok" })
}

/// Readiness: weights are live and the server takes requests
#[utoipa::path(get, path = "/readyz", tag = "server", responses(
    (status = 200, description = "It is ready", body = Alive),
    (status = 503, description = "Not now", body = ErrorBody),
))]
async fn readyz(State(app): State<Arc<App>>) -> ApiResult<Json<Alive>> {
    let not = |why: &str| Err(ApiError::unavailable("readiness", why, "ask again in a moment", RETRY));
    if app.is_draining() {
        return not("the server is draining");
    }
    if app.is_sleeping() {
        return not("the server was put to sleep");
    }
    if app.live.engine().live().is_err() {
        return not("no weights have been published yet");
    }
    Ok(Json(Alive { status: "ok" }))
}

/// Version of this program
#[utoipa::path(get, path = "/version", tag = "server", responses((status = 200, description = "Its version", body = Version)))]
async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}

/// What runs: model, weights, patches, load
#[utoipa::path(get, path = "/status", tag = "server", responses((status = 200, description = "What runs", body = Object)))]
async fn status(State(app): State<Arc<App>>) -> Response {
    let status = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": app.served_name,
        "draining": app.is_draining(),
        "sleeping": app.is_sleeping(),
        "paused": app.scheduler.is_paused().map(|mode| format!("{mode:?}").to_lowercase()),
        "load": app.scheduler.load(),
        "live": app.live.status(),
    });
    Json(status).into_response()
}

/// The server lives.
#[derive(Debug, Serialize, ToSchema)]
struct Alive {
    /// `ok`.
    status: &'static str,
}

/// Version of this program.
#[derive(Debug, Serialize, ToSchema)]
struct Version {
    /// As cargo has it.
    version: &'static str,
}

/// Prometheus metrics
#[utoipa::path(get, path = "/metrics", tag = "server", responses(
    (status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"),
))]
async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let text = app.metrics.text().map_err(|e| ApiError::internal(&e))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(version))
        .routes(routes!(status))
        .routes(routes!(metrics))
}
