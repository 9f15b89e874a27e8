//! What runs: `/weight_info`, `/update_weight_version`, `/weight_checker`, `/get_world_size`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::serve::auth::RlControl;
use crate::serve::error::{ApiError, ApiResult, ErrorBody};
use crate::serve::json::Json;
use crate::serve::state::{App, blocking};
use crate::serve::weights::{Action, Checked, version_name, version_text};

/// What serves.
#[derive(Debug, Serialize, ToSchema)]
pub struct WeightInfo {
    /// What the trainer calls the weights.
    pub weight_version: String,
    /// Digest of the patch set that made them.
    pub patch_set: String,
    /// Counts publishes, from 1.
    pub publish: u64,
}

/// What the live weights are called, and what made them
#[utoipa::path(get, path = "/weight_info", tag = "rl", responses(
    (status = 200, description = "The live weights", body = WeightInfo),
    (status = "4XX", description = "None are live", body = ErrorBody),
))]
async fn weight_info(State(app): State<Arc<App>>) -> ApiResult<Json<WeightInfo>> {
    let live = app.live.engine().live()?;
    Ok(Json(WeightInfo {
        weight_version: app.rl.version_of(&live),
        patch_set: live.patches().to_string(),
        publish: live.version(),
    }))
}

/// Body of `/update_weight_version`.
#[derive(Debug, Deserialize, ToSchema)]
pub struct UpdateWeightVersion {
    /// Text or a number.
    #[schema(value_type = String)]
    pub new_version: Value,
    /// SGLang: end all requests first; the default is false.
    pub abort_all_requests: Option<bool>,
}

/// The new name.
#[derive(Debug, Serialize, ToSchema)]
pub struct VersionUpdated {
    /// Always true; a refusal is an error.
    pub success: bool,
    /// In words.
    pub message: String,
    /// What the weights are called now.
    pub new_version: String,
}

/// Call the live weights by another name
#[utoipa::path(post, path = "/update_weight_version", tag = "rl", request_body = UpdateWeightVersion, responses(
    (status = 200, description = "They are called so", body = VersionUpdated),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn update_weight_version(
    _who: RlControl,
    State(app): State<Arc<App>>,
    Json(body): Json<UpdateWeightVersion>,
) -> ApiResult<Json<VersionUpdated>> {
    let name = version_name(version_text(Some(body.new_version))?)?;
    let name = name.ok_or_else(|| {
        ApiError::bad("`new_version`", "it is empty", "give a number or a short name").param("new_version")
    })?;
    if body.abort_all_requests == Some(true) {
        blocking(&app, |app| Ok(app.scheduler.abort_all())).await?;
    }
    app.rl.rename(&*app.live.engine().live()?, name.clone());
    let message = format!("Weight version updated to {name}");
    Ok(Json(VersionUpdated { success: true, message, new_version: name }))
}

/// Body of `/weight_checker`.
#[derive(Debug, Deserialize, ToSchema)]
pub struct WeightChecker {
    /// What to do.
    pub action: Action,
    /// Checksums by name, for `compare`; those of the last `reset` if absent.
    pub baseline: Option<BTreeMap<String, String>>,
}

/// Checksums of the live weights, and what changed
///
/// `reset` does not touch the weights, as it does in vLLM to find tensors that an update forgets: here every update is
/// staged over NaN and must write every tensor, or it is refused.
#[utoipa::path(post, path = "/weight_checker", tag = "rl", request_body = WeightChecker, responses(
    (status = 200, description = "What was found", body = Checked),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn weight_checker(
    _who: RlControl,
    State(app): State<Arc<App>>,
    Json(body): Json<WeightChecker>,
) -> ApiResult<Json<Checked>> {
    blocking(&app, move |app| app.rl.check(body.action, body.baseline)).await.map(Json)
}

/// How many processes share the model.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorldSize {
    /// Always 1.
    pub world_size: usize,
}

/// How many processes share the model: one
#[utoipa::path(get, path = "/get_world_size", tag = "rl",
    params(("include_dp" = Option<bool>, Query, description = "Count data-parallel ranks too: there is one")),
    responses((status = 200, description = "One", body = WorldSize)))]
async fn get_world_size() -> Json<WorldSize> {
    Json(WorldSize { world_size: 1 })
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(weight_info))
        .routes(routes!(update_weight_version))
        .routes(routes!(weight_checker))
        .routes(routes!(get_world_size))
}
