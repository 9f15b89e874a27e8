//! An update of the weights, whatever the endpoint is called:
//! pause → begin → chunks → finish → publish → forget prefixes → resume.
//!
//! One update is open at a time. Nothing of it touches the live weights before all of it came and was proved; whatever
//! goes wrong, the old weights serve on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use patchhost_runtime::generate::TokenVersion;
use patchhost_runtime::refit::{Begin, Manifest};
use patchhost_runtime::scheduler::Scheduler;
use patchhost_runtime::weights::WeightSet;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::Piece;
use super::inspect::{self, Action, Checked};
use super::refused::version_error;
use super::roots::Pinned;
use crate::base::text::clean;
use crate::checkpoint::versions::{Base, Version};
use crate::live::{LiveModel, Refitted, Update};
use crate::patch::Actor;
use crate::serve::auth::RlAuth;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::metrics::{Metrics, WeightUpdate};

/// After so long without a chunk, whoever begins anew takes the place of an open update: its sender is gone.
const ABANDONED: Duration = Duration::from_secs(600);
/// Largest body of the endpoints that take weights, unless told otherwise.
const MAX_BODY: usize = 2 << 30;
/// Most bytes of the name of a version.
const VERSION: usize = 200;

/// What the endpoints for trainers share: who may use them, the update that is open, what the live weights are called.
pub struct RlState {
    /// Who may use them.
    pub auth: RlAuth,
    /// Largest body in bytes that holds weights or adapters.
    pub max_body: usize,
    live: Arc<LiveModel>,
    scheduler: Scheduler,
    metrics: Arc<Metrics>,
    open: Mutex<Option<Open>>,
    /// Another name of weights than they were published with.
    renamed: Mutex<Option<Renamed>>,
    /// Checksums that `compare` compares with.
    baseline: Mutex<Option<BTreeMap<String, String>>>,
}

/// Weights that were called by another name.
struct Renamed {
    /// Id of the set of weights.
    id: u64,
    /// What they were published as.
    label: String,
    /// What they are called now.
    name: String,
}

/// An update that has begun and not ended.
struct Open {
    update: Update,
    /// It was opened by its first tensor (TRL has no call for it).
    implicit: bool,
    last: Instant,
    /// In the metrics for as long as it is open.
    _in_flight: WeightUpdate,
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
    /// What was rounded, narrowed, or ignored though it says something else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
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
    /// No update is open, and everybody on this machine may begin one.
    pub fn new(live: Arc<LiveModel>, scheduler: Scheduler, metrics: Arc<Metrics>) -> Self {
        Self {
            auth: RlAuth::default(),
            max_body: MAX_BODY,
            live,
            scheduler,
            metrics,
            open: Mutex::default(),
            renamed: Mutex::default(),
            baseline: Mutex::default(),
        }
    }

    /// Whether an update is open.
    pub fn is_open(&self) -> bool {
        lock(&self.open).is_some()
    }

    /// Whether an update is open that its first tensor began, and no call (TRL has none for it).
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

    /// Gives the weights in what an answer says about its tokens the name that the trainer gave them last.
    pub fn name(&self, version: &mut TokenVersion) {
        if let Some(renamed) = &*lock(&self.renamed)
            && renamed.label == version.version
        {
            version.version.clone_from(&renamed.name);
        }
    }

    /// Opens an update. `implicit`: no call asked for it, its first tensor did.
    pub fn begin(&self, begin: Begin, implicit: bool, actor: &Actor) -> ApiResult<()> {
        let mut open = lock(&self.open);
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
        let update = self.live.open_update(begin, actor)?;
        let in_flight = self.metrics.weight_update("update");
        *open = Some(Open { update, implicit, last: Instant::now(), _in_flight: in_flight });
        Ok(())
    }

    /// Lets the open update bring tensors that are less precise than the model is declared.
    pub fn allow_narrowing(&self) {
        if let Some(open) = &mut *lock(&self.open) {
            open.update.allow_narrowing();
        }
    }

    /// Takes tensors into the open update.
    pub fn send(&self, pieces: &[Piece]) -> ApiResult<Received> {
        let _time = self.metrics.weight_update("receive");
        let mut open = lock(&self.open);
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
        let arrivals = open.update.arrivals();
        Ok(Received { tensors: pieces.len(), tensors_total: arrivals.tensors(), bytes_total: arrivals.bytes() })
    }

    /// Ends the open update: it is published, or refused and forgotten.
    pub fn finish(&self, version: Option<String>) -> ApiResult<Published> {
        let version = version_name(version)?;
        let open = lock(&self.open).take();
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
        let _time = self.metrics.weight_update("finish");
        self.publish(open.update)
    }

