//! The live set of a model in Python: the same policy, board and ledger as the program's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use patchhost::live::Live;
use patchhost::patch::{
    Actor, Board, Ledger, LedgerOptions, Mode, SwapError, SwapErrorKind, SwapRequest, When, resolve,
};
use patchhost_runtime::assembly::Duplicates;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::pace::Pace;
use patchhost_runtime::refit::{Arrivals, Begin, Manifest};
use pyo3::prelude::*;
use serde_json::json;

use crate::errors::{Raised, Result, off};
use crate::place::{Place, same_process};
use crate::refit::NativeRefit;
use crate::set::{NativeSet, digest};
use crate::target::Tensors;
use crate::tensors::{Raw, RawTuple};
use crate::words;

/// What a board, its refits and the threads of these share.
pub struct Shared {
    pub pid: u32,
    pub live: Live<Tensors>,
    pub actor: Actor,
    /// A refit is open: one at a time.
    pub open: AtomicBool,
}

/// The live set of one model.
#[pyclass(frozen, module = "patchhost._native")]
pub struct NativeBoard {
    shared: Arc<Shared>,
}

#[pymethods]
impl NativeBoard {
    #[new]
    fn new(py: Python<'_>, patches: &NativeSet, ledger: Option<std::path::PathBuf>, actor: String) -> PyResult<Self> {
        let loaded = Arc::clone(&patches.loaded);
        let shared = off(py, move || {
            same_process("this PatchSet", loaded.pid)?;
            let ledger = match &ledger {
                Some(path) => Ledger::open(path, LedgerOptions::default())?.0,
                None => Ledger::in_memory(),
            };
            let actor = Actor::new(actor);
            let board = Arc::new(Board::new(&loaded.attachments, loaded.policy.rules(), ledger));
            board.started(&actor)?;
            let to = loaded.attachments.to().clone();
            let target = Tensors::new(to, loaded.model.clone(), loaded.reader.clone(), loaded.rules);
            let place = Place::here()?;
            // Its pools have as many threads as the pool that they are made in.
            let live = place
                .pool
                .install(|| Live::over(target, board, loaded.site.clone(), Arc::clone(&loaded.gate), Pace::default()));
            let live = live.map_err(|e| {
                Raised::new(
                    "host",
                    "the board's threads",
                    e.to_string(),
                    "look at the limits of this machine (processes)",
                )
            })?;
            Ok(Shared { pid: loaded.pid, live, actor, open: AtomicBool::new(false) })
        })?;
        Ok(Self { shared: Arc::new(shared) })
    }

    fn stage(
        &self,
        py: Python<'_>,
        component: String,
        sha256: Option<String>,
        settings: Vec<(String, String)>,
        tensors: Vec<(String, RawTuple, String)>,
    ) -> PyResult<String> {
        let shared = self.here(py)?;
        let mut raws = Vec::with_capacity(tensors.len());
        for (name, raw, role) in tensors {
            let taken = Raw::new(&name, raw).and_then(|raw| Ok((raw, words::role(&name, &role)?)));
            let (raw, role) = taken.map_err(|e| crate::errors::raise(py, e))?;
            raws.push((name, raw, role));
        }
        off(py, move || {
            let live = &shared.live;
            let mut probe = Vec::with_capacity(raws.len());
            for (name, raw, role) in &raws {
                live.target().role(name, *role);
                probe.push(tensor(name, raw)?);
            }
            let source = match probe.is_empty() {
                true => None,
                false => Some(Arrivals::new(Begin::default(), usize::MAX).whole(Checkpoint::from_tensors(probe)?)?),
            };
            let place = Place::here()?;
            let candidate = resolve(&component)?;
            let staged = place.pool.install(|| {
                live.stage_with(candidate, digest(sha256.as_deref())?, &settings, source.as_ref(), &shared.actor)
                    .map_err(Raised::from)
            })?;
            Ok(serde_json::to_value(&staged).unwrap_or_default().to_string())
        })
    }

    fn swap(
        &self,
        py: Python<'_>,
        to: &str,
        step: Option<u64>,
        mode: &str,
        percent: Option<u8>,
        expected: Option<&str>,
    ) -> PyResult<String> {
        let shared = self.here(py)?;
        off(py, move || {
            let to = digest(Some(to))?.unwrap_or_else(|| patchhost::base::Digest::of(b""));
            let request = SwapRequest {
                when: when(step),
                mode: mode_of(mode, percent)?,
                expect: digest(expected)?,
                ..SwapRequest::to(to)
            };
            answer(&shared.live.swap(&request, &shared.actor)?)
        })
    }

    fn set_mode(&self, py: Python<'_>, mode: &str, percent: Option<u8>, step: Option<u64>) -> PyResult<String> {
        let shared = self.here(py)?;
        off(py, move || answer(&shared.live.set_mode(mode_of(mode, percent)?, when(step), &shared.actor)?))
    }

