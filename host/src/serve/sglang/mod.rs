//! Endpoints by the names of SGLang.

mod answer;
mod control;
mod generate;
mod meta;
mod refused;
mod sampling;
mod weights;

pub use answer::{SgError, SgResult, Success, in_sglang_form};
pub use weights::{base64_pieces, refuse_pickles};

use std::sync::Arc;

use axum::middleware::map_response;
use utoipa_axum::router::OpenApiRouter;

use super::state::App;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .merge(control::routes())
        .merge(generate::routes())
        .merge(refused::routes())
        .merge(weights::routes())
        .layer(map_response(in_sglang_form))
}
