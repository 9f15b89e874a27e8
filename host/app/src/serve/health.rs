//! Whether the server lives, is ready, what it runs, and its metrics.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::{ApiError, ApiResult, ErrorBody};
use super::json::Json;
use super::metrics::{Form, OPEN, PLAIN, plain};
use super::state::App;

/// Seconds after which a server that is not ready may be asked again.
const RETRY: u32 = 5;

/// Health, as vLLM and SGLang answer it: 200 without a body once weights serve, 503 before that and while it goes down
///
/// A server that is paused or asleep is well: its trainer wanted that.
#[utoipa::path(get, path = "/health", tag = "server", responses(
    (status = 200, description = "It serves"),
    (status = 503, description = "Weights are being loaded, or it goes down", body = ErrorBody),
))]
async fn health(State(app): State<Arc<App>>) -> ApiResult<StatusCode> {
    serves(&app, "health").map(|()| StatusCode::OK)
}

/// The same, as SageMaker asks for it
#[utoipa::path(method(get, post), path = "/ping", tag = "server", responses(
    (status = 200, description = "It serves"),
    (status = 503, description = "Weights are being loaded, or it goes down", body = ErrorBody),
))]
async fn ping(State(app): State<Arc<App>>) -> ApiResult<StatusCode> {
    serves(&app, "health").map(|()| StatusCode::OK)
}

/// Liveness: 200 as long as the program runs, also while weights are loaded
#[utoipa::path(get, path = "/livez", tag = "server", responses((status = 200, description = "It lives", body = Alive)))]
async fn livez() -> Json<Alive> {
    Json(Alive { status: "ok" })
}

/// Liveness, by Kubernetes' older name
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
    is_ready(&app)
}

/// Readiness, by SGLang's name
#[utoipa::path(get, path = "/ready", tag = "server", responses(
    (status = 200, description = "It is ready", body = Alive),
    (status = 503, description = "Not now", body = ErrorBody),
))]
async fn ready(State(app): State<Arc<App>>) -> ApiResult<Json<Alive>> {
    is_ready(&app)
}

fn is_ready(app: &App) -> ApiResult<Json<Alive>> {
    if app.is_sleeping() && !app.is_draining() {
        return Err(not_now("readiness", "the server was put to sleep"));
    }
    serves(app, "readiness").map(|()| Json(Alive { status: "ok" }))
}

/// Whether weights serve, and will for a while.
pub(super) fn serves(app: &App, what: &str) -> ApiResult<()> {
    if app.is_draining() {
        return Err(not_now(what, "the server is draining"));
    }
    if app.live.engine().live().is_err() {
        return Err(not_now(what, "no weights have been published yet: they are being loaded"));
    }
    Ok(())
}

fn not_now(what: &str, why: &str) -> ApiError {
    ApiError::unavailable(what, why, "ask again in a moment; GET /livez says whether the program runs", RETRY)
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
///
/// In Prometheus' own text form, or as OpenMetrics where `Accept` prefers that.
#[utoipa::path(get, path = "/metrics", tag = "server", responses(
    (status = 200, description = "The metrics", content(
        (String = "text/plain"),
        (String = "application/openmetrics-text"),
    )),
))]
async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let text = app.metrics.text().map_err(|e| ApiError::internal(&e))?;
    let (kind, text) = match Form::of(&headers) {
        Form::OpenMetrics => (OPEN, text),
        Form::Prometheus => (PLAIN, plain(&text)),
    };
    Ok(([(header::CONTENT_TYPE, kind), (header::VARY, "accept")], text).into_response())
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(ping))
        .routes(routes!(livez))
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(ready))
        .routes(routes!(version))
        .routes(routes!(status))
        .routes(routes!(metrics))
}
