//! Weights that were pulled and are not live yet: slime's `/pull_weights`.
//!
//! Upstream, an engine copies a published version into a local checkpoint, patches it in place with the deltas that follow,
//! and is then told to load that folder. Here nothing is written: the version is made out of what is held and the
//! published files, every checksum is verified, and the result is kept under the name of the local folder, until
//! `/update_weights_from_disk` names that folder.

use patchhost_runtime::checkpoint::Checkpoint;

use super::Piece;
use super::refused::version_error;
use super::roots::Roots;
use super::update::{RlState, lock};
use crate::base::text::clean;
use crate::checkpoint::versions::{Base, Version};
use crate::serve::error::{ApiError, ApiResult};

/// Longest name of a local folder.
const MAX_NAME: usize = 4096;

/// What pulls build on, and the last one.
#[derive(Default)]
pub(super) struct Pulls {
    /// What the server started with.
    base: Option<Checkpoint>,
    pulled: Option<Pulled>,
}

/// A version that was pulled.
struct Pulled {
    /// The folder that it would lie in.
    folder: String,
    version: Version,
    checkpoint: Checkpoint,
}

/// What a pull did.
pub struct PulledVersion {
    /// What is held now.
    pub version: Version,
    /// Versions that were read for it: full ones and deltas.
    pub steps: usize,
    /// Tensors that they replaced.
    pub changed: usize,
}

impl RlState {
    /// Remembers what the server started with: version 0, on which the first delta builds.
    pub fn started_with(&self, checkpoint: Checkpoint) {
        lock(&self.pulls).base = Some(checkpoint);
    }

    /// Brings what is held for `folder` to a version of the folder `source`, which is in a root. It starts, as SGLang does, at
    /// what was pulled before, or at what the server started with; version 0 is the latter.
    pub fn pull(&self, roots: &Roots, folder: &str, source: &str, target: Version) -> ApiResult<PulledVersion> {
        let folder = folder.trim_end_matches('/');
        if folder.is_empty() || folder.len() > MAX_NAME {
            let why = format!("a path has 1 to {MAX_NAME} bytes, this has {}", folder.len());
            let next = "name the folder that /update_weights_from_disk will be given";
            return Err(ApiError::bad("`local_checkpoint_dir`", why, next).param("local_checkpoint_dir"));
        }
        // Held for the whole pull: two at once would build on each other.
        let mut pulls = lock(&self.pulls);
        let before = pulls.pulled.as_ref().filter(|p| p.folder == folder && p.version <= target && target > Version(0));
        let (start, version) = match before {
            Some(p) => (p.checkpoint.clone(), p.version),
            None => (pulls.base.clone().ok_or_else(no_start)?, Version(0)),
        };
        let mut done = PulledVersion { version: target, steps: 0, changed: 0 };
        let checkpoint = match version == target {
            true => start,
            false => {
                let pinned = roots.pin(source)?;
                let base = Base { checkpoint: &start, version: Some(version) };
                let loaded = pinned
                    .load(Some(base), Some(target), &self.renames)
                    .map_err(|e| version_error(e, |text| pinned.plain(text)))?;
                done.steps = loaded.steps.len();
                done.changed = loaded.steps.iter().map(|step| step.changed).sum();
                loaded.checkpoint
            }
        };
        pulls.pulled = Some(Pulled { folder: folder.to_string(), version: target, checkpoint });
        Ok(done)
    }

    /// The tensors that were pulled for a folder, and the number of their version; none where that folder was not pulled.
    pub fn pulled(&self, folder: &str) -> Option<(Vec<Piece>, String)> {
        let pulls = lock(&self.pulls);
        let held = pulls.pulled.as_ref().filter(|p| p.folder == folder.trim_end_matches('/'))?;
        Some((Piece::all(&held.checkpoint), held.version.to_string()))
    }
}

/// Only a host of its own that starts a server without saying what it loads.
fn no_start() -> ApiError {
    let why = "the server was not told what it started with, on which the first version builds";
    ApiError::unavailable("this pull", why, "load whole weights with /update_weights_from_disk", 5)
}

/// The number of a version, as JSON has it.
pub fn target(version: i64) -> ApiResult<Version> {
    u64::try_from(version).map(Version).map_err(|_| {
        let what = format!("`target_version` {}", clean(&version.to_string(), 40));
        ApiError::bad(what, "it is less than 0", "give the number of a published version, or 0").param("target_version")
    })
}
