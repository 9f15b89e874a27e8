//! Endpoints by the names of SGLang.

mod answer;
mod control;
mod generate;
mod meta;
mod refused;
mod sampling;
mod weights;

pub use answer::{SgError, SgResult, Success};
pub use weights::{base64_pieces, refuse_pickles};

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use super::state::App;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .merge(control::routes())
        .merge(generate::routes())
        .merge(refused::routes())
        .merge(weights::routes())
}
