//! What most verbs start with: the model, the patches, and the patches' ledger.

mod load;
mod settings;

use std::path::Path;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::hooks::BlockQuant;
use patchhost_runtime::plan::AllowUnknown;
use patchhost_runtime::refit::RefitHooks;
use patchhost_runtime::rename::Renames;
use patchhost_runtime::tokenizer::Tokenizer;
use serde::Serialize;

use super::args::{ModelArgs, PatchArgs};
use super::failure::{Failure, HostError, Result, UsageError};
use super::output::{count, duration};
use super::record::Recorded;
use super::startup::Startup;
use crate::base::{Digest, Hook, child};
use crate::checkpoint::bundled;
use crate::isolate::Isolation;
use crate::patch::{
    Applicability, Attached, Attachments, Cache, Description, HookOptions, Patch, PatchSet, Phase, Sandbox, Site, Trial,
};
use crate::sandbox::AddressSpaceError;
use crate::text;
use crate::trust::{Gate, Policy};
use load::Loader;
use settings::Settings;
pub use settings::parse_setting;

/// Bundled patches that do not change numbers and are on by default in every verb that loads a model.
const DEFAULT_PATCHES: [&str; 1] = ["moe_loader"];

/// A model that was opened and has no weights yet.
pub struct Model {
    /// Name or folder, for messages.
    pub name: String,
    pub engine: Engine,
    pub checkpoint: Checkpoint,
    folder: Option<std::path::PathBuf>,
    options: EngineOptions,
    /// What names of tensors become; those of the checkpoint have become it.
    pub renames: Renames,
}

impl Model {
    /// Opens the folder, or the bundled model.
    pub fn open(args: &ModelArgs, mut options: EngineOptions) -> Result<Self> {
        options.dequantize |= args.reading.dequantize;
        options.allow_unknown = AllowUnknown::new(&args.reading.allow_unknown)?;
        options.tied_head = args.reading.tied_head.into();
        let (name, engine, checkpoint) = match &args.model {
            None => (bundled::NAME.to_string(), Engine::new(bundled::CONFIG, options.clone())?, bundled::checkpoint()?),
            Some(folder) => {
                require_folder(folder)?;
                (folder.display().to_string(), Engine::open(folder, options.clone())?, Checkpoint::open(folder)?)
            }
        };
        let renames = args.reading.renames.all()?;
        let checkpoint = args.reading.renames.apply(checkpoint)?;
        Ok(Self { name, engine, checkpoint, folder: args.model.clone(), options, renames })
    }

    /// The folder it was read from; none for the bundled model.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// A second engine of the same model, without weights.
    pub fn fresh_engine(&self) -> Result<Engine> {
        Ok(match &self.folder {
            None => Engine::new(bundled::CONFIG, self.options.clone())?,
            Some(folder) => Engine::open(folder, self.options.clone())?,
        })
    }

    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(match &self.folder {
            None => bundled::tokenizer()?,
            Some(folder) => text::open(folder, &this_program()?)?,
        })
    }
}

/// What children of this program are.
pub(super) fn this_program() -> Result<std::path::PathBuf> {
    child::this_program().map_err(|e| HostError::system("the path of this program", e).into())
}

fn require_folder(folder: &Path) -> Result<(), UsageError> {
    if folder.is_dir() {
        return Ok(());
    }
    let why = if folder.exists() { "it is not a folder" } else { "there is no such folder" };
    Err(UsageError::new(
        format!("model `{}`", folder.display()),
        why,
        "give a Hugging Face model folder (config.json, tokenizer.json, *.safetensors), or nothing for the bundled model",
    ))
}

/// Which patches are loaded and how: [`Load::new`] has what most verbs want, and a verb changes the rest by name.
pub struct Load<'a> {
    /// What the user named.
    pub args: &'a PatchArgs,
    /// The architecture of the model: it decides which patches apply.
    pub architecture: &'a str,
    /// Bundled patches that the verb needs besides the default ones, where the user names none for their hooks.
    pub more: &'a [&'a str],
    /// How far the engine is: some patches can be attached only before, others only after it is made.
    pub phase: Phase,
    /// The verb watches files, so a setting may be for a component that comes later.
    pub watches: bool,
    /// Writes down every call of the patches.
    pub recorded: Option<Recorded>,
    /// The clock that what this costs is counted on.
    pub startup: Option<&'a Startup>,
}

