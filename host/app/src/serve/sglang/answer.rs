//! SGLang's form of answers: `{"success": …, "message": …}`.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::serve::error::ApiError;
use crate::serve::json::Json;
use crate::serve::weights::Stayed;

/// What became of a request.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Success {
    /// Whether it was done.
    pub success: bool,
    /// In words; a refusal has three parts.
    pub message: String,
    /// Requests that are paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_paused_requests: Option<usize>,
    /// The update that began: requests can name it by this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_id: Option<String>,
    /// What the weights are called now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_version: Option<String>,
    /// Digest of the patch set that made them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_set: Option<String>,
    /// What a partial update left as it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stayed: Option<Stayed>,
}

impl Success {
    pub fn good(message: impl Into<String>) -> Self {
        Self { success: true, message: message.into(), ..Self::default() }
    }
}

/// A refusal in SGLang's form. A status that says something of its own (who asks, what is missing, what is too large, and
/// all of 5XX) is kept; every other one becomes 400, as SGLang has it.
#[derive(Debug)]
pub struct SgError(pub ApiError);

/// Rewrites errors that arose before the handler ran (who asks, the body) in SGLang's form.
pub async fn in_sglang_form(response: Response) -> Response {
    match response.extensions().get::<ApiError>() {
        Some(error) => SgError(error.clone()).into_response(),
        None => response,
    }
}

/// What a handler gives.
pub type SgResult<T> = Result<T, SgError>;

impl<E: Into<ApiError>> From<E> for SgError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for SgError {
    fn into_response(self) -> Response {
        let status = match self.0.status().as_u16() {
            401 | 403 | 404 | 408 | 409 | 413 | 415 | 429 | 500.. => self.0.status(),
            _ => StatusCode::BAD_REQUEST,
        };
        let body = Success { success: false, message: self.0.message(), ..Success::default() };
        (status, Json(body)).into_response()
    }
}
