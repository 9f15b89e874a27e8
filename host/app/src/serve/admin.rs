//! `/admin/v1/…`: which patches run. Reachable over the admin socket, or with the admin token; see [`super::auth`].

use std::sync::Arc;

use axum::extract::{FromRequest, Request, State};
use axum::http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Admin;
use super::error::{ApiError, ApiResult, ErrorBody};
use super::fields::Ignored;
use super::intake::{Limit, PATIENCE, Read, read};
use super::json::{Json, OptionalJson, UrlQuery, parse_watched};
use super::state::{App, blocking};
use crate::audit::Caps;
use crate::base::Digest;
use crate::base::text::clean;
use crate::live::LiveError;
use crate::patch::{Candidate, Mode, SwapRequest, When, bundled::bundled};

/// Most records of one answer.
const MOST_RECORDS: usize = 1000;

/// The patches: active, staged, coming, retained, in quarantine
#[utoipa::path(get, path = "/admin/v1/patches", tag = "admin", responses(
    (status = 200, description = "The board", body = Object),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn patches(_who: Admin, State(app): State<Arc<App>>) -> ApiResult<Json<Value>> {
    shown(app.live.board().status())
}

/// Everything about the live model
#[utoipa::path(get, path = "/admin/v1/status", tag = "admin", responses(
    (status = 200, description = "Model, weights, patches, ledger", body = Object),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn status(_who: Admin, State(app): State<Arc<App>>) -> ApiResult<Json<Value>> {
    shown(app.live.status())
}

fn shown(value: impl Serialize) -> ApiResult<Json<Value>> {
    serde_json::to_value(value).map(Json).map_err(|e| ApiError::internal(&e))
}

/// Query of `/admin/v1/ledger`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct LedgerQuery {
    /// How many of the newest records; the default is 50.
    pub last: Option<usize>,
}

/// The newest records of the ledger
#[utoipa::path(get, path = "/admin/v1/ledger", tag = "admin", params(LedgerQuery), responses(
    (status = 200, description = "The records, and the head of the chain", body = Object),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn ledger(
    _who: Admin,
    State(app): State<Arc<App>>,
    UrlQuery(query): UrlQuery<LedgerQuery>,
) -> ApiResult<Json<Value>> {
    let last = query.last.unwrap_or(50).min(MOST_RECORDS);
    let ledger = app.live.ledger();
    shown(serde_json::json!({ "head": ledger.head(), "entries": ledger.recent(last) }))
}

/// Body of `/admin/v1/stage` as JSON.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct StageRequest {
    /// A component inside a root.
    pub path: Option<String>,
    /// A bundled patch, in place of a path.
    pub bundled: Option<String>,
    /// What messages call it.
    pub name: Option<String>,
    /// Settings by name.
    #[schema(value_type = std::collections::HashMap<String, String>)]
    pub settings: Map<String, Value>,
    /// The digest that the bytes must have.
    #[schema(value_type = Option<String>)]
    pub sha256: Option<Digest>,
}

/// A candidate as it came.
struct ToStage {
    candidate: Candidate,
    settings: Vec<(String, String)>,
    sha256: Option<Digest>,
}

impl FromRequest<Arc<App>> for ToStage {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> ApiResult<Self> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let mime = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let UrlQuery(pairs) = UrlQuery::<Vec<(String, String)>>::of(request.uri())?;
        let ignored = Ignored::of(request.extensions());
        // Base64 is not taken, so the component itself is the largest body.
        let most = Caps::default().bytes;
        let limit = Limit {
            bytes: most,
            all: most,
            room: &app.bodies,
            patience: PATIENCE,
            next: "send a smaller component: a larger one is not audited either".to_string(),
        };
        let Read { bytes, held: _held } = read(request.into_body(), &limit, |_| Ok(true)).await?;
        if mime == "application/json" {
            return of_json(app, parse_watched(&bytes, &ignored)?);
        }
        if !matches!(mime.as_str(), "application/wasm" | "application/octet-stream") {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "the request's content type",
                format!("it is `{}`", clean(&mime, 100)),
                "send a component as application/wasm, or application/json with `path`",
            ));
        }
        let mut staged = StageRequest::default();
        for (key, value) in pairs {
            match key.as_str() {
                "name" => staged.name = Some(value),
                "sha256" => staged.sha256 = Some(digest(&value, "sha256")?),
                "set" => {
                    let (key, value) = value.split_once('=').filter(|(k, _)| !k.is_empty()).ok_or_else(|| {
                        ApiError::bad("`set`", "a setting is KEY=VALUE", "write ?set=profile%3Ddeepseek").param("set")
                    })?;
                    staged.settings.insert(key.to_string(), Value::String(value.to_string()));
                }
                other => return Err(unknown(other)),
            }
        }
        let name = staged.name.clone().unwrap_or_else(|| "component".to_string());
        let candidate = Candidate::from_bytes(&name, bytes.to_vec()).map_err(LiveError::from)?;
        Ok(Self { candidate, settings: settings(staged.settings)?, sha256: staged.sha256 })
    }
}