impl<'a> Load<'a> {
    /// The patches that the user named and the default ones, for an engine that is made and has no weights yet.
    pub fn new(args: &'a PatchArgs, architecture: &'a str) -> Self {
        Self { args, architecture, more: &[], phase: Phase::EngineUp, watches: false, recorded: None, startup: None }
    }
}

/// The patches of one command.
pub struct Patches {
    attachments: Attachments,
    site: Site,
    settings: Settings,
    named: Vec<String>,
    policy: Policy,
    gate: Arc<Gate>,
    recorded: Option<Recorded>,
}

/// What one patch did in this command, as text and JSON show it.
#[derive(Debug, Serialize)]
pub struct LedgerRow {
    name: String,
    version: String,
    sha256: String,
    generation: String,
    hooks: Vec<String>,
    state: &'static str,
    reason: Option<String>,
    calls: u64,
    fuel: u64,
    seconds: f64,
    functions: serde_json::Value,
}

impl Patches {
    /// Verifies, audits, compiles and starts the patches of a command.
    pub fn load(load: Load<'_>) -> Result<Self> {
        let Load { args, architecture, more, phase, watches, recorded, startup } = load;
        let own = Startup::begin();
        let startup = startup.unwrap_or(&own);
        if args.sha256.len() > args.components.len() {
            return Err(UsageError::new(
                format!("{} --sha256 for {} --component", args.sha256.len(), args.components.len()),
                "the n-th --sha256 is the digest of the n-th --component",
                "give at most one --sha256 per --component, in the same order",
            )
            .into());
        }
        // Before anything is loaded: a broken policy or lock must not be found out half way.
        let (policy, gate) = args.trust.gate()?;
        let isolation = args.isolate.then(|| isolation(rayon::current_num_threads())).transpose()?;
        let settings = Settings::parse(&args.settings)?;
        let recorder = recorded.as_ref().map(|r| Arc::clone(r.recorder()) as _);
        let site = || {
            let site = Site::from(sandbox(rayon::current_num_threads())?);
            Ok(site.with_isolation(isolation).with_witness(recorder))
        };
        let loader = Loader { gate: &gate, settings: &settings, startup };
        let (patches, site) = loader.load(args, more, site)?;
        settings.check_used(&patches, args, watches)?;
        let mut attachments = Attachments::new(Description::patchhost(architecture));
        for patch in patches {
            let name = patch.info().name.clone();
            if attachments.attach(patch, phase)? == Attached::Already {
                errln!("note: patch `{name}` is given twice with the same settings; it is loaded once");
            }
        }
        let named = args.components.iter().map(|c| stem(c)).collect();
        Ok(Self { attachments, site, settings, named, policy, gate, recorded })
    }

    /// What a refit asks: the hooks of the patches that apply.
    pub fn hooks(&self, activation: ActivationMode) -> RefitHooks {
        self.set().hooks(HookOptions { activation, vocabulary: None, rules: self.policy.refit_rules() })
    }

    /// The same for a verb that samples text: these hooks also say which token ids are never sampled, which is a part of
    /// the weights.
    pub fn sampling_hooks(&self, activation: ActivationMode, tokenizer: &Tokenizer) -> RefitHooks {
        let vocabulary = u32::try_from(tokenizer.vocabulary()).ok();
        self.set().hooks(HookOptions { activation, vocabulary, rules: self.policy.refit_rules() })
    }

    /// The patches as they were attached, with the reason of each that does not apply.
    pub fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    /// What the policy file says, or its defaults.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The gate that every component passed, and that one which arrives later must pass too.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The place that the patches run in. One that arrives later runs there too.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Gives the recording away: whoever keeps the sandbox longer than this must keep the recording open as long.
    pub fn take_recorded(&mut self) -> Option<Recorded> {
        self.recorded.take()
    }

