//! OpenAI's API, with vLLM's extensions under vLLM's names.

mod chat;
mod completions;
mod logprobs;
mod models;
mod rendered;
mod request;
mod tools;
mod types;

pub use chat::ChatRequest;
pub use completions::CompletionRequest;
pub use tools::{ReasoningParser, ToolParser};

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use super::state::App;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().merge(completions::routes()).merge(chat::routes()).merge(models::routes())
}