    /// Forgets the open update; false if there was none.
    pub fn abort(&self) -> bool {
        lock(&self.open).take().is_some()
    }

    /// A whole update at once, as one request brings it; an update that is open stays so.
    pub fn whole(&self, begin: Begin, pieces: &[Piece], actor: &Actor) -> ApiResult<Published> {
        let _time = self.metrics.weight_update("update");
        let mut update = self.live.open_update(begin, actor)?;
        take(&mut update, pieces)?;
        self.publish(update)
    }

    fn publish(&self, update: Update) -> ApiResult<Published> {
        let done = update.finish(&|_, _, _| {})?;
        // New weights are new keys of the prefix cache; this only gives the memory back at once.
        self.scheduler.reset_prefix_cache();
        Ok(published(&done))
    }

    /// The tensors of a file or folder in a root, and what they are called: as `version` says, else by their number where
    /// they are a version. Of a folder of versions, `version` names one, and the newest is taken where it names none.
    pub fn load(&self, pinned: &Pinned, version: Option<String>) -> ApiResult<(Vec<Piece>, Option<String>)> {
        let source = self.live.source();
        let base = source
            .as_ref()
            .map(|(checkpoint, held)| Base { checkpoint, version: held.as_deref().and_then(Version::parse) });
        // Of anything but a folder of versions it is only a name.
        let target = version.as_deref().and_then(Version::parse).filter(|_| pinned.is_series());
        let loaded = pinned.load(base, target).map_err(|e| version_error(e, |text| pinned.plain(text)))?;
        Ok((Piece::all(&loaded.checkpoint), version.or_else(|| loaded.version.map(|v| v.to_string()))))
    }

    /// Checksums of the live weights: given, remembered, or compared with those of `baseline` (or with the remembered).
    pub fn check(&self, action: Action, baseline: Option<BTreeMap<String, String>>) -> ApiResult<Checked> {
        let engine = self.live.engine();
        let live = engine.live()?;
        let now = inspect::checksums(engine, &live);
        match action {
            Action::Checksum => Ok(Checked::Checksums { checksums: now, digest: live.digest(engine.registry()) }),
            Action::Reset => {
                *lock(&self.baseline) = Some(now);
                Ok(Checked::Status { status: "reset" })
            }
            Action::Compare => {
                let baseline = match baseline {
                    Some(given) => given,
                    None => lock(&self.baseline).clone().ok_or_else(|| {
                        ApiError::bad(
                            "`compare`",
                            "no baseline was given, and none was set",
                            "give `baseline`, or ask for `reset` before the update",
                        )
                        .param("baseline")
                    })?,
                };
                let mismatches = inspect::differences(&now, &baseline);
                Ok(Checked::Compared { r#match: mismatches.is_empty(), mismatches })
            }
        }
    }

    /// Values of a live tensor as nested lists, by its name in the checkpoint or in the runtime, FP8 widened; only the first
    /// `truncate` entries of its first dimension.
    pub fn values(&self, name: &str, truncate: usize) -> ApiResult<Value> {
        let engine = self.live.engine();
        inspect::values(engine, &*engine.live()?, name, truncate)
    }
}

/// A version as JSON has it: trainers send text, or the number of a step.
pub fn version_text(value: Option<Value>) -> ApiResult<Option<String>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(n)) => Ok(Some(n.to_string())),
        Some(_) => {
            Err(ApiError::bad("`weight_version`", "it is neither text nor a number", "give one")
                .param("weight_version"))
        }
    }
}

/// What weights may be called; an empty name is none.
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

/// How an update begins: what the weights are called then, and what must come.
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

fn take(update: &mut Update, pieces: &[Piece]) -> ApiResult<()> {
    for piece in pieces {
        match piece.tensor() {
            Some(tensor) => update.tensor(&tensor)?,
            None => update.chunk(&piece.header(), &piece.data)?,
        }
    }
    Ok(())
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
        notes: done.report.notes.iter().map(|note| clean(note, 600)).collect(),
        degraded: done.degraded.as_deref().map(|t| clean(t, 600)),
        swapped: done.swap.map(|s| [s.from.to_string(), s.to.to_string()]),
        reversed: done.reversed.as_deref().map(|t| clean(t, 600)),
    }
}

fn conflict(what: String, why: String) -> ApiError {
    let next = "finish it, or give it up with POST /abort_weight_update";
    ApiError::new(StatusCode::CONFLICT, "conflict", what, why, next)
}
