//! Endpoints by the names of vLLM (`entrypoints/rl` and its development routers).

mod control;
mod generate;
mod inspect;
mod memory;
mod refused;
mod weights;

pub use control::{abort, bad_query};
pub use generate::{SamplingParams, number};
pub use inspect::{Action, Checked, check, info};
pub use memory::{release, restore, tagged};
pub use weights::version_text;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use super::state::App;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .merge(control::routes())
        .merge(generate::routes())
        .merge(inspect::routes())
        .merge(memory::routes())
        .merge(refused::routes())
        .merge(weights::routes())
}
