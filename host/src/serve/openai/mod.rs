//! OpenAI's API, with vLLM's extensions under vLLM's names.

pub mod chat;
pub mod completions;
pub mod logprobs;
pub mod messages;
pub mod models;
pub mod prompt;
pub mod request;
pub mod sse;
pub mod types;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use super::state::App;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().merge(completions::routes()).merge(chat::routes()).merge(models::routes())
}
