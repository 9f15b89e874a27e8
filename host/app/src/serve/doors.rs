//! Families of endpoints that belong to one original each. The log probabilities of a door are of the kind that its
//! original gives, unless `--logprobs-mode` says otherwise, and every answer says in a header which kind that is.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use patchhost_runtime::scheduler::LogprobsMode;

use super::state::App;

/// The header of answers that says what their log probabilities are.
pub const LOGPROBS_MODE: HeaderName = HeaderName::from_static("x-patchhost-logprobs-mode");

/// Whose endpoint it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// `/v1/…` and `/inference/v1/generate`.
    Vllm,
    /// `/generate`.
    Sglang,
    /// `/generate/`.
    Trl,
}

impl Door {
    /// The door of a route that generates; none of any other.
    fn of(route: &str) -> Option<Self> {
        match route {
            "/v1/completions" | "/v1/chat/completions" | "/inference/v1/generate" => Some(Self::Vllm),
            "/generate" => Some(Self::Sglang),
            "/generate/" => Some(Self::Trl),
            _ => None,
        }
    }

    /// What its original gives: vLLM the model's own; SGLang those after temperature and before top-k and the like; `trl
    /// vllm-serve` those of what was sampled from.
    pub fn logprobs_mode(self) -> LogprobsMode {
        match self {
            Self::Vllm => LogprobsMode::RawLogprobs,
            Self::Sglang => LogprobsMode::TemperedLogprobs,
            Self::Trl => LogprobsMode::ProcessedLogprobs,
        }
    }
}

/// Says in a header of each answer that generates what its log probabilities are.
pub async fn say(State(app): State<Arc<App>>, route: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Some(door) = route.as_ref().and_then(|route| Door::of(route.as_str()))
        && response.status().is_success()
    {
        let mode = HeaderValue::from_static(app.logprobs_mode(door).name());
        response.headers_mut().insert(LOGPROBS_MODE, mode);
    }
    response
}
