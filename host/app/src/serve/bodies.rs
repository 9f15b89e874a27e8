//! What no handler looks at: parameters of the URL that its route does not have, and a body where none is needed. Bodies that
//! handlers want are read by themselves, through [`super::intake`].
//!
//! What a route takes stands in the OpenAPI document, which follows from the handlers: a new route is held to it too.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, MatchedPath, Query, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};
use utoipa::openapi::OpenApi;
use utoipa::openapi::path::{Operation, ParameterIn};

use super::error::ApiError;
use super::fields::Ignored;
use super::intake::{Limit, PATIENCE, Read, Room, begins_as_json, read};
use super::json::parse;

/// Most bytes of a body where none is needed.
const NEEDLESS: usize = 64 << 10;

/// What the document says about the requests of one route.
struct Route {
    takes: Takes,
    /// Parameters of the URL.
    query: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Json,
    /// JSON or bytes.
    Bytes,
}

/// What the document says about the bodies and URLs of all routes that are posted to: an extension of every request.
pub struct Routes(BTreeMap<String, Route>);

impl Routes {
    /// Those of a document.
    pub fn of(document: &OpenApi) -> Self {
        let posts = document.paths.paths.iter().filter_map(|(path, item)| Some((path, item.post.as_ref()?)));
        Self(posts.map(|(path, operation)| (path.clone(), Route::new(operation))).collect())
    }
}

impl Route {
    fn new(operation: &Operation) -> Self {
        let takes = match &operation.request_body {
            None => Takes::Nothing,
            Some(body) if body.content.keys().all(|kind| kind == "application/json") => Takes::Json,
            Some(_) => Takes::Bytes,
        };
        let all = operation.parameters.iter().flatten();
        let query = all.filter(|p| p.parameter_in == ParameterIn::Query).map(|p| p.name.clone()).collect();
        Self { takes, query }
    }
}

/// Notes what is ignored: parameters of the URL that the route does not have, and what is in a body where none is needed. Such a
/// body is refused if it is no JSON object.
pub async fn check(
    Extension(routes): Extension<Arc<Routes>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let route = path.as_ref().and_then(|path| routes.0.get(path.as_str()));
    match route.filter(|_| request.method() == Method::POST) {
        None => next.run(request).await,
        Some(route) => match checked(route, request).await {
            Ok(request) => next.run(request).await,
            Err(error) => error.into_response(),
        },
    }
}

async fn checked(route: &Route, request: Request) -> Result<Request, ApiError> {
    let ignored = Ignored::of(request.extensions());
    let (parts, body) = request.into_parts();
    if route.takes != Takes::Bytes {
        let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map(|Query(all)| all).unwrap_or_default();
        for (name, _) in query.iter().filter(|(name, _)| !route.query.contains(name)) {
            let known = route.query.iter().map(String::as_str);
            let near = |name: &str| patchhost_runtime::words::nearest(name, known).map(|near| format!("?{near}"));
            ignored.note(|| format!("?{name}"), |_| near(name));
        }
    }
    let body = match route.takes {
        Takes::Nothing => needless(route, &ignored, body).await?,
        Takes::Json | Takes::Bytes => body,
    };
    Ok(Request::from_parts(parts, body))
}

/// A body where none is needed: an object whose fields are noted, or nothing.
async fn needless(route: &Route, ignored: &Ignored, body: Body) -> Result<Body, ApiError> {
    let next = "send no body: this endpoint needs none".to_string();
    let limit = Limit { bytes: NEEDLESS, all: NEEDLESS, room: &Room::default(), patience: PATIENCE, next };
    let Read { bytes, held: _held } = read(body, &limit, begins_as_json).await?;
    if bytes.trim_ascii().is_empty() {
        return Ok(Body::empty());
    }
    let fields: Map<String, Value> = parse(&bytes)?;
    for name in fields.keys() {
        let in_url = |name: &str| route.query.iter().any(|known| known == name).then(|| format!("?{name}"));
        ignored.note(|| name.clone(), in_url);
    }
    Ok(Body::empty())
}
