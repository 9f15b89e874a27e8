//! What is known of the watched files, and the versions of them that wait to be staged. Looking and staging are apart: a
//! version that comes while another one is being compiled is read at once, before it is replaced.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use serde_json::json;

use super::file::{Look, is_gone, settled};
use super::places::Places;
use super::{LOG, MOST_FILES, Seen, SettingsFor, is_component};
use crate::live::{LiveError, LiveModel};
use crate::patch::{Actor, Candidate, Requested, SwapRequest, When};

/// Versions that wait. Beyond, the oldest one that has a successor is left out.
const MOST_WAITING: usize = 64;
/// Their bytes.
const MOST_BYTES: usize = 256 << 20;

/// A path that somebody named.
pub(super) struct Target {
    pub path: PathBuf,
    /// It was a folder when it was named, so it is one again when it comes back.
    pub folder: bool,
}

/// Bytes of a file that were not seen before.
struct Version {
    path: PathBuf,
    candidate: Candidate,
    actor: Actor,
}

/// What is known of a file.
#[derive(Default)]
struct Known {
    look: Option<Look>,
    /// Of the bytes that it had last. A file that comes back with the same bytes is no new version.
    last: Option<crate::base::Digest>,
    lost: bool,
}

#[derive(Default)]
struct State {
    known: BTreeMap<PathBuf, Known>,
    waiting: VecDeque<Version>,
    /// Somebody asked for what was there at the beginning.
    begun: bool,
    /// It was said that a folder has too many components.
    crowded: bool,
}

/// What the threads and the callers of a watcher share.
pub(super) struct Inner {
    live: Weak<LiveModel>,
    targets: Vec<Target>,
    settings: SettingsFor,
    when: When,
    state: Mutex<State>,
    /// Held while files are staged, so that a caller who wants everything staged waits for what is under way.
    staging: Mutex<()>,
}

impl Inner {
    pub(super) fn new(live: Weak<LiveModel>, targets: &[PathBuf], settings: SettingsFor, when: When) -> Self {
        let target = |path: &PathBuf| Target { path: path.clone(), folder: path.is_dir() };
        let targets = targets.iter().map(target).collect();
        Self { live, targets, settings, when, state: Mutex::default(), staging: Mutex::default() }
    }

    /// What has to be watched now.
    pub(super) fn places(&self) -> Places {
        let mut places = Places::default();
        for target in &self.targets {
            match target.folder {
                true => places.add_folder(&target.path, &components(&target.path)),
                false => places.add_file(&target.path),
            }
        }
        places
    }

    /// Reads every file that may have another version now, and says whether something waits. `touched`: something happened;
    /// without it, a file that looks as it did is not read.
    pub(super) fn look(&self, touched: bool) -> bool {
        let mut state = self.state();
        if touched || state.begun {
            self.read(&mut state, touched, None);
        }
        !state.waiting.is_empty()
    }

    /// Looks at everything and stages it, and gives what became of it.
    pub(super) fn sync(&self) -> Vec<Seen> {
        let _turn = self.turn();
        let mut state = self.state();
        state.begun = true;
        self.read(&mut state, true, None);
        drop(state);
        self.stage_all()
    }

    /// The same in the name of `actor`, and for files that have not changed too.
    pub(super) fn reload(&self, actor: &Actor) -> Vec<Seen> {
        let _turn = self.turn();
        self.read(&mut self.state(), true, Some(actor));
        self.stage_all()
    }

    /// Stages what waits.
    pub(super) fn bring(&self) {
        let _turn = self.turn();
        self.stage_all();
    }

    /// Always taken before the state.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stages what waits, in the order in which it came.
    fn stage_all(&self) -> Vec<Seen> {
        let mut done = Vec::new();
        loop {
            let (version, replaced) = {
                let mut state = self.state();
                let Some(version) = state.waiting.pop_front() else { break };
                let replaced = state.waiting.iter().any(|later| later.path == version.path);
                (version, replaced)
            };
            let Some(live) = self.live.upgrade() else { break };
            done.extend(self.stage(&live, version, replaced));
        }
        done
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, state: &mut State, touched: bool, by: Option<&Actor>) {
        let files = self.files(state);
        let missing = |path: &&PathBuf| !files.contains(path);
        let missing: Vec<PathBuf> = state.known.keys().filter(missing).cloned().collect();
        for path in missing {
            let lost = state.known.get(&path).is_some_and(|known| known.lost);
            if !lost && is_gone(&path) {
                self.lost(state, &path, "it is not in the folder any more");
            }
        }
        for path in files {
            let known = state.known.entry(path.clone()).or_default();
            let look = Look::at(&path).ok();
            let same = look.as_ref().zip(known.look.as_ref()).is_some_and(|(now, before)| now.is_as(before));
            if (same && !touched) || (look.is_none() && known.lost) {
                continue;
            }
            let candidate = match settled(&path) {
                Ok(candidate) => candidate,
                Err(error) => {
                    self.lost(state, &path, &error.why());
                    continue;
                }
            };
            let sha256 = *candidate.digest();
            (known.look, known.lost) = (look, false);
            if known.last == Some(sha256) && by.is_none() {
                continue;
            }
            known.last = Some(sha256);
            let actor = by.cloned().unwrap_or_else(|| Actor::new(format!("watch:{}", path.display())));
            state.waiting.push_back(Version { path, candidate, actor });
            bound(&mut state.waiting);
        }
    }

