//! `/v1/chat/completions/render`: the prompt of a conversation, without an answer.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::rendered::{Rendered, sampling_params};
use super::{ChatRequest, Prepared};
use crate::serve::error::{ApiResult, ErrorBody};
use crate::serve::fields::Ignored;
use crate::serve::json::Json;
use crate::serve::state::App;

/// The prompt of a conversation
#[utoipa::path(post, path = "/v1/chat/completions/render", tag = "openai", request_body = ChatRequest, responses(
    (status = 200, description = "What would be generated from", body = Rendered),
    (status = 400, description = "The request is wrong", body = ErrorBody),
    (status = 404, description = "There is no such model", body = ErrorBody),
    (status = 408, description = "It took too long", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
    (status = 415, description = "The body is not JSON", body = ErrorBody),
))]
async fn render_chat(
    State(app): State<Arc<App>>,
    ignored: Ignored,
    Json(request): Json<ChatRequest>,
) -> ApiResult<Json<Rendered>> {
    app.adapter(request.model.as_deref())?;
    let stream_options = request.streamed()?;
    let Prepared { asked, prompt, .. } = request.prepared(&app, ignored).await?;
    Ok(Json(Rendered {
        request_id: app.claim("chatcmpl-", request.request_id.as_deref())?.as_str().to_owned(),
        token_ids: prompt,
        features: None,
        sampling_params: sampling_params(&asked),
        model: request.model.clone().unwrap_or_else(|| app.served_name.clone()),
        stream: stream_options.is_some(),
        stream_options: stream_options.filter(|_| request.stream_options.is_some()),
        cache_salt: request.cache_salt.clone(),
        priority: request.priority.unwrap_or(0),
    }))
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(render_chat))
}
