//! New weights: `/update_weights_from_disk`, `/update_weights_from_tensor`, `/begin_weight_update`, `/end_weight_update`,
//! `/get_weights_by_name`, `/weights_checker`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri};
use patchhost_runtime::refit::Begin;
use patchhost_runtime::scheduler::PauseMode;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{SgResult, Success};
use crate::base::text::clean;
use crate::patch::Actor;
use crate::serve::auth::RlControl;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::fields::Ignored;
use crate::serve::json::{Json, OptionalJson, of_value};
use crate::serve::state::{App, blocking};
use crate::serve::weights::{
    Action, Checked, Claim, Content, Dialect, Narrowing, OfUpdate, Payload, Piece, Published, Terms, Updated,
    base64_bytes, begin_of, framed, pickle, safetensors, version_text,
};

/// What both updates can be told.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: some fields are accepted and ask for nothing here")]
pub struct UpdateOptions {
    /// What the new weights are called.
    #[schema(value_type = Option<String>)]
    pub weight_version: Option<Value>,
    /// End all requests first.
    #[serde(default)]
    pub abort_all_requests: bool,
    /// Forget the prefixes: always done, they belong to the old weights.
    pub flush_cache: Option<bool>,
    /// Accepted: this answers when the weights are live.
    #[serde(default)]
    pub is_async: bool,
    /// Accepted: there is no such cache on CPUs.
    #[serde(default)]
    pub torch_empty_cache: bool,
    /// Stay paused afterwards, if paused. Always so: only `/continue_generation` ends a pause.
    pub keep_pause: Option<bool>,
    /// The trainer's step, noted in the version where that is not given.
    pub token_step: Option<u64>,
    /// Take tensors that come less precise than the model is declared. Also in the query (`?allow_narrowing=true`) and as the
    /// header `X-Allow-Narrowing: true`.
    #[serde(default)]
    pub allow_narrowing: bool,
    /// False where only a part of the tensors comes: the rest stays as it is live. Also in the query (`?complete=false`) and as
    /// the header `X-Complete: false`.
    #[schema(value_type = Option<bool>)]
    pub complete: Option<Value>,
    /// What the names of the tensors become: {FROM: TO}. Also in the query (`?rename=FROM=TO`) and as the header `X-Rename`.
    #[schema(value_type = Option<Object>)]
    pub rename: Option<Value>,
    /// What must come: {"tensors": {NAME: {"dtype", "shape", "sha256"}}}.
    #[schema(value_type = Option<Object>)]
    pub manifest: Option<Value>,
    /// Which update, as begin answered it; at begin, an id of the client's own, which each request has to name then.
    pub update_id: Option<String>,
    /// Which models of several: there is one.
    #[schema(value_type = Option<Object>)]
    pub selector: Option<Value>,
}

impl UpdateOptions {
    /// How an update with these options begins, its weights being called `version`; `terms` are those of the URL.
    fn begin(&self, terms: Terms, version: Option<String>) -> ApiResult<Begin> {
        let begin = begin_of(version, self.manifest.clone())?;
        Ok(self.terms(terms)?.begin(Begin { allow_narrowing: self.allow_narrowing, ..begin }))
    }

    fn terms(&self, of_url: Terms) -> ApiResult<Terms> {
        of_url.and(Terms::of(self.complete.as_ref(), self.rename.as_ref())?)
    }

    fn version(&self) -> ApiResult<Option<String>> {
        Ok(version_text(self.weight_version.clone())?
            .or_else(|| self.token_step.filter(|n| *n > 0).map(|n| n.to_string())))
    }
}

/// Body of `/update_weights_from_disk`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct UpdateFromDisk {
    /// A file or folder inside a root: a checkpoint, a version, a delta, or a folder of versions. Or the local folder of
    /// the last `/pull_weights`.
    pub model_path: String,
    /// `auto`, `safetensors` or absent.
    pub load_format: Option<String>,
    #[serde(flatten)]
    #[schema(inline)]
    options: UpdateOptions,
}

