//! Bodies and queries, with errors in OpenAI's form that name the field.

use std::cell::LazyCell;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRef, FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_json::{Map, Value};
use serde_path_to_error::Track;
use utoipa::ToSchema;

use super::error::ApiError;
use super::fields::{Ignored, Known, place};
use super::intake::{Limit, PATIENCE, Read, Room, begins_as_json, read};
use crate::base::text::clean;

/// Bodies without weights that can be in memory at once, each of the largest size.
const BODIES: usize = 4;

/// A JSON body, in requests and in answers.
///
/// In a request the content type must say `application/json`: a page in a browser can send any other kind to a server on
/// its user's machine without asking it first.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<S: Send + Sync, T: DeserializeOwned + ToSchema> FromRequest<S> for Json<T>
where
    Bodies: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        only_json(request.headers())?;
        let ignored = Ignored::of(request.extensions());
        let Read { bytes, held: _held } = Bodies::from_ref(state).read(request).await?;
        parse_watched(&bytes, &ignored).map(Self)
    }
}

/// Bodies without weights: what extractors ask the server's state for.
#[derive(Debug, Clone)]
pub struct Bodies {
    /// Most bytes of one.
    pub limit: usize,
    /// The memory for all of them.
    pub room: Room,
}

impl Bodies {
    /// The whole body, which must be JSON as far as its first byte says.
    async fn read(&self, request: Request) -> Result<Read, ApiError> {
        let limit = Limit {
            bytes: self.limit,
            all: self.limit.saturating_mul(BODIES),
            room: &self.room,
            patience: PATIENCE,
            next: "send less at once, or start the server with a larger --max-body".to_string(),
        };
        read(request.into_body(), &limit, begins_as_json).await
    }
}

/// A JSON body, or none at all, which is the default of the type.
#[derive(Debug, Clone, Copy)]
pub struct OptionalJson<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + ToSchema + Default> FromRequest<S> for OptionalJson<T>
where
    Bodies: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let ignored = Ignored::of(request.extensions());
        let Read { bytes, held: _held } = Bodies::from_ref(state).read(request).await?;
        if bytes.trim_ascii().is_empty() {
            return Ok(Self(T::default()));
        }
        parse_watched(&bytes, &ignored).map(Self)
    }
}

/// The query of a URL, with errors in OpenAI's form.
#[derive(Debug, Clone, Copy)]
pub struct UrlQuery<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for UrlQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::of(&parts.uri)
    }
}

impl<T: DeserializeOwned> UrlQuery<T> {
    /// The query of this URL, for extractors that read more of the request than the query.
    pub fn of(uri: &Uri) -> Result<Self, ApiError> {
        Query::try_from_uri(uri).map(|Query(query)| Self(query)).map_err(|rejection: QueryRejection| {
            let why = clean(&rejection.body_text(), 300);
            ApiError::bad("the query of the URL", why, "see GET /openapi.json for its parameters")
        })
    }
}

/// The content type that a request names, in lower case and without its parameters.
fn mime(headers: &HeaderMap) -> String {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether a request says that its body is JSON.
pub fn is_json(headers: &HeaderMap) -> bool {
    let mime = mime(headers);
    mime == "application/json" || (mime.starts_with("application/") && mime.ends_with("+json"))
}

fn only_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if is_json(headers) {
        return Ok(());
    }
    let mime = mime(headers);
    let shown = if mime.is_empty() { "there is none".to_string() } else { format!("it is `{}`", clean(&mime, 100)) };
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        "the request's content type",
        format!("{shown}, this endpoint takes application/json"),
        "send the header Content-Type: application/json (curl: -H 'Content-Type: application/json')",
    ))
}

/// One JSON value of this type, and nothing behind it.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    read_json(bytes, |_| {})
}

