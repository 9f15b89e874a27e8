//! Errors over HTTP: OpenAI's form, `{"error": {"message", "type", "param", "code"}}`, the message in three parts.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::scheduler::SubmitError;
use serde::Serialize;
use utoipa::ToSchema;

use crate::base::text::clean;

/// Longest message; what is quoted from outside is cut shorter where it is quoted.
const MESSAGE: usize = 4096;

/// A request that was not served. It becomes the answer by itself.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{refusal}")]
pub struct ApiError {
    status: StatusCode,
    /// Boxed: a result must not be large for the sake of its errors.
    refusal: Box<Refusal>,
    param: Option<String>,
    code: &'static str,
    retry_after: Option<u32>,
}

/// What a handler gives: an answer, or the error that takes its place.
pub type ApiResult<T> = Result<T, ApiError>;

/// The body of every error.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong, as OpenAI's clients read it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// What was refused, why, and what to do next.
    pub message: String,
    /// Kind of the error: `invalid_request_error`, `authentication_error`, `rate_limit_error`, `server_error`, …
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field that is wrong.
    pub param: Option<String>,
    /// A fixed word for programs.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// An error of this status. `code` is a fixed word for programs.
    pub fn new(
        status: StatusCode,
        code: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self { status, refusal: Box::new(Refusal::new(what, why, next)), param: None, code, retry_after: None }
    }

    /// 400: the request itself is wrong.
    pub fn bad(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", what, why, next)
    }

    /// 400: a field asks for something that this server does not do.
    pub fn unsupported(field: &str, why: impl Into<String>) -> Self {
        let what = format!("`{field}`");
        Self::new(StatusCode::BAD_REQUEST, "unsupported_parameter", what, why, format!("leave `{field}` away"))
            .param(field)
    }

    /// 404: there is no such thing.
    pub fn not_found(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", what, why, next)
    }

    /// 404: there is no such model.
    pub fn no_model(name: &str, served: &str) -> Self {
        let mut e = Self::not_found(
            format!("model `{}`", clean(name, 200)),
            "it is neither the served model nor a loaded adapter",
            format!("ask for `{served}`, or see GET /v1/models"),
        )
        .param("model");
        e.code = "model_not_found";
        e
    }

    /// 401: the request brings no API key of the server.
    pub fn no_key(why: &str) -> Self {
        let next = "send the header `Authorization: Bearer KEY` with a key of --api-key or --api-key-file; clients of OpenAI \
                    take it as `api_key`";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", "this request", why, next)
    }

    /// 503: not now; the client may try again after `seconds`.
    pub fn unavailable(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>, seconds: u32) -> Self {
        Self {
            retry_after: Some(seconds),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", what, why, next)
        }
    }

    /// 429: too much at once; the client may try again after `seconds`.
    pub fn busy(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>, seconds: u32) -> Self {
        let e = Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", what, why, next);
        Self { retry_after: Some(seconds), ..e }
    }

    /// 500: a bug of this program; the cause goes to the log.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!("internal error while serving: {cause}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "this request",
            format!("the server failed: {}", clean(&cause.to_string(), 500)),
            "please report this, with the server's log",
        )
    }

    /// Says which field is wrong.
    #[must_use]
    pub fn param(mut self, field: impl Into<String>) -> Self {
        self.param = Some(field.into());
        self
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What was refused, why, and what to do next.
    pub fn refusal(&self) -> &Refusal {
        &self.refusal
    }

    /// The text of the answer.
    pub fn message(&self) -> String {
        bounded(format!("refused: {}", self.refusal))
    }

    /// The body of the answer.
    pub fn body(&self) -> ErrorBody {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            408 => "timeout_error",
            409 => "conflict_error",
            429 => "rate_limit_error",
            503 => "unavailable_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let detail = ErrorDetail { message: self.message(), kind, param: self.param.clone(), code: Some(self.code) };
        ErrorBody { error: detail }
    }
}

