//! Who answers for which recorded patch.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::Args;
use crate::audit::inspect;
use crate::base::text::clean;
use crate::base::{Digest, Grants, Hook};
use crate::cmd::failure::{Result, UsageError};
use crate::cmd::session::{isolation, sandbox};
use crate::patch::{Patch, Site, Terms, bundled, resolve};
use crate::record::{PatchEntry, Recording, RecordingError};
use crate::trust::Gate;

/// Most patches that answer at once; each keeps an instance.
const PATCHES: usize = 32;

/// The recorded patches that were called.
pub(super) fn called(recording: &Recording) -> impl Iterator<Item = &PatchEntry> {
    let overview = recording.overview();
    overview.patches.iter().zip(&overview.functions).filter(|(_, functions)| !functions.is_empty()).map(|(p, _)| p)
}

/// Who plays which recorded patch.
pub(super) struct Cast {
    gate: Arc<Gate>,
    site: Site,
    /// `--component`, in order.
    given: Vec<String>,
    /// Number of the recorded patch, and which of them stands for it.
    stands: BTreeMap<u32, usize>,
    settings: Vec<Setting>,
    /// What was started already: digest, settings, and whether WASI was linked.
    started: Vec<(Started, Arc<Patch>)>,
    /// For the user, in order.
    pub(super) notes: Vec<String>,
    several: bool,
}

type Started = (Digest, Vec<(String, String)>, String, bool);

/// One `--set`.
struct Setting {
    name: Option<String>,
    key: String,
    value: String,
    used: bool,
}

