//! `patchhost replay`: recorded calls again, bit for bit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::Format;
use super::failure::{EXIT_PATCH, EXIT_REFUSED, Said, UsageError};
use super::output::{bytes, json, plural};
use super::session::progress_bar;
use crate::audit::AuditOptions;
use crate::isolate::Isolation;
use crate::patch::{Audited, Cache, Digest, Grants, Patch, Sandbox, Trial, bundled, resolve};
use crate::record::{Count, Difference, PatchEntry, PatchReplay, Recording, RecordingError, Replay, ReplayReport};

/// Most patches that answer at once; each keeps an instance.
const PATCHES: usize = 32;

/// Ask a patch what it was asked in a recording, and compare its answers bit for bit
///
/// Exit codes: 0 the same bits; 1 others; 3 the patch failed where the recorded one did not; 2 a file that cannot be read.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file that `--record` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The patch that answers: a path, or the name of a bundled one [default: the recorded component, where it is a bundled
    /// one]; another component than the recorded one is compared with it; can be repeated
    #[arg(long = "component", value_name = "X.wasm")]
    components: Vec<String>,
    /// A setting that is to be another one than recorded: KEY=VALUE, or NAME.KEY=VALUE where several patches were recorded;
    /// can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Run each patch in a child process of its own
    #[arg(long)]
    isolate: bool,
}

/// Runs the verb.
pub fn run(args: &Args, format: Format) -> anyhow::Result<()> {
    let recording = Recording::open(&args.file)?;
    let mut cast = Cast::of(args, &recording)?;
    let mut replay = Replay::new(&recording);
    for entry in called(&recording) {
        if let Some(patch) = cast.patch(entry)? {
            replay.answer_with(entry, &patch)?;
        }
    }
    cast.check_used(&recording)?;
    let notes = std::mem::take(&mut cast.notes);
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    let bar = progress_bar("replay");
    bar.set_length(recording.overview().calls);
    let report = replay.run(&|done| bar.set_position(done));
    bar.finish_and_clear();
    let report = report?;
    match format {
        Format::Json => print_json(&report, &args.file, &notes)?,
        Format::Text => print_text(&report, &args.file),
    }
    match exit(&report) {
        0 => Ok(()),
        code => Err(Said(code).into()),
    }
}

fn exit(report: &ReplayReport) -> u8 {
    match report.total {
        Count { failed: 1.., .. } => EXIT_PATCH,
        Count { different: 1.., .. } => EXIT_REFUSED,
        _ => 0,
    }
}

/// The recorded patches that were called.
fn called(recording: &Recording) -> impl Iterator<Item = &PatchEntry> {
    let overview = recording.overview();
    overview.patches.iter().zip(&overview.functions).filter(|(_, functions)| !functions.is_empty()).map(|(p, _)| p)
}

/// Who plays which recorded patch.
struct Cast {
    sandbox: Sandbox,
    given: Vec<Given>,
    settings: Vec<Setting>,
    /// What was started already: digest, settings, and whether WASI was linked.
    started: Vec<(Started, Arc<Patch>)>,
    notes: Vec<String>,
    several: bool,
}

type Started = (Digest, Vec<(String, String)>, String, bool);

/// One `--component`.
struct Given {
    name: String,
    stem: String,
    digest: Digest,
    used: bool,
}

/// One `--set`.
struct Setting {
    name: Option<String>,
    key: String,
    value: String,
    used: bool,
}

