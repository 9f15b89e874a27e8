//! The routes, the layers around them, and the OpenAPI document that follows from the handlers' own types.

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, MatchedPath, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use super::auth::Via;
use super::error::ApiError;
use super::guard::{Doors, Guard};
use super::hosts::Reach;
use super::intake::Lingering;
use super::state::App;
use super::{admin, bodies, doors, fields, guard, health, info, loads, openai, sglang, tokenize, traces, trl, vllm};
use crate::base::text::clean;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "patchhost",
        description = "A model behind OpenAI's API, with patches that change while it serves."
    ),
    tags(
        (name = "openai", description = "OpenAI's API, with vLLM's extensions"),
        (name = "tokens", description = "Text to tokens and back"),
        (name = "rl", description = "Weights, adapters, pauses: by the names of vLLM and SGLang"),
        (name = "trl", description = "The same by the names of TRL"),
        (name = "admin", description = "Which patches run"),
        (name = "refused", description = "What vLLM, SGLang or TRL have and cannot be here"),
        (name = "server", description = "Liveness, readiness, status, metrics"),
    )
)]
struct Document;

/// Every route with its part of the document. A new module of endpoints needs one line here.
fn api() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(openai::routes())
        .merge(tokenize::routes())
        .merge(health::routes())
        .merge(info::routes())
        .merge(loads::routes())
        .merge(vllm::routes())
        .merge(trl::routes())
        .merge(admin::routes())
        .layer(middleware::from_fn(bodies::check))
        // It has that layer within its own, which writes errors in another form.
        .merge(sglang::routes())
}

/// What answers the requests of one listener.
pub fn router(app: &Arc<App>, via: Via, reach: Reach) -> Router {
    let (router, document) = api().split_for_parts();
    let guard = Arc::new(Guard { app: Arc::clone(app), doors: Doors::of(&document), reach });
    let (routes, document) = (Arc::new(bodies::Routes::of(&document)), written(&document));
    let router = router
        .route("/openapi.json", get(move || async move { ([(header::CONTENT_TYPE, "application/json")], document) }))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(guard, guard::guard))
        .layer(Extension(routes))
        .layer(Extension(via))
        .layer(middleware::map_request(|request: Request| async { Lingering::of(request) }))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(fields::say))
        .layer(middleware::from_fn_with_state(Arc::clone(app), doors::say));
    let router = match app.traces.clone() {
        Some(traces) => router.layer(middleware::from_fn_with_state((Arc::clone(app), traces), traces::trace)),
        None => router,
    };
    router.layer(middleware::from_fn_with_state(Arc::clone(app), count)).with_state(Arc::clone(app))
}

/// The document as it is sent: written once, since it is the largest answer that anybody can ask for.
fn written(document: &OpenApi) -> Bytes {
    // It is made of our own types, which can be written.
    Bytes::from(document.to_json().unwrap_or_default())
}

async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::not_found(format!("`{}`", clean(uri.path(), 200)), "there is no such endpoint", "see GET /openapi.json")
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{} `{}`", clean(method.as_str(), 20), clean(uri.path(), 200)),
        "this endpoint takes other methods",
        "see the header Allow, or GET /openapi.json",
    )
}

/// A bug in a handler costs its request, not the server.
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    ApiError::internal(&format!("a handler panicked: {}", text.unwrap_or("no message"))).into_response()
}

/// Counts answers by route (as declared: paths of strangers must not become labels) and status.
async fn count(State(app): State<Arc<App>>, route: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    app.metrics.answered(route.as_ref().map_or("(none)", MatchedPath::as_str), response.status().as_u16());
    response
}
