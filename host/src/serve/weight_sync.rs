//! Weights on their way into the server, whatever the endpoint is called:
//! pause → begin → chunks → finish → publish → forget prefixes → resume.
//!
//! One update is open at a time. Nothing of it touches the live weights before all of it came and was proved; whatever
//! goes wrong, the old weights serve on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use patchhost_runtime::error::RuntimeError;
use patchhost_runtime::generate::TokenVersion;
use patchhost_runtime::refit::{Begin, Manifest};
use patchhost_runtime::weights::WeightSet;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::auth::RlAuth;
use super::error::{ApiError, ApiResult};
use super::metrics::WeightUpdate;
use super::state::App;
use super::weights_body::Piece;
use crate::base::text::clean;
use crate::checkpoint::versions::VersionError;
use crate::live::{LiveError, Refitted, Update};
use crate::patch::{Actor, SwapErrorKind};

/// After so long without a chunk, whoever begins anew takes the place of an open update: its sender is gone.
const ABANDONED: Duration = Duration::from_secs(600);
/// Largest body of the endpoints that take weights, unless told otherwise.
const MAX_BODY: usize = 2 << 30;
/// Longest name of a version.
const VERSION: usize = 200;

/// What the endpoints for trainers share.
pub struct RlState {
    /// Who may use them.
    pub auth: RlAuth,
    /// Largest body that holds weights or adapters.
    pub max_body: usize,
    open: Mutex<Option<Open>>,
    /// Another name of weights than they were published with.
    renamed: Mutex<Option<Renamed>>,
    /// Checksums that `compare` compares with.
    baseline: Mutex<Option<BTreeMap<String, String>>>,
    asleep: Mutex<BTreeSet<Memory>>,
}

/// What can be asleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    /// The weights; they stay in memory, and are not used.
    Weights,
    /// Keys and values, and the prefix cache: given back.
    KvCache,
}

/// Weights that were called by another name.
struct Renamed {
    /// Their set.
    id: u64,
    /// What they were published as.
    label: String,
    /// What they are called now.
    name: String,
}

/// An open update.
struct Open {
    update: Update,
    /// It was opened by a chunk (TRL has no call for it).
    implicit: bool,
    last: Instant,
    /// In the metrics for as long as it is open.
    _in_flight: WeightUpdate,
}

impl Default for RlState {
    fn default() -> Self {
        Self {
            auth: RlAuth::default(),
            max_body: MAX_BODY,
            open: Mutex::default(),
            renamed: Mutex::default(),
            baseline: Mutex::default(),
            asleep: Mutex::default(),
        }
    }
}

/// Weights that are live now.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Published {
    /// What they are called.
    pub weight_version: String,
    /// Digest of the patch set that made them.
    pub patch_set: String,
    /// Number of the refit.
    pub refit: u64,
    /// The trainer's step, where it named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Tensors that became FP8.
    pub quantized: usize,
    /// Tensors loaded as they were.
    pub kept: usize,
    /// Bytes of the tensors that came.
    pub bytes: u64,
    /// Why another set than the active one made them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
    /// The swap that landed with them: from, to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swapped: Option<[String; 2]>,
    /// Why a candidate that should have landed did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reversed: Option<String>,
}

/// What has come so far.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Received {
    /// Tensors (or parts) of this request.
    pub tensors: usize,
    /// Tensors of the update of which anything came.
    pub tensors_total: usize,
    /// Bytes of the update.
    pub bytes_total: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RlState {
    /// Whether an update is open.
    pub fn is_open(&self) -> bool {
        lock(&self.open).is_some()
    }

    /// Whether an update is open that nobody began by a call.
    pub fn is_implicit(&self) -> bool {
        lock(&self.open).as_ref().is_some_and(|open| open.implicit)
    }

    /// What weights are called: as the trainer named them last.
    pub fn version_of(&self, weights: &WeightSet) -> String {
        match &*lock(&self.renamed) {
            Some(renamed) if renamed.id == weights.id() => renamed.name.clone(),
            _ => weights.label().to_string(),
        }
    }

    /// Calls the live weights by another name.
    pub fn rename(&self, weights: &WeightSet, name: String) {
        *lock(&self.renamed) = Some(Renamed { id: weights.id(), label: weights.label().to_string(), name });
    }

    /// The name in what an answer says about its tokens.
    pub fn name(&self, version: &mut TokenVersion) {
        if let Some(renamed) = &*lock(&self.renamed)
            && renamed.label == version.version
        {
            version.version.clone_from(&renamed.name);
        }
    }

    /// The checksums to compare with.
    pub fn baseline(&self) -> MutexGuard<'_, Option<BTreeMap<String, String>>> {
        lock(&self.baseline)
    }

    /// What is asleep.
    pub fn asleep(&self) -> MutexGuard<'_, BTreeSet<Memory>> {
        lock(&self.asleep)
    }
}

