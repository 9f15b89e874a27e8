//! What the live weights are called and hold, and what the tensors of files are called.

use std::collections::BTreeMap;

use patchhost_runtime::error::RuntimeError;
use patchhost_runtime::generate::TokenVersion;
use patchhost_runtime::refit::{Begin, Manifest};
use patchhost_runtime::rename::Renames;
use patchhost_runtime::weights::WeightSet;
use serde_json::Value;

use super::Piece;
use super::inspect::{self, Action, Checked};
use super::refused::version_error;
use super::roots::Pinned;
use super::update::{RlState, lock};
use crate::base::text::clean;
use crate::checkpoint::versions::{Base, Version};
use crate::serve::error::{ApiError, ApiResult};

/// Most bytes of the name of a version.
const VERSION: usize = 200;

/// Weights that were called by another name.
pub(super) struct Renamed {
    /// Id of the set of weights.
    id: u64,
    /// What they were published as.
    label: String,
    /// What they are called now.
    name: String,
}

impl RlState {
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

    /// The tensors of a file or folder in a root under the model's names, and what they are called: as `version` says, else by
    /// their number where they are a version. Of a folder of versions, `version` names one, and the newest is taken where it
    /// names none. `renames` are the sender's.
    pub fn load(
        &self,
        pinned: &Pinned,
        version: Option<String>,
        renames: &Renames,
    ) -> ApiResult<(Vec<Piece>, Option<String>)> {
        let renames = renames.then(&self.renames).map_err(RuntimeError::Request)?;
        let source = self.live.source();
        let base = source
            .as_ref()
            .map(|(checkpoint, held)| Base { checkpoint, version: held.as_deref().and_then(Version::parse) });
        // Of anything but a folder of versions it is only a name.
        let target = version.as_deref().and_then(Version::parse).filter(|_| pinned.is_series());
        let loaded = pinned.load(base, target, &renames).map_err(|e| version_error(e, |text| pinned.plain(text)))?;
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
