//! Endpoints by the names of SGLang.

mod answer;
mod control;
mod generate;
mod lora;
mod many;
mod meta;
mod pull;
mod refused;
mod sampling;
mod weights;

use std::sync::Arc;

use axum::middleware::{from_fn, map_response};
use utoipa_axum::router::OpenApiRouter;

use super::bodies;
use super::state::App;
use answer::in_sglang_form;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .merge(control::routes())
        .merge(generate::routes())
        .merge(lora::routes())
        .merge(pull::routes())
        .merge(refused::routes())
        .merge(weights::routes())
        .layer(from_fn(bodies::check))
        .layer(map_response(in_sglang_form))
}