/// Take the weights of a file or folder inside a root
///
/// From a folder of versions: the version that `weight_version` names if it is one of them, else the newest.
#[utoipa::path(post, path = "/update_weights_from_disk", tag = "rl", params(OfUpdate), request_body = UpdateFromDisk, responses(
    (status = 200, description = "The new weights are live", body = Success),
    (status = "4XX", description = "Refused; the old weights serve on", body = Success),
))]
async fn update_weights_from_disk(
    RlControl(actor): RlControl,
    narrowing: Narrowing,
    terms: Terms,
    State(app): State<Arc<App>>,
    Json(mut body): Json<UpdateFromDisk>,
) -> SgResult<Json<Success>> {
    body.options.allow_narrowing = narrowing.allowed(body.options.allow_narrowing);
    if let Some(format) = body.load_format.as_deref().filter(|f| !matches!(*f, "auto" | "safetensors" | "")) {
        let why = format!("`{}` is not read: only safetensors are", clean(format, 60));
        return Err(ApiError::unsupported("load_format", why).into());
    }
    let published = blocking(&app, move |app| from_disk(app, &body, terms, &actor)).await?;
    Ok(Json(success(&app, published)))
}

fn from_disk(app: &Arc<App>, body: &UpdateFromDisk, terms: Terms, actor: &Actor) -> ApiResult<Published> {
    let version = body.options.version()?;
    let renames = body.options.terms(terms.clone())?.renames;
    let (pieces, version) = match app.rl.pulled(&body.model_path) {
        Some(_) if !renames.is_empty() => {
            let why = "the tensors of a folder that was pulled have the model's names already";
            return Err(ApiError::bad("`rename`", why, "leave it away").param("rename"));
        }
        Some((pieces, pulled)) => (pieces, version.or(Some(pulled))),
        None => app.rl.load(&app.roots.pin(&body.model_path)?, version, &renames)?,
    };
    if body.options.abort_all_requests {
        app.scheduler.abort_all();
    }
    app.rl.loaded(body.options.begin(terms, version)?, &pieces, actor)
}

/// Body of `/update_weights_from_tensor` as JSON.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct UpdateFromTensor {
    /// Base64 of safetensors bytes, one text or several. (Upstream these are pickles, which are refused.)
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub serialized_named_tensors: Value,
    /// Absent or `direct`: safetensors. `flattened_bucket`: eight bytes of length, JSON with `bucket_meta`, raw bytes.
    pub load_format: Option<String>,
    #[serde(flatten)]
    #[schema(inline)]
    options: UpdateOptions,
}

/// Send tensors: a part of the update that was begun, or (where none was) all of them at once
///
/// As JSON with base64, or with the tensors as the body itself (as `/update_weights` takes them).
#[utoipa::path(post, path = "/update_weights_from_tensor", tag = "rl", params(OfUpdate),
    request_body(content(
        (UpdateFromTensor = "application/json"),
        (Vec<u8> = "application/octet-stream"),
    )),
    responses(
        (status = 200, description = "They are here, or live", body = Success),
        (status = "4XX", description = "Refused; the old weights serve on", body = Success),
    ))]
async fn update_weights_from_tensor(
    RlControl(actor): RlControl,
    narrowing: Narrowing,
    terms: Terms,
    State(app): State<Arc<App>>,
    ignored: Ignored,
    request: Request,
) -> SgResult<Json<Success>> {
    let claim = Claim::of(Dialect::Sglang, request.uri(), request.headers())?;
    app.rl.expects(&claim)?;
    let payload = Payload::read(request, &app.rl).await?;
    let answer =
        blocking(&app, move |app| from_tensor(app, claim, payload, Said { narrowing, terms }, &ignored, &actor))
            .await?;
    Ok(Json(answer))
}

/// What the URL and the headers of a request with tensors say.
struct Said {
    narrowing: Narrowing,
    terms: Terms,
}

fn from_tensor(
    app: &Arc<App>,
    claim: Claim,
    mut payload: Payload,
    Said { narrowing, mut terms }: Said,
    ignored: &Ignored,
    actor: &Actor,
) -> ApiResult<Success> {
    let _place = payload.place();
    let (pieces, mut options) = match payload.content {
        Content::Json(value) => {
            pickle::refuse_fields(&value)?;
            let body: UpdateFromTensor = of_value(value, ignored)?;
            (base64_pieces(&body.serialized_named_tensors, body.load_format.as_deref())?, body.options)
        }
        _ => {
            terms = terms.and(payload.terms()?)?;
            let options = UpdateOptions {
                weight_version: payload.text("weight_version").map(Value::String),
                abort_all_requests: payload.flag("abort_all_requests", false),
                ..UpdateOptions::default()
            };
            (payload.pieces(&app.roots)?, options)
        }
    };
    options.allow_narrowing = narrowing.allowed(options.allow_narrowing);
    let claim = claim.or(options.update_id.clone())?;
    let version = options.version()?;
    if options.abort_all_requests {
        app.scheduler.abort_all();
    }
    match app.rl.take(options.begin(terms, version)?, &claim, &pieces, actor)? {
        Updated::Received(received) => {
            let message =
                format!("Received {} tensors; nothing is live before {}.", received.tensors, received.ends_with);
            let (paused, id) = (Some(paused(app)), Some(received.update_id));
            Ok(Success { num_paused_requests: paused, update_id: id, ..Success::good(message) })
        }
        Updated::Published(published) => Ok(success(app, published)),
    }
}

