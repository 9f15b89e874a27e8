//! Which route asks for what, before its handler sees the request: a name that the server may have ([`super::hosts`]), and an API
//! key ([`super::keys`]) or a token.
//!
//! What a route is stands in the OpenAPI document, by its tag. A route that nobody thought of here asks for a key.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi;

use super::auth::Caller;
use super::error::ApiResult;
use super::hosts::Reach;
use super::state::App;

/// Probes: they change nothing and say no more than whether the server lives, so any name will do. Orchestrators and routers ask by
/// whatever name they know.
const PROBES: [&str; 7] = ["/health", "/health/", "/healthz", "/livez", "/ready", "/readyz", "/ping"];
/// What answers without an API key besides: as in vLLM and SGLang. `/health_generate` makes one token.
const KEYLESS: [&str; 4] = ["/health_generate", "/version", "/metrics", "/openapi.json"];

/// Whether a path is one that only probes ask.
pub fn is_probe(path: &str) -> bool {
    PROBES.contains(&path)
}

/// What a route asks for, where the server has API keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// Nothing.
    Open,
    /// An API key.
    Key,
    /// An API key, or a trainer's or the admin's token. Its handler may ask for more.
    Trainer,
    /// What its handler asks for.
    Own,
}

/// The doors of all routes, by path.
pub struct Doors(BTreeMap<String, Door>);

impl Doors {
    /// Those of a document.
    pub fn of(document: &OpenApi) -> Self {
        let door = |path: &str, tags: &[&str]| match tags {
            _ if is_probe(path) || KEYLESS.contains(&path) => Door::Open,
            [] => Door::Key,
            tags if tags.iter().all(|tag| *tag == "admin") => Door::Own,
            tags if tags.iter().all(|tag| ["rl", "trl", "refused"].contains(tag)) => Door::Trainer,
            _ => Door::Key,
        };
        let paths = document.paths.paths.iter().map(|(path, item)| {
            let all = [&item.get, &item.post, &item.put, &item.delete, &item.patch, &item.head];
            let tags: Vec<&str> =
                all.into_iter().flatten().flat_map(|o| o.tags.iter().flatten()).map(String::as_str).collect();
            (path.clone(), door(path, &tags))
        });
        Self(paths.collect())
    }

    fn of_path(&self, path: &str) -> Door {
        match self.0.get(path) {
            Some(door) => *door,
            None if KEYLESS.contains(&path) => Door::Open,
            None => Door::Key,
        }
    }
}

/// What the guard of a listener needs to know.
pub struct Guard {
    /// The server.
    pub app: Arc<App>,
    /// The routes.
    pub doors: Doors,
    /// Who can reach the listener.
    pub reach: Reach,
}

/// Lets a request through to its handler, or refuses it before its body is read.
pub async fn guard(
    State(guard): State<Arc<Guard>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match guard.allow(path.as_ref().map(MatchedPath::as_str), &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        let asks = HeaderValue::from_static("Bearer realm=\"patchhost\"");
        response.headers_mut().entry(header::WWW_AUTHENTICATE).or_insert(asks);
    }
    response
}

impl Guard {
    fn allow(&self, path: Option<&str>, request: &Request) -> ApiResult<()> {
        // No route: the answer says that, and nothing else.
        let Some(path) = path else { return Ok(()) };
        // What browsers ask before they ask; no handler takes it.
        if request.method() == Method::OPTIONS || is_probe(path) {
            return Ok(());
        }
        self.app.hosts.check(self.reach, request.uri(), request.headers())?;
        if !self.app.keys.are_asked_for() || Caller::of(request.extensions()).is_admin() {
            return Ok(());
        }
        match self.doors.of_path(path) {
            Door::Open | Door::Own => Ok(()),
            Door::Trainer if self.app.rl.auth.knows(request.headers()) => Ok(()),
            Door::Key | Door::Trainer => self.app.keys.allow(request.headers()),
        }
    }
}