/// The same, where the fields that the type does not have are noted.
pub fn parse_watched<T: DeserializeOwned + ToSchema>(bytes: &[u8], ignored: &Ignored) -> Result<T, ApiError> {
    let known = LazyCell::new(Known::of::<T>);
    let note = |place: &mut dyn FnMut() -> String| ignored.note(place, |name| known.meant(name));
    let value = read_json(bytes, |path| note(&mut || place(&path)))?;
    if known.flattened
        && let Ok(body) = serde_json::from_slice::<Map<String, Value>>(bytes)
    {
        body.keys().filter(|name| !known.has(name)).for_each(|name| note(&mut || name.clone()));
    }
    Ok(value)
}

fn read_json<T: DeserializeOwned>(bytes: &[u8], unread: impl FnMut(Path<'_>)) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let mut track = Track::new();
    let parsed = serde_ignored::deserialize(serde_path_to_error::Deserializer::new(&mut json, &mut track), unread);
    let value = parsed.map_err(|e: serde_json::Error| refuse(&track.path().to_string(), &e))?;
    json.end().map_err(|e| refuse("", &e))?;
    Ok(value)
}

/// The same of JSON that was read already: its texts are moved, not copied.
pub fn of_value<T: DeserializeOwned + ToSchema>(value: Value, ignored: &Ignored) -> Result<T, ApiError> {
    let known = LazyCell::new(Known::of::<T>);
    let note = |place: &mut dyn FnMut() -> String| ignored.note(place, |name| known.meant(name));
    if known.flattened {
        let names = value.as_object().into_iter().flat_map(Map::keys);
        names.filter(|name| !known.has(name)).for_each(|name| note(&mut || name.clone()));
    }
    let mut track = Track::new();
    let json = serde_path_to_error::Deserializer::new(value, &mut track);
    let parsed = serde_ignored::deserialize(json, |path| note(&mut || place(&path)));
    parsed.map_err(|e: serde_json::Error| refuse(&track.path().to_string(), &e))
}

fn refuse(path: &str, error: &serde_json::Error) -> ApiError {
    let why = clean(&error.to_string(), 500);
    if !error.is_data() {
        return ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_json",
            "the request's body",
            format!("it is not JSON: {why}"),
            "send one JSON object",
        );
    }
    // A path of one dot is the body itself: a field is missing or unknown to the type.
    let (what, param) = match path {
        "" | "." => ("the request's body".to_string(), missing(&why)),
        path => (format!("`{}`", clean(path, 200)), Some(clean(path, 200))),
    };
    let e = ApiError::bad(what, why, "see GET /openapi.json for the fields and their types");
    match param {
        Some(param) => e.param(param),
        None => e,
    }
}

/// The name in serde's "missing field `x`".
fn missing(why: &str) -> Option<String> {
    let (name, _) = why.strip_prefix("missing field `")?.split_once('`')?;
    Some(name.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Body {
        #[allow(dead_code)]
        n: u32,
        #[allow(dead_code)]
        list: Option<Vec<f32>>,
    }

    fn refused(body: &str) -> (String, Option<String>) {
        let json = serde_json::to_value(parse::<Body>(body.as_bytes()).unwrap_err().body()).unwrap();
        let text = |v: &serde_json::Value| v.as_str().map(str::to_string);
        (text(&json["error"]["message"]).unwrap(), text(&json["error"]["param"]))
    }

    #[test]
    fn errors_name_the_field() {
        assert!(parse::<Body>(br#"{"n": 3, "list": [1, 2], "other": true}"#).is_ok());
        let (text, param) = refused(r#"{"n": -1}"#);
        assert!(text.contains("-1") && param.as_deref() == Some("n"), "{text} {param:?}");
        let (_, param) = refused(r#"{"n": 1, "list": [0, "x"]}"#);
        assert_eq!(param.as_deref(), Some("list[1]"));
        let (_, param) = refused(r#"{}"#);
        assert_eq!(param.as_deref(), Some("n"));
        for not_json in ["", "{", "{\"n\": NaN}", "{\"n\": 1} x"] {
            let (text, _) = refused(not_json);
            assert!(text.contains("not JSON"), "{not_json}: {text}");
        }
    }
}