impl Cast {
    fn of(args: &Args, recording: &Recording) -> anyhow::Result<Self> {
        let given = args.components.iter().map(|name| {
            let stem = Path::new(name).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            Ok::<_, anyhow::Error>(Given { name: name.clone(), stem, digest: *resolve(name)?.digest(), used: false })
        });
        let sandbox = Sandbox::new(1)
            .map_err(|e| anyhow::anyhow!("the sandbox cannot start: {e:#}"))?
            .with_cache(Cache::from_env())
            .with_trial(Some(Trial::this_program()?))
            .with_isolation(args.isolate.then(|| Isolation::this_program(1)).transpose()?);
        let mut names: Vec<&str> = called(recording).map(|entry| entry.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        Ok(Self {
            sandbox,
            given: given.collect::<Result<_, _>>()?,
            settings: args.settings.iter().map(|text| setting(text)).collect::<Result<_, _>>()?,
            started: Vec::new(),
            notes: Vec::new(),
            several: names.len() > 1,
        })
    }

    /// What answers for a recorded patch; none: the user named others, and this one is not at hand.
    fn patch(&mut self, entry: &PatchEntry) -> anyhow::Result<Option<Arc<Patch>>> {
        let by_digest = self.given.iter().position(|given| given.digest == entry.sha256);
        let by_name = || self.given.iter().position(|given| given.stem == entry.name);
        // One component stands for the one patch that was recorded, whatever it is called.
        let only = || (self.given.len() == 1 && !self.several).then_some(0);
        let name = match by_digest.or_else(by_name).or_else(only) {
            Some(at) => {
                let given = self.given.get_mut(at);
                given.map(|given| {
                    given.used = true;
                    given.name.clone()
                })
            }
            None => bundled::bundled(&entry.name).filter(|c| *c.digest() == entry.sha256).map(|_| entry.name.clone()),
        };
        let shown = crate::abi::text::clean(&entry.name, 120);
        let Some(name) = name else {
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
        let candidate = resolve(&name)?;
        let other = *candidate.digest() != entry.sha256;
        if other {
            let (digest, recorded) = (candidate.digest(), entry.sha256);
            let name = crate::abi::text::clean(&name, 200);
            self.notes.push(format!("`{name}` ({digest}) answers for `{shown}` ({recorded}): another component"));
        }
        let settings = self.settings_of(entry, by_digest.is_some() || other);
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
            let what = crate::abi::text::clean(&entry.grants[1..].join(", "), 200);
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
        let verification = candidate.default_verification();
        let audited: Audited =
            candidate.verify(&verification)?.audit_with(&AuditOptions { grants, ..AuditOptions::default() })?;
        let patch = audited.compile(&self.sandbox)?.ready(&key.1, limits)?;
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

    /// A component or a setting that does nothing is a mistake.
    fn check_used(&self, recording: &Recording) -> Result<(), UsageError> {
        let names: Vec<String> = called(recording).map(|p| crate::abi::text::clean(&p.name, 60)).take(8).collect();
        let recorded = if names.is_empty() { "no patch was called".to_owned() } else { names.join(", ") };
        if let Some(given) = self.given.iter().find(|given| !given.used) {
            return Err(UsageError::new(
                format!("--component {}", given.name.escape_debug()),
                format!("it has neither the digest nor the name of a recorded patch ({recorded})"),
                "name the file as the recorded patch is called, so that it is known which one it stands for",
            ));
        }
        if let Some(setting) = self.settings.iter().find(|setting| !setting.used) {
            return Err(UsageError::new(
                format!("--set {}", setting.key.escape_debug()),
                format!("it is not known which of the recorded patches is meant ({recorded})"),
                "write NAME.KEY=VALUE with the name of a recorded patch",
            ));
        }
        Ok(())
    }
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

fn print_json(report: &ReplayReport, file: &Path, notes: &[String]) -> anyhow::Result<()> {
    let mut object = serde_json::to_value(report)?;
    object["file"] = serde_json::json!(file);
    object["notes"] = serde_json::json!(notes);
    object["identical"] = (exit(report) == 0).into();
    object["exit"] = exit(report).into();
    json(&object)
}

fn print_text(report: &ReplayReport, file: &Path) {
    let r = &report.recording;
    let clean = |text: &str| crate::abi::text::clean(text, 200);
    println!(
        "recording {}: patchhost {}, model {} (config sha256:{}), {} in {}",
        file.display(),
        clean(&r.host),
        clean(&r.model),
        r.config.short(),
        plural(r.calls as usize, "call"),
        bytes(r.bytes),
    );
    match (r.full, r.end) {
        (Some(limit), end) => {
            let missing = end.map_or(String::new(), |end| format!("; {} calls are missing", end.left_out));
            println!("  it reached its bound of {}{missing}", bytes(limit));
        }
        (None, Some(end)) if end.left_out > 0 => println!("  {} calls are missing", end.left_out),
        (None, None) => println!("  it was not closed: the host that recorded was killed"),
        _ => {}
    }
    if r.torn > 0 {
        println!("  its last frame is torn: {} are left out", bytes(r.torn));
    }
    for patch in &report.patches {
        print_patch(patch);
    }
    if report.skipped > 0 {
        println!("{} not asked again", plural(report.skipped as usize, "call"));
    }
    for (what, found) in [("first difference", &report.first), ("first failure", &report.failed)] {
        match found {
            Some(found) if what == "first difference" || report.first != report.failed => print_difference(what, found),
            _ => {}
        }
    }
    let Count { calls, identical, different, failed, .. } = report.total;
    match exit(report) {
        0 => println!("identical: {}, bit for bit", plural(identical as usize, "call")),
        _ => println!("NOT identical: of {} {different} differ and {failed} failed", plural(calls as usize, "call")),
    }
}

fn print_patch(patch: &PatchReplay) {
    let by = match &patch.answered_by {
        None => "nobody answers for it".to_owned(),
        Some((_, digest)) if *digest == patch.recorded_sha256 => "the same component".to_owned(),
        Some((name, digest)) => format!("{name} sha256:{} answers for it", digest.short()),
    };
    let other = if patch.other_settings { ", other settings, limits or grants" } else { "" };
    println!("{} {} sha256:{}: {by}{other}", patch.name, patch.version, patch.recorded_sha256.short());
    for (function, count) in &patch.functions {
        print!("  {:20} {:>8}", function.name(), plural(count.calls as usize, "call"));
        match *count {
            Count { different: 0, failed: 0, .. } => println!("  identical"),
            Count { identical, different, failed, numbers, max_ulp, .. } => {
                print!("  {identical} identical, {different} different, {failed} failed");
                if numbers > 0 {
                    print!("; {numbers} numbers, at most {max_ulp} ulp apart");
                }
                println!();
            }
        }
    }
}

fn print_difference(what: &str, found: &Difference) {
    let about = found.tensor.as_ref().map(|name| format!(" for `{name}`")).unwrap_or_default();
    let block = found.block.map(|block| format!(", block {block}")).unwrap_or_default();
    println!("{what}: call {}, `{}` of {}{about}", found.call, found.function, found.patch);
    println!("  {}{block}", found.part);
    if let Some(asked) = &found.asked {
        println!("  asked     {asked}");
    }
    println!("  recorded  {}", found.recorded);
    println!("  got       {}", found.got);
    if let Some(ulp) = found.ulp {
        println!("  {ulp} ulp apart");
    }
}