    fn rollback(&self, py: Python<'_>, step: Option<u64>, reason: Option<String>) -> PyResult<String> {
        let shared = self.here(py)?;
        off(py, move || answer(&shared.live.rollback(when(step), reason, &shared.actor)?))
    }

    fn cancel(&self, py: Python<'_>, why: &str) -> PyResult<bool> {
        let shared = self.here(py)?;
        off(py, move || Ok(shared.live.cancel(why, &shared.actor)))
    }

    fn status(&self, py: Python<'_>) -> PyResult<String> {
        let shared = self.here(py)?;
        off(py, move || {
            let last = shared.live.last_refit();
            let mut status = serde_json::to_value(shared.live.board().status()).unwrap_or_default();
            status["last_refit"] = serde_json::to_value(last.as_deref()).unwrap_or_default();
            status["ledger"] = serde_json::to_value(shared.live.ledger().health()).unwrap_or_default();
            status["refit_open"] = json!(shared.open.load(Ordering::Acquire));
            Ok(status.to_string())
        })
    }

    fn report(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let shared = self.here(py)?;
        Ok(shared.live.target().last_report().map(|report| report.to_string()))
    }

    fn recent(&self, py: Python<'_>, count: usize) -> PyResult<String> {
        let shared = self.here(py)?;
        Ok(serde_json::to_value(shared.live.ledger().recent(count)).unwrap_or_default().to_string())
    }

    fn health(&self, py: Python<'_>) -> PyResult<String> {
        let shared = self.here(py)?;
        Ok(serde_json::to_value(shared.live.ledger().health()).unwrap_or_default().to_string())
    }

    fn refit(
        &self,
        py: Python<'_>,
        step: Option<u64>,
        version: Option<String>,
        manifest: Option<&str>,
        duplicates: &str,
        allow_narrowing: bool,
        digest: bool,
    ) -> PyResult<NativeRefit> {
        let shared = self.here(py)?;
        off(py, move || {
            let duplicates = match duplicates {
                "refuse" => Duplicates::Refuse,
                "last" => Duplicates::LastWins,
                other => {
                    let why = "it is `refuse` or `last`";
                    return Err(Raised::usage(format!("duplicates={other:?}"), why, "use duplicates=\"refuse\""));
                }
            };
            let manifest: Option<Manifest> = manifest.map(serde_json::from_str).transpose().map_err(|e| {
                let next = "give {\"tensors\": {name: {\"dtype\": \"BF16\", \"shape\": [..], \"sha256\": \"..\"}}}; each part may be left out";
                Raised::usage("the manifest", e.to_string(), next)
            })?;
            if shared.open.swap(true, Ordering::AcqRel) {
                let what = format!("refit `{}`", version.as_deref().unwrap_or("(unnamed)"));
                let next = "commit or abandon it first (leave its `with` block)";
                return Err(
                    SwapError::new(SwapErrorKind::Invalid, what, "another refit is open; one at a time", next).into()
                );
            }
            shared.live.target().hash.store(digest, Ordering::Relaxed);
            let begin = Begin { version, step, manifest, duplicates, allow_narrowing, ..Begin::default() };
            Ok(NativeRefit::new(Arc::clone(&shared), Arrivals::new(begin, usize::MAX)))
        })
    }
}

impl NativeBoard {
    fn here(&self, py: Python<'_>) -> PyResult<Arc<Shared>> {
        same_process("this Board", self.shared.pid).map_err(|e| crate::errors::raise(py, e))?;
        Ok(Arc::clone(&self.shared))
    }
}

/// A contiguous tensor of Python as one of a checkpoint; its memory is shared.
pub fn tensor(name: &str, raw: &Raw) -> Result<CheckpointTensor> {
    let stored = words::stored(name, &raw.dtype)?;
    let data = raw.contiguous(name, stored.bitsize() / 8)?;
    Ok(CheckpointTensor::new(name, stored, raw.shape.clone(), data))
}

fn when(step: Option<u64>) -> When {
    step.map_or(When::Refit, When::Step)
}

fn mode_of(mode: &str, percent: Option<u8>) -> Result<Mode> {
    match (mode, percent) {
        ("live", None) => Ok(Mode::Live),
        ("shadow", None) => Ok(Mode::Shadow),
        ("canary", Some(percent @ 1..=99)) => Ok(Mode::Canary(percent)),
        ("canary", _) => {
            let next = "give percent= from 1 to 99: the share of tensors that the candidate quantizes";
            Err(Raised::usage("mode=\"canary\"", "it has no percentage from 1 to 99", next))
        }
        _ => Err(Raised::usage(
            format!("mode={mode:?}"),
            "it is live, shadow or canary, and only a canary has a percentage",
            "use mode=\"live\", mode=\"shadow\", or mode=\"canary\" with percent=",
        )),
    }
}

fn answer(outcome: &impl serde::Serialize) -> Result<String> {
    Ok(serde_json::to_value(outcome).unwrap_or_default().to_string())
}
