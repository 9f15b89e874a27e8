//! Files that are watched: a component that changes on disk is staged and takes the place of the patch with its hooks.
//! Digests decide, not modification times; a file that is still being written is waited for; renames are seen because
//! the folder is watched. The same stages as for every other candidate.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use notify_debouncer_mini::notify::{RecommendedWatcher, RecursiveMode};
use notify_debouncer_mini::{DebounceEventResult, Debouncer, new_debouncer};
use patchhost_runtime::error::Refusal;
use serde_json::json;

use super::{LiveError, LiveModel};
use crate::base::{Code, Digest, Exit};
use crate::patch::{Actor, Candidate, Requested, StageError, SwapRequest, When};

/// Events within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// A file that changed less than this ago may still be being written.
const SETTLED: Duration = Duration::from_millis(60);
const PAUSE: Duration = Duration::from_millis(20);
/// How often a file that is being written is read again.
const READS: usize = 25;
/// Components of a folder that are looked at.
const MOST_FILES: usize = 64;

/// The settings of a patch, by the stem of its file.
pub type SettingsFor = Arc<dyn Fn(&str) -> Vec<(String, String)> + Send + Sync>;

/// Looks after files and folders until it is dropped.
pub struct Watcher {
    inner: Arc<Inner>,
    _debouncer: Option<Debouncer<RecommendedWatcher>>,
}

/// What became of one file.
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

struct Inner {
    live: Weak<LiveModel>,
    targets: Vec<PathBuf>,
    settings: SettingsFor,
    when: When,
    /// The digest of each file when it was last looked at. Held while files are staged, so that a caller who wants
    /// everything staged waits for what is under way.
    seen: Mutex<BTreeMap<PathBuf, Digest>>,
}

impl Watcher {
    /// Watches files and folders. What is there now is looked at by the first [`Watcher::sync`].
    pub fn start(
        live: &Arc<LiveModel>,
        targets: &[PathBuf],
        settings: SettingsFor,
        when: When,
    ) -> Result<Self, WatchError> {
        let mut watcher = Self::by_hand(live, targets, settings, when);
        let inner = watcher.inner.clone();
        let fail = |path: &Path, why: String| WatchError {
            path: crate::base::text::clean(&path.display().to_string(), 200),
            why: crate::base::text::clean(&why, 200),
        };
        let react = move |events: DebounceEventResult| match events {
            Ok(events) if events.iter().any(|event| inner.concerns(&event.path)) => {
                inner.sync(None);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "watching files failed"),
        };
        let mut debouncer = new_debouncer(DEBOUNCE, react).map_err(|e| fail(Path::new("(all)"), e.to_string()))?;
        for target in targets {
            // The folder of a file: a rename over the file is an event of the folder.
            let folder = if target.is_dir() { target.as_path() } else { parent(target) };
            if !target.exists() {
                return Err(fail(target, "there is no such file or folder".to_owned()));
            }
            let watched = debouncer.watcher().watch(folder, RecursiveMode::NonRecursive);
            watched.map_err(|e| fail(target, e.to_string()))?;
        }
        watcher._debouncer = Some(debouncer);
        Ok(watcher)
    }

    /// The same, but files are looked at only when somebody asks: for signals.
    pub fn by_hand(live: &Arc<LiveModel>, targets: &[PathBuf], settings: SettingsFor, when: When) -> Self {
        let targets = targets.to_vec();
        let inner = Inner { live: Arc::downgrade(live), targets, settings, when, seen: Mutex::default() };
        Self { inner: Arc::new(inner), _debouncer: None }
    }

    /// Stages whatever is on disk now and was not seen before, and waits until it is staged. A trainer calls it before
    /// each refit, so that a replaced file takes effect with the next one exactly.
    pub fn sync(&self) -> Vec<Seen> {
        self.inner.sync(None)
    }

    /// The same in the name of somebody else, files that were refused before included.
    pub fn reload(&self, actor: &Actor) -> Vec<Seen> {
        self.inner.sync(Some(actor))
    }
}

impl Inner {
    fn concerns(&self, path: &Path) -> bool {
        let name = path.file_name();
        self.targets.iter().any(|target| match target.is_dir() {
            true => path.extension().is_some_and(|e| e == "wasm"),
            false => target.file_name() == name,
        })
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for target in &self.targets {
            if !target.is_dir() {
                all.push(target.clone());
                continue;
            }
            let Ok(entries) = std::fs::read_dir(target) else { continue };
            let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
            files.retain(|path| path.extension().is_some_and(|e| e == "wasm") && !hidden(path) && path.is_file());
            files.sort();
            files.truncate(MOST_FILES);
            all.append(&mut files);
        }
        all
    }

    fn sync(&self, by: Option<&Actor>) -> Vec<Seen> {
        let Some(live) = self.live.upgrade() else { return Vec::new() };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = Vec::new();
        let files = self.files();
        for path in &files {
            let actor = by.cloned().unwrap_or_else(|| Actor::new(format!("watch:{}", path.display())));
            let candidate = match settled(path) {
                Ok(candidate) => candidate,
                Err(error) => {
                    if seen.remove(path).is_some() {
                        let fields = json!({ "path": path.display().to_string(), "why": error.why() });
                        live.board().event("watch.lost", &actor, fields);
                    }
                    continue;
                }
            };
            let sha256 = *candidate.digest();
            if seen.get(path) == Some(&sha256) && by.is_none() {
                continue;
            }
            seen.insert(path.clone(), sha256);
            let outcome = self.bring(&live, candidate, path, &actor).map_err(|e| e.to_string());
            match &outcome {
                Ok(requested) => tracing::info!(path = %path.display(), ?requested, "a watched patch was staged"),
                Err(error) => tracing::warn!(path = %path.display(), %error, "a watched patch was refused"),
            }
            done.push(Seen { path: path.clone(), sha256, outcome });
        }
        done
    }

    fn bring(
        &self,
        live: &LiveModel,
        candidate: Candidate,
        path: &Path,
        actor: &Actor,
    ) -> Result<Requested, LiveError> {
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let staged = live.stage(candidate, None, &(self.settings)(&stem), actor)?;
        let request = SwapRequest { when: self.when, ..SwapRequest::to(staged.generation) };
        live.swap(&request, actor).map(|outcome| outcome.requested)
    }
}

/// The bytes of a file that nobody is writing any more: unchanged for a while, or the same when read twice.
fn settled(path: &Path) -> Result<Candidate, StageError> {
    let mut last = Candidate::from_file(path)?;
    for _ in 0..READS {
        let changed = std::fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        // A time in the future says nothing; such a file is read once more.
        if changed.elapsed().is_ok_and(|age| age > SETTLED) {
            break;
        }
        std::thread::sleep(PAUSE);
        let again = Candidate::from_file(path)?;
        let same = again.digest() == last.digest();
        last = again;
        if same && last.is_whole() {
            break;
        }
    }
    Ok(last)
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