    /// Finds the settings (`--set`) of a component that arrives later, by the stem of its file. They are the same as if
    /// the user had named the component at the start.
    pub fn settings_for(&self) -> impl Fn(&str) -> Vec<(String, String)> + Send + Sync + 'static {
        let (settings, named) = (self.settings.clone(), self.named.clone());
        move |stem| settings.for_patch(stem, named.is_empty() || named.iter().any(|n| n == stem))
    }

    /// Every patch that was loaded, whether it applies or not.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Patch>> {
        self.attachments.entries().iter().map(|(patch, _)| patch)
    }

    /// The patches that apply to the model.
    pub fn set(&self) -> &PatchSet {
        self.attachments.set()
    }

    /// The patch that quantizes; an error where there is none, for verbs that are about that.
    pub fn require_quant(&self, verb: &str) -> Result<(Arc<Patch>, Arc<dyn BlockQuant>), UsageError> {
        if let Some((patch, quant)) = self.set().claims(Hook::BlockQuant).and_then(|p| Some((p, p.block_quant()?))) {
            return Ok((patch.clone(), quant));
        }
        let not = self.attachments.entries().iter().find_map(|(p, a)| match a {
            Applicability::NotApplicable { reason } if p.hooks().contains(&Hook::BlockQuant) => {
                Some(format!("patch `{}` is not applicable: {reason}", p.info().name))
            }
            _ => None,
        });
        Err(UsageError::new(
            verb,
            not.unwrap_or_else(|| "no block-quant patch is loaded".to_string()),
            "name one, for example --component fp8_block.wasm",
        ))
    }

    /// What each patch has done up to now.
    pub fn ledger(&self) -> Vec<LedgerRow> {
        self.attachments.entries().iter().map(|(patch, applicability)| LedgerRow::of(patch, applicability)).collect()
    }

    pub fn print_ledger(&self) {
        LedgerRow::print(&self.ledger());
    }
}

impl LedgerRow {
    /// What one patch has done up to now.
    pub fn of(patch: &Patch, applicability: &Applicability) -> Self {
        let stats = patch.stats();
        let (state, reason) = match applicability {
            Applicability::Applies => ("applied", None),
            Applicability::NotApplicable { reason } => ("not applicable", Some(reason.clone())),
        };
        Self {
            name: patch.info().name.clone(),
            version: patch.info().version.clone(),
            sha256: patch.digest().hex(),
            generation: patch.generation().hex(),
            hooks: patch.hooks().iter().map(Hook::to_string).collect(),
            state,
            reason,
            calls: stats.hook_calls(),
            fuel: stats.functions.values().map(|f| f.fuel_total).sum(),
            seconds: stats.functions.values().map(|f| f.wall_ns).sum::<u64>() as f64 / 1e9,
            functions: serde_json::to_value(&stats.functions).unwrap_or_default(),
        }
    }

    pub fn print(rows: &[Self]) {
        outln!("patches");
        for r in rows {
            let hooks = r.hooks.join(", ");
            out!("  {} {}  sha256:{}  {hooks}  {}", r.name, r.version, &r.sha256[..12], r.state);
            match &r.reason {
                Some(reason) => outln!(": {reason}"),
                None if r.calls == 0 => outln!(", but never called"),
                None => {
                    let calls = if r.calls == 1 { "1 call".to_string() } else { format!("{} calls", count(r.calls)) };
                    outln!(": {calls}, fuel {}, {}", count(r.fuel), duration(r.seconds));
                }
            }
        }
    }
}

/// A sandbox for the patches of a verb: with the cache of compiled components, and with a first compilation in a child
/// process, so that a component that kills its compiler kills no more than that.
pub fn sandbox(threads: usize) -> Result<Sandbox> {
    let sandbox = Sandbox::new(threads).map_err(|e| match e.downcast_ref::<AddressSpaceError>() {
        Some(small) => Failure::from(*small),
        None => HostError::system("the sandbox cannot start", format!("{e:#}")).into(),
    })?;
    let trial = Trial::this_program().map_err(itself)?;
    Ok(sandbox.with_cache(Cache::from_env()).with_trial(Some(trial)))
}

/// Child processes for the patches of a verb (`--isolate`).
pub fn isolation(processes: usize) -> Result<Isolation, HostError> {
    Isolation::this_program(processes).map_err(itself)
}

fn itself(error: std::io::Error) -> HostError {
    HostError::system("the path of this program, which patches are compiled and isolated with", error)
}

fn parse_digest(hex: &str) -> Result<Digest, UsageError> {
    let bare = hex.strip_prefix("sha256:").unwrap_or(hex);
    bare.parse().map_err(|_| {
        UsageError::new(
            format!("--sha256 {}", hex.escape_debug()),
            "a SHA-256 digest is 64 hexadecimal digits",
            "take it from guests.lock or from `sha256sum X.wasm`",
        )
    })
}

pub(super) fn stem(component: &str) -> String {
    Path::new(component).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A progress bar on standard error; nothing where that is not a terminal.
pub fn progress_bar(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    let bar = ProgressBar::new(0).with_style(style);
    bar.set_prefix(what.to_string());
    bar
}

/// A function for a refit to call, which moves the bar.
pub fn advance(bar: &ProgressBar) -> impl Fn(usize, usize, &str) + Sync + '_ {
    move |done, total, name| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(name.to_string());
    }
}