fn unknown(key: &str) -> ApiError {
    let what = format!("`{}` in the URL", clean(key, 60));
    ApiError::bad(what, "known are name, set and sha256", "leave it away")
}

fn of_json(app: &App, request: StageRequest) -> ApiResult<ToStage> {
    let candidate = match (&request.path, &request.bundled) {
        (Some(path), None) => {
            let bytes = app.roots.read(path, Caps::default().bytes as u64)?;
            let name = request.name.as_deref().unwrap_or(path);
            Candidate::from_bytes(name, bytes).map_err(LiveError::from)?
        }
        (None, Some(name)) => bundled(name).ok_or_else(|| {
            let known: Vec<&str> = crate::patch::bundled::BUNDLED.iter().map(|(name, _)| *name).collect();
            ApiError::not_found(
                format!("bundled patch `{}`", clean(name, 80)),
                "there is none of this name",
                known.join(", "),
            )
        })?,
        _ => {
            let why = "exactly one of `path` and `bundled` must be given";
            return Err(ApiError::bad("this candidate", why, "or send the component as application/wasm"));
        }
    };
    Ok(ToStage { candidate, settings: settings(request.settings)?, sha256: request.sha256 })
}

fn settings(map: Map<String, Value>) -> ApiResult<Vec<(String, String)>> {
    map.into_iter()
        .map(|(key, value)| match value {
            Value::String(text) => Ok((key, text)),
            Value::Number(n) => Ok((key, n.to_string())),
            Value::Bool(b) => Ok((key, b.to_string())),
            _ => {
                let what = format!("setting `{}`", clean(&key, 80));
                Err(ApiError::bad(what, "its value is neither text nor a number", "give text").param("settings"))
            }
        })
        .collect()
}

/// Take a candidate through every stage: verify, audit, compile, start, probe. Nothing live changes
#[utoipa::path(post, path = "/admin/v1/stage", tag = "admin",
    params(
        ("name" = Option<String>, Query, description = "What messages call it, where the body is the component"),
        ("set" = Option<Vec<String>>, Query, description = "Settings KEY=VALUE, where the body is the component"),
        ("sha256" = Option<String>, Query, description = "The digest that the bytes must have"),
    ),
    request_body(content(
        (StageRequest = "application/json"),
        (Vec<u8> = "application/wasm"),
    )),
    responses(
        (status = 200, description = "It is staged: name, sha256, generation", body = Object),
        (status = 422, description = "A stage refused it", body = ErrorBody),
        (status = "4XX", description = "Refused", body = ErrorBody),
    ))]
async fn stage(Admin(actor): Admin, State(app): State<Arc<App>>, to: ToStage) -> ApiResult<Json<Value>> {
    let staged = blocking(&app, move |app| Ok(app.live.stage(to.candidate, to.sha256, &to.settings, &actor)?)).await?;
    shown(staged)
}

/// Body of `/admin/v1/swap`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct Swap {
    /// A staged or retained patch, by the digest of its generation or of its component.
    pub to: String,
    /// What must be active: the digest of the set, or of the patch that is replaced.
    pub expect: Option<String>,
    /// `refit` (the default), `now` or `step:N`.
    pub when: Option<String>,
    /// `live` (the default), `shadow` or `canary=N%`.
    pub mode: Option<String>,
    /// Also against a transition or with hooks that would be left empty; needs a reason, and marks the process.
    #[serde(default)]
    pub force: bool,
    /// Why, for the ledger.
    pub reason: Option<String>,
}

/// Ask for a swap: it lands as a whole, at a refit
#[utoipa::path(post, path = "/admin/v1/swap", tag = "admin", request_body = Swap, responses(
    (status = 200, description = "What became of it", body = Object),
    (status = 409, description = "Something else is active, or under way", body = ErrorBody),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn swap(Admin(actor): Admin, State(app): State<Arc<App>>, Json(body): Json<Swap>) -> ApiResult<Json<Value>> {
    let request = SwapRequest {
        to: digest(&body.to, "to")?,
        expect: body.expect.as_deref().map(|d| digest(d, "expect")).transpose()?,
        when: when(body.when.as_deref())?,
        mode: mode(body.mode.as_deref())?,
        force: body.force,
        reason: body.reason,
    };
    shown(blocking(&app, move |app| Ok(app.live.swap(&request, &actor)?)).await?)
}

/// Body of `/admin/v1/rollback`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct Rollback {
    /// `refit` (the default), `now` or `step:N`.
    pub when: Option<String>,
    /// Why, for the ledger.
    pub reason: Option<String>,
}

