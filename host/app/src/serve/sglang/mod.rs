//! Endpoints by the names of SGLang.

mod answer;
mod control;
mod generate;
mod lora;
mod meta;
mod refused;
mod sampling;
mod weights;

use std::sync::Arc;

use axum::middleware::map_response;
use utoipa_axum::router::OpenApiRouter;

use super::state::App;
use answer::in_sglang_form;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .merge(control::routes())
        .merge(generate::routes())
        .merge(lora::routes())
        .merge(refused::routes())
        .merge(weights::routes())
        .layer(map_response(in_sglang_form))
}
