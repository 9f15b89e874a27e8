//! Bodies and queries, with errors in OpenAI's form that name the field.

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRef, FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::PartialSchema;
use utoipa::openapi::{RefOr, Schema};

use super::error::ApiError;
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

impl<S: Send + Sync, T: DeserializeOwned + PartialSchema> FromRequest<S> for Json<T>
where
    Bodies: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        is_json(request.headers())?;
        let Read { bytes, held: _held } = Bodies::from_ref(state).read(request).await?;
        // serde would take a list for a struct, field by field.
        if bytes.trim_ascii_start().first() == Some(&b'[') {
            return Err(a_list());
        }
        let value = parse(&bytes)?;
        if tracing::enabled!(tracing::Level::DEBUG) {
            log_unknown::<T>(&bytes);
        }
        Ok(Self(value))
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

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T>
where
    Bodies: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Read { bytes, held: _held } = Bodies::from_ref(state).read(request).await?;
        if bytes.trim_ascii().is_empty() {
            return Ok(Self(T::default()));
        }
        parse(&bytes).map(Self)
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

fn a_list() -> ApiError {
    let next = "see GET /openapi.json for the fields and their types";
    ApiError::bad("the request's body", "it is a list, not an object", next)
}

fn is_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mime = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json = mime == "application/json" || (mime.starts_with("application/") && mime.ends_with("+json"));
    if json {
        return Ok(());
    }
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
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut json);
    let value = parsed.map_err(|e| {
        let path = e.path().to_string();
        refuse(&path, e.inner())
    })?;
    json.end().map_err(|e| refuse("", &e))?;
    Ok(value)
}

/// The same of JSON that was read already: its texts are moved, not copied.
pub fn of_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, ApiError> {
    if value.is_array() {
        return Err(a_list());
    }
    serde_path_to_error::deserialize(value).map_err(|e| refuse(&e.path().to_string(), e.inner()))
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

/// Unknown fields are ignored, as OpenAI and vLLM do; who wonders why one has no effect finds it in the log.
fn log_unknown<T: PartialSchema>(bytes: &[u8]) {
    let RefOr::T(Schema::Object(schema)) = T::schema() else { return };
    let Ok(body) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(bytes) else { return };
    for name in body.keys().filter(|name| !schema.properties.contains_key(*name)) {
        tracing::debug!(field = clean(name, 100), "the request has a field that this server does not know; ignored");
    }
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