    /// The files to look at. A folder that is gone has none.
    fn files(&self, state: &mut State) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for Target { path, folder } in &self.targets {
            let mut files = match folder {
                true => components(path),
                false => vec![path.clone()],
            };
            if files.len() > MOST_FILES && !std::mem::replace(&mut state.crowded, true) {
                let (path, all) = (path.display(), files.len());
                tracing::warn!(
                    target: LOG,
                    "{path} has {all} components, and the first {MOST_FILES} by name are looked at; watch another folder too"
                );
            }
            files.truncate(MOST_FILES);
            files.retain(|file| !all.contains(file));
            all.append(&mut files);
        }
        all
    }

    fn lost(&self, state: &mut State, path: &Path, why: &str) {
        let known = state.known.entry(path.to_owned()).or_default();
        let news = known.last.is_some() && !known.lost;
        (known.lost, known.look) = (true, None);
        if news && let Some(live) = self.live.upgrade() {
            let shown = path.display().to_string();
            tracing::warn!(target: LOG, "{shown} is lost: {why}; the patch that it had runs on");
            let actor = Actor::new(format!("watch:{shown}"));
            live.board().event("watch.lost", &actor, json!({ "path": shown, "why": why }));
        }
    }

    /// Takes a version through the stages, and swaps to it unless a newer one of the same file waits.
    fn stage(&self, live: &LiveModel, version: Version, replaced: bool) -> Option<Seen> {
        let Version { path, candidate, actor } = version;
        let (shown, sha256) = (path.display(), *candidate.digest());
        let outcome = self.bring_one(live, candidate, &path, replaced, &actor).map_err(|e| e.to_string());
        match &outcome {
            Ok(Some(requested)) => tracing::info!(target: LOG, "{shown} ({}) was staged: {requested}", sha256.short()),
            Ok(None) => tracing::info!(
                target: LOG,
                "{shown} ({}) was staged; it has a newer version already, which is next",
                sha256.short()
            ),
            Err(error) => {
                let error = error.replace("\n  ", "; ");
                tracing::warn!(target: LOG, "{shown} ({}) is not used: {error}", sha256.short());
            }
        }
        let outcome = outcome.transpose()?;
        Some(Seen { path, sha256, outcome })
    }

    fn bring_one(
        &self,
        live: &LiveModel,
        candidate: Candidate,
        path: &Path,
        replaced: bool,
        actor: &Actor,
    ) -> Result<Option<Requested>, LiveError> {
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let staged = live.stage(candidate, None, &(self.settings)(&stem), actor)?;
        if replaced {
            return Ok(None);
        }
        let request = SwapRequest { when: self.when, ..SwapRequest::to(staged.generation) };
        live.swap(&request, actor).map(|outcome| Some(outcome.requested))
    }
}

/// The components in a folder, by name. A link to one is one, also while what it leads to is being replaced.
fn components(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| is_component(path) && !path.is_dir());
    files.sort();
    files
}

/// Keeps what waits small enough: of a file that changes faster than it can be staged, the newest versions count.
fn bound(waiting: &mut VecDeque<Version>) {
    let bytes = |all: &VecDeque<Version>| all.iter().map(|version| version.candidate.bytes().len()).sum::<usize>();
    while waiting.len() > MOST_WAITING || bytes(waiting) > MOST_BYTES {
        let replaced = |i: &usize| waiting.iter().skip(i + 1).any(|later| later.path == waiting[*i].path);
        let Some(oldest) = (0..waiting.len()).find(replaced) else { return };
        if let Some(out) = waiting.remove(oldest) {
            let (path, sha256) = (out.path.display(), out.candidate.digest().short());
            tracing::warn!(target: LOG, "{path} changes faster than it can be staged: version {sha256} is left out");
        }
    }
}