/// The tensors of base64 texts.
pub(super) fn base64_pieces(value: &Value, format: Option<&str>) -> ApiResult<Vec<Piece>> {
    let what = "`serialized_named_tensors`";
    let bad = |why: &str| {
        let next = "send base64 of safetensors.torch.save(tensors), or safetensors bytes as the body";
        ApiError::bad(what, why, next).param("serialized_named_tensors")
    };
    let texts: Vec<&str> = match value {
        Value::String(text) => vec![text],
        Value::Array(list) => {
            list.iter().map(|v| v.as_str().ok_or_else(|| bad("its entries must be texts"))).collect::<Result<_, _>>()?
        }
        _ => return Err(bad("it is neither a text nor a list of texts")),
    };
    if texts.is_empty() {
        return Err(bad("it is empty"));
    }
    let mut pieces = Vec::new();
    for text in texts {
        let bytes = base64_bytes(what, text)?;
        pieces.extend(match format {
            None | Some("" | "auto" | "direct" | "safetensors") => safetensors(what, bytes)?,
            Some("flattened_bucket" | "bucket") => framed(what, bytes)?,
            Some(other) => {
                let why = format!(
                    "`{}` names code that loads weights; known are direct and flattened_bucket",
                    clean(other, 60)
                );
                return Err(ApiError::unsupported("load_format", why));
            }
        });
    }
    Ok(pieces)
}

fn paused(app: &App) -> usize {
    let load = app.scheduler.load();
    match app.scheduler.is_paused() {
        Some(PauseMode::Keep | PauseMode::Retract) => load.running + load.waiting,
        Some(_) => load.waiting,
        None => 0,
    }
}

fn success(app: &App, published: Published) -> Success {
    let stayed = published.stayed.as_ref().map_or(0, |stayed| stayed.tensors);
    let message = match (&published.degraded, &published.reversed) {
        (Some(why), _) => format!("Succeeded, with a fallback: {why}"),
        (_, Some(why)) => format!("Succeeded; the candidate was reversed: {why}"),
        _ if stayed > 0 => format!("Succeeded to update model weights; {stayed} tensors stay as they were."),
        _ => "Succeeded to update model weights.".to_string(),
    };
    Success {
        num_paused_requests: Some(paused(app)),
        weight_version: Some(published.weight_version),
        patch_set: Some(published.patch_set),
        stayed: published.stayed,
        ..Success::good(message)
    }
}

/// Begin an update of the weights
#[utoipa::path(post, path = "/begin_weight_update", tag = "rl", params(OfUpdate), request_body = Option<UpdateOptions>, responses(
    (status = 200, description = "Send tensors", body = Success),
    (status = 409, description = "Another update is open", body = Success),
    (status = "4XX", description = "Refused", body = Success),
))]
async fn begin_weight_update(
    RlControl(actor): RlControl,
    narrowing: Narrowing,
    terms: Terms,
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    OptionalJson(mut body): OptionalJson<UpdateOptions>,
) -> SgResult<Json<Success>> {
    let claim = Claim::of(Dialect::Sglang, &uri, &headers)?.or(body.update_id.clone())?;
    body.allow_narrowing = narrowing.allowed(body.allow_narrowing);
    let begin = body.begin(terms, body.version()?)?;
    let begun = blocking(&app, move |app| {
        if body.abort_all_requests {
            app.scheduler.abort_all();
        }
        app.rl.begin(begin, &claim, &actor)
    })
    .await?;
    let message = match begun.must_be_named {
        true => "Weight update begun; each of its requests has to name its update_id.",
        false => "Weight update begun.",
    };
    Ok(Json(Success { update_id: Some(begun.update_id), ..Success::good(message) }))
}

