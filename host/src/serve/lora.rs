//! Adapters that come and go while the server runs: by vLLM's names (`/v1/load_lora_adapter`) and SGLang's
//! (`/load_lora_adapter`, `/load_lora_adapter_from_tensors`). An adapter is admitted by the patch with the `lora` hook,
//! checked natively whatever that says, and published at once or not at all. Sequences that run keep theirs.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::map_response;
use patchhost_runtime::lora::{Adapter, AdapterBuilder};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::RlControl;
use super::error::{ApiError, ApiResult, ErrorBody};
use super::json::{Json, parse};
use super::rl_body::{Content, Payload};
use super::sglang::{SgResult, Success, base64_pieces, in_sglang_form, refuse_pickles};
use super::state::App;
use super::weight_sync::blocking;
use super::weights_body::Piece;
use crate::base::text::clean;
use crate::patch::Actor;

/// Largest adapter_config.json.
const MAX_CONFIG: u64 = 1 << 20;
/// Longest name of an adapter.
const NAME: usize = 128;

/// Body of `/v1/load_lora_adapter` and `/load_lora_adapter`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct LoadAdapter {
    /// Its name: what requests give as `model` (or `lora_path`).
    pub lora_name: String,
    /// Its folder inside a root: adapter_config.json and adapter_model.safetensors.
    pub lora_path: String,
    /// Take the place of a loaded adapter of this name.
    #[serde(default)]
    pub load_inplace: bool,
    /// SGLang: accepted; no adapter is ever put out by another.
    pub pinned: Option<bool>,
}

/// Body of `/v1/unload_lora_adapter` and `/unload_lora_adapter`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct UnloadAdapter {
    /// Its name.
    pub lora_name: String,
    /// vLLM: accepted; names are enough.
    pub lora_int_id: Option<i64>,
}

/// Body of `/load_lora_adapter_from_tensors` as JSON.
#[derive(Debug, Clone, Deserialize, ToSchema)]
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
    payload: Payload,
) -> SgResult<Json<Loaded>> {
    let answer = blocking(&app, move |app| {
        let (name, config, pieces) = match payload.content {
            Content::Json(value) => {
                refuse_pickles(&value)?;
                let body: LoadFromTensors = parse(value.to_string().as_bytes())?;
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
                (field("lora_name")?, field("config_dict")?, payload.pieces(app)?)
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

fn from_folder(app: &App, body: &LoadAdapter, actor: &Actor) -> ApiResult<Arc<Adapter>> {
    check_name(app, &body.lora_name)?;
    if !body.load_inplace && app.live.engine().adapters().get(&body.lora_name).is_some() {
        return Err(ApiError::bad(
            format!("adapter `{}`", body.lora_name),
            "an adapter of this name is loaded",
            "unload it first, or set load_inplace",
        )
        .param("lora_name"));
    }
    let pinned = app.roots.pin(&body.lora_path)?;
    let config = pinned.text("adapter_config.json", MAX_CONFIG)?;
    let tensors = pinned.checkpoint(Some("adapter_model.safetensors")).map_err(|e| {
        let next = "give the folder that PEFT's save_pretrained wrote with safetensors (pickled adapter_model.bin is never read)";
        ApiError::bad(format!("adapter `{}`", pinned.shown()), pinned.plain(&e.to_string()), next).param("lora_path")
    })?;
    let pieces: Vec<Piece> = tensors.tensors().map(Piece::whole).collect();
    admit(app, &body.lora_name, config, &pieces, actor)
}

fn admit(app: &App, name: &str, config: String, pieces: &[Piece], actor: &Actor) -> ApiResult<Arc<Adapter>> {
    check_name(app, name)?;
    let patch = app.live.board().active().set().lora().ok_or_else(|| {
        ApiError::new(
            StatusCode::CONFLICT,
            "no_lora_patch",
            format!("adapter `{name}`"),
            "no active patch has the lora hook, and adapters are admitted by one",
            "start the server with the bundled lora_tensors, or swap to a patch that has it",
        )
    })?;
    let mut builder = AdapterBuilder::new(name, config);
    for piece in pieces {
        match piece.tensor() {
            Some(tensor) => builder.tensor(&tensor)?,
            None => builder.chunk(&piece.header(), &piece.data)?,
        }
    }
    let adapter = app.live.engine().load_adapter(builder, patch.as_ref())?;
    let fields =
        json!({ "name": name, "version": adapter.version(), "rank": adapter.rank(), "parts": adapter.adapted() });
    app.live.board().event("adapter.loaded", actor, fields);
    Ok(adapter)
}

fn unload(app: &App, name: &str, actor: &Actor) -> ApiResult<()> {
    if !app.live.engine().adapters().unload(name) {
        return Err(ApiError::not_found(
            format!("adapter `{}`", clean(name, NAME)),
            "no adapter of this name is loaded",
            "see GET /v1/models",
        )
        .param("lora_name"));
    }
    app.live.board().event("adapter.unloaded", actor, json!({ "name": name }));
    Ok(())
}

fn check_name(app: &App, name: &str) -> ApiResult<()> {
    let bad = |why: &str| {
        let next = "give 1 to 128 printable ASCII characters without spaces";
        Err(ApiError::bad(format!("adapter name `{}`", clean(name, 80)), why, next).param("lora_name"))
    };
    if name.is_empty() || name.len() > NAME || !name.bytes().all(|b| b.is_ascii_graphic()) {
        return bad("it is empty, too long, or has characters that names do not have");
    }
    if app.is_served(name) {
        return bad("it is the name of the served model");
    }
    Ok(())
}

/// The bytes are those that the sender meant.
fn verify(pieces: &[Piece], expected: &BTreeMap<String, String>) -> ApiResult<()> {
    let refuse = |name: &str, why: String| {
        let next = "send the adapter again; nothing was loaded";
        let what = format!("adapter tensor `{}`", clean(name, 200));
        Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "checksum", what, why, next))
    };
    for (name, sum) in expected {
        let Some(piece) = pieces.iter().find(|p| p.name == *name) else {
            return refuse(name, "a checksum was given for it, and it did not come".to_string());
        };
        let found = crate::base::hex(&Sha256::digest(&piece.data[..]));
        let wanted = sum.strip_prefix("sha256:").unwrap_or(sum);
        if !found.eq_ignore_ascii_case(wanted) {
            return refuse(name, format!("its bytes have sha256 {found}, {} was expected", clean(wanted, 80)));
        }
    }
    Ok(())
}

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    let sglang = OpenApiRouter::new()
        .routes(routes!(load_lora_adapter_sglang))
        .routes(routes!(load_lora_adapter_from_tensors))
        .routes(routes!(unload_lora_adapter_sglang))
        .layer(map_response(in_sglang_form));
    OpenApiRouter::new().routes(routes!(load_lora_adapter)).routes(routes!(unload_lora_adapter)).merge(sglang)
}
