//! Files that are watched: a component that changes on disk is staged and takes the place of the patch with its hooks.
//! Digests decide, not modification times; a file that is still being written is waited for; renames are seen because
//! folders are watched, those of the links on the way included. The same stages as for every other candidate.

mod file;
mod follow;
mod inner;
mod places;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use patchhost_runtime::error::Refusal;

use super::LiveModel;
use crate::base::{Code, Digest, Exit};
use crate::patch::{Actor, Requested, When};
use follow::Follower;
use inner::Inner;

/// Components of a folder that are looked at.
const MOST_FILES: usize = 64;
/// What the watcher says in the log is said under this name, which is logged where nobody chose otherwise.
const LOG: &str = "patchhost::watch";

/// The settings of a patch, by the stem of its file.
pub type SettingsFor = Arc<dyn Fn(&str) -> Vec<(String, String)> + Send + Sync>;

/// Looks after files and folders until it is dropped.
pub struct Watcher {
    inner: Arc<Inner>,
    _follower: Option<Follower>,
}

/// What became of one version of a file.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The file.
    pub path: PathBuf,
    /// The digest of its bytes.
    pub sha256: Digest,
    /// What the board said, or why it was refused.
    pub outcome: Result<Requested, String>,
}

/// A path cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("refused: {}", self.parts())]
pub struct WatchError {
    path: String,
    why: String,
}

impl WatchError {
    fn new(path: &Path, why: &str) -> Self {
        Self {
            path: crate::base::text::clean(&path.display().to_string(), 200),
            why: crate::base::text::clean(why, 200),
        }
    }
}

impl Exit for WatchError {
    fn exit(&self) -> Code {
        Code::Usage
    }

    fn parts(&self) -> Refusal {
        Refusal {
            what: format!("--watch {}", self.path),
            why: self.why.clone(),
            next: "give a component file or a folder of them that exists".to_owned(),
        }
    }
}

impl Watcher {
    /// Watches files and folders. What is there now is looked at by the first [`Watcher::sync`]. Where the system tells of no
    /// changes, the files are looked at four times a second, and the log says so.
    pub fn start(
        live: &Arc<LiveModel>,
        targets: &[PathBuf],
        settings: SettingsFor,
        when: When,
    ) -> Result<Self, WatchError> {
        if let Some(absent) = targets.iter().find(|target| !target.exists()) {
            return Err(WatchError::new(absent, "there is no such file or folder"));
        }
        let mut watcher = Self::by_hand(live, targets, settings, when);
        let follower = Follower::start(watcher.inner.clone());
        let first = targets.first().map_or(Path::new("(none)"), PathBuf::as_path);
        watcher._follower = Some(follower.map_err(|error| WatchError::new(first, &error.to_string()))?);
        Ok(watcher)
    }

    /// The same, but files are looked at only when somebody asks: for signals.
    pub fn by_hand(live: &Arc<LiveModel>, targets: &[PathBuf], settings: SettingsFor, when: When) -> Self {
        let inner = Inner::new(Arc::downgrade(live), targets, settings, when);
        Self { inner: Arc::new(inner), _follower: None }
    }

    /// Stages whatever is on disk now and was not seen before, and waits until it is staged. A trainer calls it before
    /// each refit, so that a replaced file takes effect with the next one exactly.
    pub fn sync(&self) -> Vec<Seen> {
        self.inner.sync()
    }

    /// The same in the name of somebody else, files that were refused before included.
    pub fn reload(&self, actor: &Actor) -> Vec<Seen> {
        self.inner.reload(actor)
    }
}

/// Whether a path has the name of a component. Hidden files are what editors and mounts keep for themselves.
fn is_component(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    !hidden && path.extension().is_some_and(|extension| extension == "wasm")
}
