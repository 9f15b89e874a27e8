//! Endpoints of vLLM that cannot be here. They answer with the reason, so that a trainer that is pointed at this server
//! finds out at its first call.

use std::sync::Arc;

use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::serve::auth::RlControl;
use crate::serve::error::{ApiError, ErrorBody};
use crate::serve::state::App;

/// Run a method of the workers: refused, it would be arbitrary code
#[utoipa::path(post, path = "/collective_rpc", tag = "refused", request_body = Object, responses(
    (status = "4XX", description = "Always", body = ErrorBody),
))]
async fn collective_rpc(_who: RlControl) -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "not_supported",
        "`/collective_rpc`",
        "it runs methods of the workers by name, with arguments of the caller; none is allowed here",
        "change the engine by a patch (POST /admin/v1/stage), send weights to /update_weights",
    )
}

/// Begin an update of a draft model: there is none
#[utoipa::path(post, path = "/start_draft_weight_update", tag = "refused", responses(
    (status = "4XX", description = "Always", body = ErrorBody),
))]
async fn start_draft_weight_update(_who: RlControl) -> ApiError {
    ApiError::bad(
        "`/start_draft_weight_update`",
        "this server has no draft model: it does not speculate",
        "send the weights of the model itself: POST /start_weight_update",
    )
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(collective_rpc)).routes(routes!(start_draft_weight_update))
}