/// End an update: all of it is proved, and live in one step
#[utoipa::path(post, path = "/end_weight_update", tag = "rl", params(OfUpdate), request_body = Option<UpdateOptions>, responses(
    (status = 200, description = "The new weights are live", body = Success),
    (status = 409, description = "No update is open", body = Success),
    (status = "4XX", description = "Refused; the old weights serve on", body = Success),
))]
async fn end_weight_update(
    _who: RlControl,
    narrowing: Narrowing,
    terms: Terms,
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    OptionalJson(body): OptionalJson<UpdateOptions>,
) -> SgResult<Json<Success>> {
    let claim = Claim::of(Dialect::Sglang, &uri, &headers)?.or(body.update_id.clone())?;
    let (version, allow_narrowing) = (body.version()?, narrowing.allowed(body.allow_narrowing));
    let said = body.terms(terms)?.begin(Begin { version, allow_narrowing, ..Begin::default() });
    let published = blocking(&app, move |app| app.rl.finish(&claim, said)).await?;
    Ok(Json(success(&app, published)))
}

/// Body of `/get_weights_by_name`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct GetWeightsByName {
    /// Name of a tensor, as the checkpoint or as the runtime calls it.
    pub name: String,
    /// Most entries of the first dimension; the default is 100.
    pub truncate_size: Option<usize>,
}

/// Values of a tensor, as nested lists
#[utoipa::path(method(get, post), path = "/get_weights_by_name", tag = "rl", request_body = GetWeightsByName, responses(
    (status = 200, description = "The values, FP8 widened", body = Vec<Object>),
    (status = "4XX", description = "Refused", body = Success),
))]
async fn get_weights_by_name(
    _who: RlControl,
    State(app): State<Arc<App>>,
    Json(body): Json<GetWeightsByName>,
) -> SgResult<Json<Value>> {
    let truncate = body.truncate_size.unwrap_or(100);
    let values = blocking(&app, move |app| app.rl.values(&body.name, truncate)).await?;
    Ok(Json(values))
}

/// Body of `/weights_checker`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: some fields are accepted and ask for nothing here")]
pub struct WeightsChecker {
    /// `snapshot` (or `reset`), `compare`, `checksum`.
    #[schema(value_type = String)]
    pub action: Action,
    /// Accepted: checksums are of the quantized bytes, which are exact.
    pub allow_quant_error: Option<bool>,
    /// Runtime tensors that are not compared.
    pub skip_tensor_list: Option<Vec<String>>,
    /// Checksums to compare with; those of the last `snapshot` if absent.
    pub baseline: Option<BTreeMap<String, String>>,
    #[schema(ignore)]
    selector: Option<Value>,
}

/// Compare the live weights with how they were
#[utoipa::path(post, path = "/weights_checker", tag = "rl", request_body = WeightsChecker, responses(
    (status = 200, description = "They are as they should be", body = Success),
    (status = "4XX", description = "They are not, or refused", body = Success),
))]
async fn weights_checker(
    _who: RlControl,
    State(app): State<Arc<App>>,
    Json(body): Json<WeightsChecker>,
) -> SgResult<Json<Success>> {
    let (skip, action) = (body.skip_tensor_list.unwrap_or_default(), body.action);
    let found = blocking(&app, move |app| app.rl.check(action, body.baseline)).await?;
    Ok(Json(match found {
        Checked::Checksums { digest, .. } => Success::good(format!("sha256:{digest}")),
        Checked::Status { .. } => Success::good("Snapshot taken."),
        Checked::Compared { mismatches, .. } => {
            let left: Vec<String> = mismatches.into_iter().filter(|m| !skip.contains(m)).collect();
            if let Some(first) = left.first() {
                let why = format!("{} tensors differ; the first is `{first}`", left.len());
                return Err(
                    ApiError::bad("the live weights", why, "send the weights again, or take a new snapshot").into()
                );
            }
            Success::good("All tensors are equal.")
        }
    }))
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(update_weights_from_disk))
        .routes(routes!(update_weights_from_tensor))
        .routes(routes!(begin_weight_update))
        .routes(routes!(end_weight_update))
        .routes(routes!(get_weights_by_name))
        .routes(routes!(weights_checker))
}
