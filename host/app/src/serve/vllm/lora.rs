//! Adapters by the names of vLLM: `/v1/load_lora_adapter`, `/v1/unload_lora_adapter`.

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::base::text::clean;
use crate::serve::adapters::{LoadAdapter, NAME, UnloadAdapter, from_folder, unload};
use crate::serve::auth::RlControl;
use crate::serve::error::{ApiResult, ErrorBody};
use crate::serve::json::Json;
use crate::serve::state::{App, blocking};

/// Load an adapter from a folder inside a root
#[utoipa::path(post, path = "/v1/load_lora_adapter", tag = "rl", request_body = LoadAdapter, responses(
    (status = 200, description = "It is loaded", body = String),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn load_lora_adapter(
    RlControl(actor): RlControl,
    State(app): State<Arc<App>>,
    Json(body): Json<LoadAdapter>,
) -> ApiResult<String> {
    blocking(&app, move |app| {
        let adapter = from_folder(app, &body, &actor)?;
        Ok(format!("Success: LoRA adapter '{}' added successfully.", adapter.name()))
    })
    .await
}

/// Unload an adapter; sequences that run with it keep it
#[utoipa::path(post, path = "/v1/unload_lora_adapter", tag = "rl", request_body = UnloadAdapter, responses(
    (status = 200, description = "It is unloaded", body = String),
    (status = 404, description = "There is none of this name", body = ErrorBody),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn unload_lora_adapter(
    RlControl(actor): RlControl,
    State(app): State<Arc<App>>,
    Json(body): Json<UnloadAdapter>,
) -> ApiResult<String> {
    unload(&app, &body.lora_name, &actor)?;
    Ok(format!("Success: LoRA adapter '{}' removed successfully.", clean(&body.lora_name, NAME)))
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(load_lora_adapter)).routes(routes!(unload_lora_adapter))
}