/// Runs what takes long or waits away from the threads that serve connections.
pub async fn blocking<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&Arc<App>) -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let app = Arc::clone(app);
    tokio::task::spawn_blocking(move || work(&app)).await.map_err(|e| ApiError::internal(&e))?
}

/// A version's name from outside.
pub fn version_name(given: Option<String>) -> ApiResult<Option<String>> {
    let Some(name) = given.filter(|n| !n.is_empty()) else { return Ok(None) };
    if name.len() > VERSION || name.chars().any(char::is_control) {
        return Err(ApiError::bad(
            format!("weight version `{}`", clean(&name, 80)),
            format!("a version is at most {VERSION} bytes, without control characters"),
            "give a number, or a short name",
        )
        .param("weight_version"));
    }
    Ok(Some(name))
}

/// How an update begins.
pub fn begin_of(version: Option<String>, manifest: Option<Value>) -> ApiResult<Begin> {
    let manifest: Option<Manifest> = match manifest.filter(|v| !v.is_null()) {
        None => None,
        Some(value) => Some(serde_json::from_value(value).map_err(|e| {
            let next = "give {\"tensors\": {NAME: {\"dtype\": \"BF16\", \"shape\": [2, 3], \"sha256\": \"…\"}}}; each field may be absent";
            ApiError::bad("`manifest`", clean(&e.to_string(), 300), next).param("manifest")
        })?),
    };
    Ok(Begin { version: version_name(version)?, manifest, ..Begin::default() })
}

/// Opens an update.
pub fn begin(app: &Arc<App>, begin: Begin, implicit: bool, actor: &Actor) -> ApiResult<()> {
    let mut open = lock(&app.rl.open);
    if let Some(old) = &*open {
        if old.last.elapsed() < ABANDONED {
            return Err(conflict(
                format!("update `{}`", begin.version.as_deref().unwrap_or("(unnamed)")),
                format!(
                    "another update is open: {} tensors came, the last {} s ago; one at a time",
                    old.update.arrivals().tensors(),
                    old.last.elapsed().as_secs()
                ),
            ));
        }
        *open = None;
    }
    let update = app.live.open_update(begin, actor)?;
    let in_flight = app.metrics.weight_update("update");
    *open = Some(Open { update, implicit, last: Instant::now(), _in_flight: in_flight });
    Ok(())
}

/// Takes tensors into the open update.
pub fn send(app: &App, pieces: &[Piece]) -> ApiResult<Received> {
    let _time = app.metrics.weight_update("receive");
    let mut open = lock(&app.rl.open);
    let Some(open) = &mut *open else {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "no_update",
            "these tensors",
            "no update is open",
            "begin one: POST /start_weight_update (vLLM) or /begin_weight_update (SGLang)",
        ));
    };
    take(&mut open.update, pieces)?;
    open.last = Instant::now();
    Ok(Received {
        tensors: pieces.len(),
        tensors_total: open.update.arrivals().tensors(),
        bytes_total: open.update.arrivals().bytes(),
    })
}

fn take(update: &mut Update, pieces: &[Piece]) -> ApiResult<()> {
    for piece in pieces {
        match piece.tensor() {
            Some(tensor) => update.tensor(&tensor)?,
            None => update.chunk(&piece.header(), &piece.data)?,
        }
    }
    Ok(())
}

/// Ends the open update: it is published, or refused and forgotten.
pub fn finish(app: &Arc<App>, version: Option<String>) -> ApiResult<Published> {
    let version = version_name(version)?;
    let open = lock(&app.rl.open).take();
    let Some(mut open) = open else {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "no_update",
            "the end of an update",
            "no update is open",
            "begin one and send its tensors first",
        ));
    };
    if let Some(version) = version {
        open.update.rename(version);
    }
    let _time = app.metrics.weight_update("finish");
    publish(app, open.update)
}

/// Forgets the open update; false if there was none.
pub fn abort(app: &App) -> bool {
    lock(&app.rl.open).take().is_some()
}

