//! Endpoints by the names of vLLM (`entrypoints/rl` and its development routers).

mod control;
mod generate;
mod inspect;
mod lora;
mod memory;
mod refused;
mod weights;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use super::state::App;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .merge(control::routes())
        .merge(generate::routes())
        .merge(inspect::routes())
        .merge(lora::routes())
        .merge(memory::routes())
        .merge(refused::routes())
        .merge(weights::routes())
}
