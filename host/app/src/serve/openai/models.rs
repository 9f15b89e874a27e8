//! `/v1/models`: the served model and the loaded adapters.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::serve::error::{ApiError, ApiResult, ErrorBody};
use crate::serve::json::Json;
use crate::serve::state::App;

/// What can be asked for.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The models.
    pub data: Vec<ModelCard>,
}

/// A model.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelCard {
    /// Its name in requests.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Seconds since 1970: when the server started.
    pub created: u64,
    /// `patchhost`.
    pub owned_by: &'static str,
    /// Where the model was read from; of an adapter, its own name.
    pub root: String,
    /// The model that an adapter is for.
    pub parent: Option<String>,
    /// Positions of the model: most tokens of prompt and answer together.
    pub max_model_len: usize,
}

fn cards(app: &App) -> Vec<ModelCard> {
    let card = |id: &str, parent: Option<&str>| ModelCard {
        id: id.to_string(),
        object: "model",
        created: app.started,
        owned_by: "patchhost",
        root: if parent.is_some() { id.to_string() } else { app.model_path().to_string() },
        parent: parent.map(str::to_string),
        max_model_len: app.live.engine().model().max_positions(),
    };
    let own = std::iter::once(&app.served_name).chain(&app.options.aliases).map(|name| card(name, None));
    let adapters = app.live.engine().adapters().list();
    own.chain(adapters.iter().map(|a| card(a.name(), Some(&app.served_name)))).collect()
}

/// The served model and the loaded adapters
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses((status = 200, description = "The models", body = ModelList)))]
async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: cards(&app) })
}

/// One of them
#[utoipa::path(get, path = "/v1/models/{model}", tag = "openai",
    params(("model" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The model", body = ModelCard),
        (status = 400, description = "The name is not text", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody),
    ),
)]
async fn model(State(app): State<Arc<App>>, name: Result<Path<String>, PathRejection>) -> ApiResult<Json<ModelCard>> {
    let Path(name) = name.map_err(|_| no_text())?;
    named(&app, &name)
}

/// The same for a name that is a path, or has its maker's name before it, and comes with its slashes as they are.
async fn model_of_path(
    State(app): State<Arc<App>>,
    name: Result<Path<(String, String)>, PathRejection>,
) -> ApiResult<Json<ModelCard>> {
    let Path((first, rest)) = name.map_err(|_| no_text())?;
    named(&app, &format!("{first}/{rest}"))
}

fn no_text() -> ApiError {
    ApiError::bad("the model's name", "it is not UTF-8", "see GET /v1/models").param("model")
}

fn named(app: &App, name: &str) -> ApiResult<Json<ModelCard>> {
    let mut cards = cards(app).into_iter();
    let card = match app.is_served(name) && !app.is_name(name) {
        // By its path, which is no name of its own in the list.
        true => cards.next(),
        false => cards.find(|card| card.id == name),
    };
    card.map(Json).ok_or_else(|| ApiError::no_model(name, &app.served_name))
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(models))
        .routes(routes!(model))
        .route("/v1/models/{model}/{*rest}", axum::routing::get(model_of_path))
}