/// A whole update in one request.
pub fn whole(app: &Arc<App>, begin: Begin, pieces: &[Piece], actor: &Actor) -> ApiResult<Published> {
    let _time = app.metrics.weight_update("update");
    let mut update = app.live.open_update(begin, actor)?;
    take(&mut update, pieces)?;
    publish(app, update)
}

fn publish(app: &Arc<App>, update: Update) -> ApiResult<Published> {
    let done = update.finish(&|_, _, _| {})?;
    // New weights are new keys of the prefix cache; this only gives the memory back at once.
    app.scheduler.reset_prefix_cache();
    Ok(published(&done))
}

fn published(done: &Refitted) -> Published {
    Published {
        weight_version: done.weights.label().to_string(),
        patch_set: done.patch_set.to_string(),
        refit: done.refit,
        step: done.step,
        quantized: done.report.quantized,
        kept: done.report.kept,
        bytes: done.report.bytes_before,
        degraded: done.degraded.as_deref().map(|t| clean(t, 600)),
        swapped: done.swap.map(|s| [s.from.to_string(), s.to.to_string()]),
        reversed: done.reversed.as_deref().map(|t| clean(t, 600)),
    }
}

fn conflict(what: String, why: String) -> ApiError {
    let next = "finish it, or give it up with POST /abort_weight_update";
    ApiError::new(StatusCode::CONFLICT, "conflict", what, why, next)
}

impl From<LiveError> for ApiError {
    fn from(error: LiveError) -> Self {
        let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
        match error {
            LiveError::Runtime(error) => refit(error),
            LiveError::Stage(e) => {
                let status = match e {
                    crate::patch::StageError::NotFound { .. } => StatusCode::NOT_FOUND,
                    _ => unprocessable,
                };
                Self::new(status, "patch_refused", e.what(), e.why(), e.next())
            }
            LiveError::Swap(e) => {
                let (status, code) = match e.kind {
                    SwapErrorKind::Conflict => (StatusCode::CONFLICT, "conflict"),
                    SwapErrorKind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
                    SwapErrorKind::Invalid => (StatusCode::BAD_REQUEST, "invalid_value"),
                    SwapErrorKind::Forbidden => (StatusCode::FORBIDDEN, "forbidden"),
                    SwapErrorKind::Ledger => (StatusCode::SERVICE_UNAVAILABLE, "ledger"),
                };
                Self::new(status, code, e.what, e.why, e.next)
            }
            LiveError::Probe(r) => Self::new(unprocessable, "patch_refused", r.what, r.why, r.next),
            LiveError::Busy(r) => Self::new(StatusCode::CONFLICT, "conflict", r.what, r.why, r.next),
        }
    }
}

/// Why weights were not taken: 422 where their form was right and they were not.
fn refit(error: RuntimeError) -> ApiError {
    let (code, refusal) = match error {
        RuntimeError::Refit(r) => ("refit_refused", r),
        RuntimeError::NonFinite(r) => ("non_finite", r),
        RuntimeError::Contract(r) => ("scale_contract", r),
        RuntimeError::Hook(e) => {
            let what = format!("patch `{}`, call `{}`", clean(&e.patch, 100), clean(&e.call, 100));
            return ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "patch_failed", what, e.why, e.next);
        }
        other => return other.into(),
    };
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, code, refusal.what, refusal.why, refusal.next)
}

/// Why a version of weights was not read; `plain` takes private paths out of messages.
pub fn version_error(error: VersionError, plain: impl Fn(&str) -> String) -> ApiError {
    let (status, code, r) = match error {
        VersionError::Runtime(RuntimeError::Checkpoint(r)) | VersionError::Source(r) | VersionError::Format(r) => {
            (StatusCode::BAD_REQUEST, "invalid_value", r)
        }
        VersionError::Base(r) => (StatusCode::CONFLICT, "wrong_base", r),
        VersionError::Incomplete(r) => (StatusCode::CONFLICT, "incomplete", r),
        VersionError::Corrupt(r) => (StatusCode::UNPROCESSABLE_ENTITY, "corrupt", r),
        VersionError::Runtime(e) => return refit(e),
        e @ (VersionError::Unwritable(_) | VersionError::Write(_)) => return ApiError::internal(&e),
    };
    ApiError::new(status, code, plain(&r.what), plain(&r.why), plain(&r.next))
}
