//! What slime asks of its SGLang engines beside SGLang's own endpoints: `/pull_weights`, `/post_process_weights`, and the
//! profiler, which is not here.

use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{SgError, SgResult, Success};
use crate::base::text::clean;
use crate::serve::auth::RlControl;
use crate::serve::error::ApiError;
use crate::serve::json::{Json, OptionalJson};
use crate::serve::state::{App, blocking};
use crate::serve::weights::pull_target;

/// Body of `/pull_weights`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct PullWeights {
    /// The folder that `/update_weights_from_disk` will be given afterwards. Nothing is written there: what was pulled is kept
    /// under its name.
    pub local_checkpoint_dir: String,
    /// The folder inside a root in which versions are published (`weight_v000012`), each whole or as a delta.
    pub source_dir: String,
    /// The version that is wanted; 0 is what the server started with.
    #[schema(minimum = 0)]
    pub target_version: i64,
}

/// Verify a published version and hold it, for an update that names the local folder
#[utoipa::path(post, path = "/pull_weights", tag = "rl", request_body = PullWeights, responses(
    (status = 200, description = "It is verified and held; the old weights serve on", body = Success),
    (status = "4XX", description = "Refused", body = Success),
    (status = 503, description = "Not now", body = Success),
))]
async fn pull_weights(
    RlControl(actor): RlControl,
    State(app): State<Arc<App>>,
    Json(body): Json<PullWeights>,
) -> SgResult<Json<Success>> {
    let target = pull_target(body.target_version)?;
    let done = blocking(&app, move |app| {
        let done = app.rl.pull(&app.roots, &body.local_checkpoint_dir, &body.source_dir, target)?;
        let about = json!({
            "source": clean(&body.source_dir, 300),
            "version": done.version,
            "steps": done.steps,
            "changed": done.changed,
        });
        app.live.board().event("weights.pulled", &actor, about);
        Ok(done)
    })
    .await?;
    Ok(Json(Success::good(format!(
        "Version {} is verified and held ({} steps, {} tensors changed); /update_weights_from_disk with the same folder makes \
         it live.",
        done.version, done.steps, done.changed
    ))))
}

/// Body of `/post_process_weights`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
#[allow(dead_code, reason = "for the OpenAPI document: the fields are accepted and ask for nothing here")]
pub struct PostProcessWeights {
    /// Accepted: weights that serve are never written over, so there is nothing to undo before new ones come.
    pub restore_weights_before_load: bool,
    /// Accepted: every update is quantized and packed before it is live.
    pub post_process_quantization: bool,
}

/// Prepare weights for loading, or what was loaded for use: nothing is to be done, each update does both itself
#[utoipa::path(post, path = "/post_process_weights", tag = "rl", request_body = Option<PostProcessWeights>, responses(
    (status = 200, description = "Nothing was to be done", body = Success),
    (status = "4XX", description = "Refused", body = Success),
))]
async fn post_process_weights(
    _who: RlControl,
    OptionalJson(_body): OptionalJson<PostProcessWeights>,
) -> SgResult<Json<Success>> {
    Ok(Json(Success::good("Nothing to do: every update is processed whole before it is live.")))
}

/// Record a profile: refused
#[utoipa::path(post, path = "/start_profile", tag = "refused", request_body = Object, responses(
    (status = "4XX", description = "Always", body = Success),
))]
async fn start_profile(_who: RlControl) -> SgError {
    no_profiler("/start_profile")
}

/// End a profile: refused, there is none
#[utoipa::path(post, path = "/stop_profile", tag = "refused", request_body = Option<Object>, responses(
    (status = "4XX", description = "Always", body = Success),
))]
async fn stop_profile(_who: RlControl) -> SgError {
    no_profiler("/stop_profile")
}

fn no_profiler(path: &str) -> SgError {
    ApiError::bad(
        format!("`{path}`"),
        "it records PyTorch's profiler, and this server runs without PyTorch",
        "look at GET /metrics, or use a profiler of the system (perf)",
    )
    .into()
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(pull_weights))
        .routes(routes!(post_process_weights))
        .routes(routes!(start_profile))
        .routes(routes!(stop_profile))
}
