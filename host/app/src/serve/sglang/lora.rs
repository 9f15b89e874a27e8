//! Adapters by the names of SGLang: `/load_lora_adapter`, `/load_lora_adapter_from_tensors`, `/unload_lora_adapter`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{SgResult, Success};
use super::weights::base64_pieces;
use crate::base::text::clean;
use crate::serve::adapters::{LoadAdapter, NAME, UnloadAdapter, admit, from_folder, unload, verify};
use crate::serve::auth::RlControl;
use crate::serve::error::ApiError;
use crate::serve::fields::Ignored;
use crate::serve::json::{Json, of_value};
use crate::serve::state::{App, blocking};
use crate::serve::weights::{Content, Payload, pickle};

/// Body of `/load_lora_adapter_from_tensors` as JSON.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: some fields are accepted and ask for nothing here")]
pub struct LoadFromTensors {
    /// Its name.
    pub lora_name: String,
    /// What adapter_config.json says.
    #[schema(value_type = Object)]
    pub config_dict: Value,
    /// Base64 of safetensors bytes, one text or several. (Upstream these are pickles, which are refused.)
    #[serde(alias = "serialized_tensors")]
    #[schema(value_type = Vec<String>)]
    pub serialized_named_tensors: Value,
    /// As in `/update_weights_from_tensor`.
    pub load_format: Option<String>,
    /// SHA-256 that tensors must have, by name.
    #[serde(default)]
    pub expected_checksums: BTreeMap<String, String>,
    /// Accepted; no adapter is ever put out by another.
    pub pinned: Option<bool>,
}

/// SGLang's answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Loaded {
    /// Always true; a refusal is an error.
    pub success: bool,
    /// In words.
    pub message: String,
    /// The adapters that are loaded now: name, and how often adapters were loaded until then.
    pub loaded_adapters: BTreeMap<String, u64>,
}

fn loaded(app: &App, message: String) -> Loaded {
    let all = app.live.engine().adapters().list();
    let loaded_adapters = all.iter().map(|a| (a.name().to_string(), a.version())).collect();
    Loaded { success: true, message, loaded_adapters }
}

/// Load an adapter from a folder inside a root, as SGLang does
#[utoipa::path(post, path = "/load_lora_adapter", tag = "rl", request_body = LoadAdapter, responses(
    (status = 200, description = "It is loaded", body = Loaded),
    (status = "4XX", description = "Refused", body = Success),
))]
async fn load_lora_adapter_sglang(
    RlControl(actor): RlControl,
    State(app): State<Arc<App>>,
    Json(body): Json<LoadAdapter>,
) -> SgResult<Json<Loaded>> {
    let answer = blocking(&app, move |app| {
        let adapter = from_folder(app, &body, &actor)?;
        Ok(loaded(app, format!("Loaded adapter {} of rank {}.", adapter.name(), adapter.rank())))
    })
    .await?;
    Ok(Json(answer))
}

/// Load an adapter from tensors
///
/// As JSON with base64, or with safetensors bytes as the body and `?lora_name=…&config_dict=…` (JSON).
#[utoipa::path(post, path = "/load_lora_adapter_from_tensors", tag = "rl",
    params(
        ("lora_name" = Option<String>, Query, description = "Its name, where the body is safetensors"),
        ("config_dict" = Option<String>, Query, description = "What adapter_config.json says, where the body is safetensors"),
    ),
    request_body(content(
        (LoadFromTensors = "application/json"),
        (Vec<u8> = "application/octet-stream"),
    )),
    responses(
        (status = 200, description = "It is loaded", body = Loaded),
        (status = "4XX", description = "Refused", body = Success),
    ))]
async fn load_lora_adapter_from_tensors(
    RlControl(actor): RlControl,
    State(app): State<Arc<App>>,
    ignored: Ignored,
    request: Request,
) -> SgResult<Json<Loaded>> {
    let mut payload = Payload::read(request, &app.rl).await?;
    let answer = blocking(&app, move |app| {
        let _place = payload.place();
        let (name, config, pieces) = match payload.content {
            Content::Json(value) => {
                pickle::refuse_fields(&value)?;
                let body: LoadFromTensors = of_value(value, &ignored)?;
                let pieces = base64_pieces(&body.serialized_named_tensors, body.load_format.as_deref())?;
                verify(&pieces, &body.expected_checksums)?;
                (body.lora_name, body.config_dict.to_string(), pieces)
            }
            _ => {
                let field = |name: &str| {
                    let why = "the body holds tensors, and the URL does not say it";
                    let next = "write ?lora_name=NAME&config_dict={…}";
                    payload
                        .query
                        .get(name)
                        .cloned()
                        .ok_or_else(|| ApiError::bad(format!("`{name}`"), why, next).param(name))
                };
                (field("lora_name")?, field("config_dict")?, payload.pieces(&app.roots)?)
            }
        };
        let adapter = admit(app, &name, config, &pieces, &actor)?;
        Ok(loaded(app, format!("Loaded adapter {} of rank {}.", adapter.name(), adapter.rank())))
    })
    .await?;
    Ok(Json(answer))
}

/// Unload an adapter, as SGLang does
#[utoipa::path(post, path = "/unload_lora_adapter", tag = "rl", request_body = UnloadAdapter, responses(
    (status = 200, description = "It is unloaded", body = Loaded),
    (status = "4XX", description = "Refused", body = Success),
))]
async fn unload_lora_adapter_sglang(
    RlControl(actor): RlControl,
    State(app): State<Arc<App>>,
    Json(body): Json<UnloadAdapter>,
) -> SgResult<Json<Loaded>> {
    unload(&app, &body.lora_name, &actor)?;
    Ok(Json(loaded(&app, format!("Unloaded adapter {}.", clean(&body.lora_name, NAME)))))
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(load_lora_adapter_sglang))
        .routes(routes!(load_lora_adapter_from_tensors))
        .routes(routes!(unload_lora_adapter_sglang))
}