impl Cast {
    pub(super) fn of(args: &Args, recording: &Recording) -> Result<Self> {
        // Before anything is started: a broken policy or lock must not be found out half way.
        let (_, gate) = args.trust.gate()?;
        let isolation = args.isolate.then(|| isolation(1)).transpose()?;
        let site = Site::from(sandbox(1)?).with_isolation(isolation);
        let mut names: Vec<&str> = called(recording).map(|entry| entry.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        Ok(Self {
            gate,
            site,
            given: args.components.clone(),
            stands: stands(&args.components, recording)?,
            settings: args.settings.iter().map(|text| setting(text)).collect::<Result<_, _>>()?,
            started: Vec::new(),
            notes: Vec::new(),
            several: names.len() > 1,
        })
    }

    /// What answers for a recorded patch; none: the user named others, and this one is not at hand.
    pub(super) fn patch(&mut self, entry: &PatchEntry) -> Result<Option<Arc<Patch>>> {
        let given = self.stands.get(&entry.number).and_then(|at| self.given.get(*at)).cloned();
        let named = given.is_some();
        let candidate = match &given {
            Some(name) => Some(resolve(name)?),
            None => bundled::bundled(&entry.name).filter(|candidate| *candidate.digest() == entry.sha256),
        };
        let shown = clean(&entry.name, 120);
        let Some(candidate) = candidate else {
            if !self.given.is_empty() {
                self.notes.push(format!("no component answers for `{shown}`: its calls are skipped"));
                return Ok(None);
            }
            let why = match bundled::bundled(&entry.name) {
                Some(other) => format!("{} was recorded, the bundled one is {}", entry.sha256, other.digest()),
                None => format!("{} was recorded, and no bundled patch has this name", entry.sha256),
            };
            let next = "give the component with --component X.wasm; another one is compared with it".to_owned();
            return Err(RecordingError::NoPatch { patch: shown, why, next }.into());
        };
        let other = *candidate.digest() != entry.sha256;
        if other {
            let (digest, recorded) = (candidate.digest(), entry.sha256);
            let name = clean(given.as_deref().unwrap_or_default(), 200);
            self.notes.push(format!("`{name}` ({digest}) answers for `{shown}` ({recorded}): another component"));
        }
        let settings = self.settings_of(entry, named);
        if settings != entry.settings {
            self.notes.push(format!("`{shown}` has other settings than in the recording"));
        }
        let (limits, same) = entry.bounded_limits();
        if !same {
            self.notes.push(format!("`{shown}` has other limits than in the recording, which are not this host's"));
        }
        // What a file says was granted is not granted by that: WASI has nothing behind it here.
        let grants = if entry.grants.is_empty() { Grants::default() } else { Grants::inert() };
        if entry.grants.len() > 1 {
            let what = clean(&entry.grants[1..].join(", "), 200);
            self.notes.push(format!("`{shown}` was recorded with grants that a replay does not give: {what}"));
        }
        let key = (*candidate.digest(), settings, serde_json::json!(limits).to_string(), grants.is_none());
        if let Some((_, patch)) = self.started.iter().find(|(known, p)| *known == key && !p.has_state()) {
            return Ok(Some(Arc::clone(patch)));
        }
        if self.started.len() >= PATCHES {
            let why = format!("{PATCHES} different patches answer already");
            let next = "record fewer swaps in one file".to_owned();
            return Err(RecordingError::NoPatch { patch: shown, why, next }.into());
        }
        let terms = Terms { limits: Some(limits), grants: Some(grants), ..Terms::settings(key.1.clone()) };
        // As for every verb that starts a patch: what is revoked, or not in the lock where there is one, is not started.
        let admitted = candidate.admit(&*self.gate, &terms)?.with_nothing_behind_wasi();
        let patch = admitted.audit()?.compile(&self.site)?.ready()?;
        self.started.push((key, Arc::clone(&patch)));
        Ok(Some(patch))
    }

    /// Its recorded settings, and over them those of the user.
    fn settings_of(&mut self, entry: &PatchEntry, named: bool) -> Vec<(String, String)> {
        let mut settings = entry.settings.clone();
        let (given, several) = (!self.given.is_empty(), self.several);
        for setting in &mut self.settings {
            let mine = match &setting.name {
                Some(name) => *name == entry.name,
                None if given => named,
                None => !several,
            };
            if !mine {
                continue;
            }
            setting.used = true;
            match settings.iter_mut().find(|(key, _)| *key == setting.key) {
                Some((_, value)) => value.clone_from(&setting.value),
                None => settings.push((setting.key.clone(), setting.value.clone())),
            }
        }
        settings
    }

    /// A setting that does nothing is a mistake.
    pub(super) fn check_settings(&self, recording: &Recording) -> Result<(), UsageError> {
        let Some(setting) = self.settings.iter().find(|setting| !setting.used) else { return Ok(()) };
        Err(UsageError::new(
            format!("--set {}", setting.key.escape_debug()),
            format!("it is not known which of the recorded patches is meant ({})", names(recording)),
            "write NAME.KEY=VALUE with the name of a recorded patch",
        ))
    }
}

/// Which component stands for which recorded patch: the same bytes, else the same name, else the only one that has the
/// hooks that were called. A component that stands for none is a mistake.
fn stands(components: &[String], recording: &Recording) -> Result<BTreeMap<u32, usize>> {
    let mut stands = BTreeMap::new();
    for (at, name) in components.iter().enumerate() {
        let candidate = resolve(name)?;
        let stem = Path::new(name).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let free: Vec<&PatchEntry> = called(recording).filter(|entry| !stands.contains_key(&entry.number)).collect();
        let pick = |is: &dyn Fn(&PatchEntry) -> bool| free.iter().filter(|e| is(e)).copied().collect::<Vec<_>>();
        let mut mine = pick(&|entry| entry.sha256 == *candidate.digest());
        if mine.is_empty() {
            mine = pick(&|entry| entry.name == stem);
        }
        if mine.is_empty() {
            let hooks = inspect(candidate.bytes()).hooks;
            mine = pick(&|entry| hooks_called(recording, entry).iter().all(|hook| hooks.contains(hook)));
            // Not a choice to be made for the user.
            if mine.iter().any(|entry| mine.first().is_some_and(|first| first.name != entry.name)) {
                mine.clear();
            }
        }
        if mine.is_empty() {
            return Err(UsageError::new(
                format!("--component {}", clean(name, 200)),
                format!(
                    "it has the digest, the name or all the hooks of none of the recorded patches ({}), or of several",
                    names(recording)
                ),
                "name the file as the recorded patch is called, so that it is known which one it stands for",
            )
            .into());
        }
        stands.extend(mine.iter().map(|entry| (entry.number, at)));
    }
    Ok(stands)
}

fn hooks_called(recording: &Recording, entry: &PatchEntry) -> Vec<Hook> {
    let functions = recording.overview().functions.get(entry.number as usize);
    functions.into_iter().flat_map(BTreeMap::keys).filter_map(|f| Hook::of_call(&format!("`{f}`"))).collect()
}

fn names(recording: &Recording) -> String {
    let names: Vec<String> = called(recording).map(|p| clean(&p.name, 60)).take(8).collect();
    if names.is_empty() { "no patch was called".to_owned() } else { names.join(", ") }
}

fn setting(text: &str) -> Result<Setting, UsageError> {
    let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
        return Err(UsageError::new(
            format!("--set {}", text.escape_debug()),
            "a setting is KEY=VALUE",
            "write for example --set profile=deepseek",
        ));
    };
    let (name, key) = match key.split_once('.') {
        Some((name, key)) => (Some(name.to_owned()), key),
        None => (None, key),
    };
    Ok(Setting { name, key: key.to_owned(), value: value.to_owned(), used: false })
}
