//! Adapters that come and go while the server runs. An adapter is admitted by the patch with the `lora` hook, checked
//! natively whatever that says, and published at once or not at all. Sequences that run keep theirs.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use patchhost_runtime::lora::{Adapter, AdapterBuilder};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::error::{ApiError, ApiResult};
use super::state::App;
use super::weights::Piece;
use crate::base::hex;
use crate::base::text::clean;
use crate::patch::Actor;

/// Most bytes of an adapter_config.json.
const MAX_CONFIG: u64 = 1 << 20;
/// Most bytes of an adapter's name.
pub const NAME: usize = 128;

/// Body of `/v1/load_lora_adapter` and `/load_lora_adapter`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: some fields are accepted and ask for nothing here")]
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
#[allow(dead_code, reason = "for the OpenAPI document: some fields are accepted and ask for nothing here")]
pub struct UnloadAdapter {
    /// Its name.
    pub lora_name: String,
    /// vLLM: accepted; names are enough.
    pub lora_int_id: Option<i64>,
}

/// Loads the adapter of a folder inside a root.
pub fn from_folder(app: &App, body: &LoadAdapter, actor: &Actor) -> ApiResult<Arc<Adapter>> {
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
    admit(app, &body.lora_name, config, &Piece::all(&tensors), actor)
}

/// Builds an adapter out of its tensors, has the patch admit it, and publishes it.
pub fn admit(app: &App, name: &str, config: String, pieces: &[Piece], actor: &Actor) -> ApiResult<Arc<Adapter>> {
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
            None => builder.chunk(&piece.header(), &piece.data.load()?)?,
        }
    }
    let adapter = app.live.engine().load_adapter(builder, patch.as_ref())?;
    let fields =
        json!({ "name": name, "version": adapter.version(), "rank": adapter.rank(), "parts": adapter.adapted() });
    app.live.board().event("adapter.loaded", actor, fields);
    Ok(adapter)
}

/// Takes an adapter away from requests to come.
pub fn unload(app: &App, name: &str, actor: &Actor) -> ApiResult<()> {
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

/// Refuses tensors whose bytes are not those that the sender meant: `expected` has their SHA-256 by name.
pub fn verify(pieces: &[Piece], expected: &BTreeMap<String, String>) -> ApiResult<()> {
    let refuse = |name: &str, why: String| {
        let next = "send the adapter again; nothing was loaded";
        let what = format!("adapter tensor `{}`", clean(name, 200));
        Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "checksum", what, why, next))
    };
    for (name, sum) in expected {
        let Some(piece) = pieces.iter().find(|p| p.name == *name) else {
            return refuse(name, "a checksum was given for it, and it did not come".to_string());
        };
        let found = hex(&Sha256::digest(&piece.data.load()?[..]));
        let wanted = sum.strip_prefix("sha256:").unwrap_or(sum);
        if !found.eq_ignore_ascii_case(wanted) {
            return refuse(name, format!("its bytes have sha256 {found}, {} was expected", clean(wanted, 80)));
        }
    }
    Ok(())
}
