//! Endpoints of SGLang that cannot be here: they need a group of GPU processes, or pickles.

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{SgError, Success};
use crate::serve::auth::RlControl;
use crate::serve::error::ApiError;
use crate::serve::state::App;
use crate::serve::weights::pickle;

const GROUP: &str = "it needs a group of processes that share tensors over NCCL, and this host has CPUs only";
const NEXT: &str =
    "send safetensors to POST /update_weights_from_tensor, or name a folder in /update_weights_from_disk";

fn no_group(path: &str) -> SgError {
    ApiError::bad(format!("`{path}`"), GROUP, NEXT).into()
}

/// Receive tensors over NCCL: refused
#[utoipa::path(post, path = "/update_weights_from_distributed", tag = "refused", request_body = Object, responses(
    (status = "4XX", description = "Always", body = Success),
))]
async fn update_weights_from_distributed(_who: RlControl) -> SgError {
    no_group("/update_weights_from_distributed")
}

/// Join an NCCL group: refused
#[utoipa::path(post, path = "/init_weights_update_group", tag = "refused", request_body = Object, responses(
    (status = "4XX", description = "Always", body = Success),
))]
async fn init_weights_update_group(_who: RlControl) -> SgError {
    no_group("/init_weights_update_group")
}

/// Leave an NCCL group: refused, there is none
#[utoipa::path(post, path = "/destroy_weights_update_group", tag = "refused", request_body = Object, responses(
    (status = "4XX", description = "Always", body = Success),
))]
async fn destroy_weights_update_group(_who: RlControl) -> SgError {
    no_group("/destroy_weights_update_group")
}

/// Take tensors over CUDA IPC: refused
#[utoipa::path(post, path = "/update_weights_from_ipc", tag = "refused", request_body = Object, responses(
    (status = "4XX", description = "Always", body = Success),
))]
async fn update_weights_from_ipc(_who: RlControl) -> SgError {
    pickle::refuse_field("zmq_handles").into()
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(update_weights_from_distributed))
        .routes(routes!(init_weights_update_group))
        .routes(routes!(destroy_weights_update_group))
        .routes(routes!(update_weights_from_ipc))
}