/// Cuts a message at a character boundary.
fn bounded(mut text: String) -> String {
    if text.len() > MESSAGE {
        let end = (0..=MESSAGE).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        // For routes whose clients read errors in another form.
        response.extensions_mut().insert(self);
        response
    }
}

/// The parameters that the scheduler checks.
const PARAMETERS: [&str; 17] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "max_tokens",
    "logprobs",
    "prompt_logprobs",
    "stop",
    "stop_token_ids",
    "allowed_token_ids",
    "bad_token_ids",
    "logit_bias",
    "logprob_token_ids",
];

/// The parameter that a refusal of the scheduler is about: its first part names it.
fn parameter(refusal: &Refusal) -> Option<String> {
    let mut words = refusal.what.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.find(|word| PARAMETERS.contains(word)).map(str::to_string)
}

impl From<RuntimeError> for ApiError {
    fn from(error: RuntimeError) -> Self {
        match error {
            RuntimeError::Request(refusal) => {
                let param = parameter(&refusal);
                Self {
                    status: StatusCode::BAD_REQUEST,
                    refusal: Box::new(refusal),
                    param,
                    code: "invalid_value",
                    retry_after: None,
                }
            }
            RuntimeError::Tokenizer(refusal)
            | RuntimeError::Environment(refusal)
            | RuntimeError::Config(refusal)
            | RuntimeError::Checkpoint(refusal)
            | RuntimeError::Refit(refusal)
            | RuntimeError::NonFinite(refusal)
            | RuntimeError::Contract(refusal) => Self {
                status: StatusCode::BAD_REQUEST,
                refusal: Box::new(refusal),
                param: None,
                code: "invalid_value",
                retry_after: None,
            },
            RuntimeError::Hook(e) => {
                let what = format!("patch `{}`, call `{}`", clean(&e.patch, 100), clean(&e.call, 100));
                Self::new(StatusCode::BAD_REQUEST, "patch_failed", what, e.why, e.next)
            }
            e @ RuntimeError::Internal(_) => Self::internal(&e),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Full { waiting, limit } => Self::busy(
                "this request",
                format!("the queue is full: {waiting} sequences wait, the limit is {limit}"),
                "try again in a moment, or start the server with a larger --max-waiting",
                1,
            ),
            SubmitError::Invalid(e) => e.into(),
            SubmitError::Stopped => Self::unavailable(
                "this request",
                "the server is going down",
                "send it to another server, or again when this one is back",
                5,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_form_is_that_of_openai() {
        let e = ApiError::unsupported("tools", "this server calls no tools");
        let json = serde_json::to_value(e.body()).unwrap();
        assert_eq!(json["error"]["type"], "invalid_request_error");
        assert_eq!(json["error"]["param"], "tools");
        let message = json["error"]["message"].as_str().unwrap();
        assert_eq!(message, "refused: `tools`\n  why: this server calls no tools\n  next: leave `tools` away");
        let busy = ApiError::busy("this request", "full", "wait", 7).into_response();
        assert_eq!(busy.status(), 429);
        assert_eq!(busy.headers()["retry-after"], "7");
    }

    #[test]
    fn refusals_of_the_scheduler_name_the_parameter() {
        let param = |what: &str| {
            let refusal = Refusal::new(what, "why", "next");
            serde_json::to_value(ApiError::from(RuntimeError::Request(refusal)).body()).unwrap()["error"]["param"]
                .clone()
        };
        assert_eq!(param("top_p 0"), "top_p");
        assert_eq!(param("token id 9 in stop_token_ids"), "stop_token_ids");
        assert_eq!(param("a prompt"), serde_json::Value::Null);
    }

    #[test]
    fn messages_are_bounded() {
        let e = ApiError::bad("é".repeat(MESSAGE), "long", "shorten it");
        assert!(e.message().len() <= MESSAGE + '…'.len_utf8());
    }
}