/// Go back to the set before; a candidate that has not landed is taken back first
#[utoipa::path(post, path = "/admin/v1/rollback", tag = "admin", request_body = Option<Rollback>, responses(
    (status = 200, description = "What became of it", body = Object),
    (status = 404, description = "There is no set before", body = ErrorBody),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn rollback(
    Admin(actor): Admin,
    State(app): State<Arc<App>>,
    OptionalJson(body): OptionalJson<Rollback>,
) -> ApiResult<Json<Value>> {
    let when = when(body.when.as_deref())?;
    shown(blocking(&app, move |app| Ok(app.live.rollback(when, body.reason, &actor)?)).await?)
}

/// Body of `/admin/v1/mode`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct SetMode {
    /// `live`, `shadow` or `canary=N%`.
    pub mode: String,
    /// `refit` (the default), `now` or `step:N`.
    pub when: Option<String>,
}

/// Move the candidate to another mode
#[utoipa::path(post, path = "/admin/v1/mode", tag = "admin", request_body = SetMode, responses(
    (status = 200, description = "What became of it", body = Object),
    (status = 404, description = "No candidate is under way", body = ErrorBody),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn set_mode(
    Admin(actor): Admin,
    State(app): State<Arc<App>>,
    Json(body): Json<SetMode>,
) -> ApiResult<Json<Value>> {
    let (mode, when) = (mode(Some(&body.mode))?, when(body.when.as_deref())?);
    shown(blocking(&app, move |app| Ok(app.live.set_mode(mode, when, &actor)?)).await?)
}

/// Body of `/admin/v1/cancel`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct Cancel {
    /// Why, for the ledger.
    pub reason: Option<String>,
}

/// Whether something was done.
#[derive(Debug, Serialize, ToSchema)]
pub struct Done {
    /// False: there was nothing to do.
    pub done: bool,
}

/// End a swap that has not landed
#[utoipa::path(post, path = "/admin/v1/cancel", tag = "admin", request_body = Option<Cancel>, responses(
    (status = 200, description = "It is ended, or there was none", body = Done),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn cancel(
    Admin(actor): Admin,
    State(app): State<Arc<App>>,
    OptionalJson(body): OptionalJson<Cancel>,
) -> ApiResult<Json<Done>> {
    let why = body.reason.map_or_else(|| "it was asked for".to_string(), |r| clean(&r, 400));
    let done = blocking(&app, move |app| Ok(app.live.cancel(&why, &actor))).await?;
    Ok(Json(Done { done }))
}

/// Body of `/admin/v1/quarantine` and `/admin/v1/unquarantine`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct Quarantine {
    /// Digest of the component.
    pub digest: String,
    /// Why, for the ledger.
    pub reason: String,
}

/// A component never runs again until this is lifted
#[utoipa::path(post, path = "/admin/v1/quarantine", tag = "admin", request_body = Quarantine, responses(
    (status = 200, description = "It may not run", body = Done),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn quarantine(
    Admin(actor): Admin,
    State(app): State<Arc<App>>,
    Json(body): Json<Quarantine>,
) -> ApiResult<Json<Done>> {
    let component = digest(&body.digest, "digest")?;
    blocking(&app, move |app| {
        Ok(app.live.board().quarantine(component, &body.reason, &actor).map_err(LiveError::from)?)
    })
    .await?;
    Ok(Json(Done { done: true }))
}

/// Lift a quarantine
#[utoipa::path(post, path = "/admin/v1/unquarantine", tag = "admin", request_body = Quarantine, responses(
    (status = 200, description = "It may run, or was not in quarantine", body = Done),
    (status = "4XX", description = "Refused", body = ErrorBody),
))]
async fn unquarantine(
    Admin(actor): Admin,
    State(app): State<Arc<App>>,
    Json(body): Json<Quarantine>,
) -> ApiResult<Json<Done>> {
    let component = digest(&body.digest, "digest")?;
    let done = blocking(&app, move |app| {
        Ok(app.live.board().unquarantine(&component, &body.reason, &actor).map_err(LiveError::from)?)
    })
    .await?;
    Ok(Json(Done { done }))
}

fn digest(text: &str, field: &str) -> ApiResult<Digest> {
    text.parse().map_err(|e: crate::base::NotADigest| {
        ApiError::bad(format!("`{field}`"), e.to_string(), "take it from GET /admin/v1/patches").param(field)
    })
}

fn when(text: Option<&str>) -> ApiResult<When> {
    text.unwrap_or("refit")
        .parse()
        .map_err(|why: String| ApiError::bad("`when`", why, "give refit, now or step:N").param("when"))
}

fn mode(text: Option<&str>) -> ApiResult<Mode> {
    text.unwrap_or("live")
        .parse()
        .map_err(|why: String| ApiError::bad("`mode`", why, "give live, shadow or canary=N%").param("mode"))
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(patches))
        .routes(routes!(status))
        .routes(routes!(ledger))
        .routes(routes!(stage))
        .routes(routes!(swap))
        .routes(routes!(rollback))
        .routes(routes!(set_mode))
        .routes(routes!(cancel))
        .routes(routes!(quarantine))
        .routes(routes!(unquarantine))
}
