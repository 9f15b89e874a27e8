//! What most verbs start with: the model, the patches, and the patches' ledger.

mod load;
mod settings;

use std::path::Path;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::plan::AllowUnknown;
use patchhost_runtime::refit::RefitHooks;
use patchhost_runtime::tokenizer::Tokenizer;
use serde::Serialize;

use super::args::{ModelArgs, PatchArgs};
use super::failure::UsageError;
use super::output::{count, duration};
use super::record::Recorded;
use super::startup::Startup;
use crate::base::{Digest, Hook};
use crate::checkpoint::bundled;
use crate::isolate::Isolation;
use crate::patch::{
    Applicability, Attached, Attachments, Cache, Description, HookOptions, Patch, PatchSet, Phase, Sandbox, Trial,
};
use crate::trust::{Gate, Policy};
use load::Loader;
use settings::Settings;
pub use settings::parse_setting;

/// Bundled patches that do not change numbers and are on by default in every verb that loads a model.
const DEFAULT_PATCHES: [&str; 1] = ["moe_loader"];

/// A model: its engine and its tensors.
pub struct Model {
    /// Name or folder, for messages.
    pub name: String,
    /// The engine, without weights yet.
    pub engine: Engine,
    /// The tensors.
    pub checkpoint: Checkpoint,
    folder: Option<std::path::PathBuf>,
    options: EngineOptions,
}

impl Model {
    /// Opens the folder, or the bundled model.
    pub fn open(args: &ModelArgs, mut options: EngineOptions) -> anyhow::Result<Self> {
        options.dequantize |= args.reading.dequantize;
        options.allow_unknown = AllowUnknown::new(&args.reading.allow_unknown)?;
        let (name, engine, checkpoint) = match &args.model {
            None => (bundled::NAME.to_string(), Engine::new(bundled::CONFIG, options.clone())?, bundled::checkpoint()?),
            Some(folder) => {
                require_folder(folder)?;
                (folder.display().to_string(), Engine::open(folder, options.clone())?, Checkpoint::open(folder)?)
            }
        };
        Ok(Self { name, engine, checkpoint, folder: args.model.clone(), options })
    }

    /// Its folder; none for the bundled model.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// A second engine of the same model, without weights.
    pub fn fresh_engine(&self) -> anyhow::Result<Engine> {
        Ok(match &self.folder {
            None => Engine::new(bundled::CONFIG, self.options.clone())?,
            Some(folder) => Engine::open(folder, self.options.clone())?,
        })
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        Ok(match &self.folder {
            None => bundled::tokenizer()?,
            Some(folder) => Tokenizer::open(folder)?,
        })
    }
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

/// The patches of one command.
pub struct Patches {
    attachments: Attachments,
    sandbox: Sandbox,
    settings: Settings,
    named: Vec<String>,
    policy: Policy,
    gate: Arc<Gate>,
    recorded: Option<Recorded>,
}

/// One line of the ledger.
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
    /// Loads the user's patches and the default ones of a verb that refits. `architecture` decides which of them apply.
    pub fn load(args: &PatchArgs, architecture: &str) -> anyhow::Result<Self> {
        Self::load_with(args, architecture, &[], Phase::EngineUp)
    }

    /// The same, with more bundled patches that the verb needs where the user names none for their hooks.
    pub fn load_with(args: &PatchArgs, architecture: &str, more: &[&str], phase: Phase) -> anyhow::Result<Self> {
        Self::load_for(args, architecture, more, phase, false, None, &Startup::begin())
    }

    /// The same, with every call of the patches written down, and what it cost in `startup`.
    pub fn load_recorded(
        args: &PatchArgs,
        architecture: &str,
        more: &[&str],
        phase: Phase,
        recorded: Option<Recorded>,
        startup: &Startup,
    ) -> anyhow::Result<Self> {
        Self::load_for(args, architecture, more, phase, false, recorded, startup)
    }

    /// The same for a verb that also `watches` files: a setting may be for a component that comes later.
    pub fn load_for(
        args: &PatchArgs,
        architecture: &str,
        more: &[&str],
        phase: Phase,
        watches: bool,
        recorded: Option<Recorded>,
        startup: &Startup,
    ) -> anyhow::Result<Self> {
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
        let isolation = match args.isolate {
            true => Some(Isolation::this_program(rayon::current_num_threads())?),
            false => None,
        };
        let settings = Settings::parse(&args.settings)?;
        let recorder = recorded.as_ref().map(|r| Arc::clone(r.recorder()));
        let sandbox = || {
            let sandbox = sandbox(rayon::current_num_threads())?;
            Ok(sandbox.with_isolation(isolation).with_recorder(recorder))
        };
        let loader = Loader { gate: &gate, settings: &settings, startup };
        let (patches, sandbox) = loader.load(args, more, sandbox)?;
        settings.check_used(&patches, args, watches)?;
        let mut attachments = Attachments::new(Description::patchhost(architecture));
        for patch in patches {
            let name = patch.info().name.clone();
            if attachments.attach(patch, phase)? == Attached::Already {
                errln!("note: patch `{name}` is given twice with the same settings; it is loaded once");
            }
        }
        let named = args.components.iter().map(|c| stem(c)).collect();
        Ok(Self { attachments, sandbox, settings, named, policy, gate, recorded })
    }

    /// The hooks of the patches that apply.
    pub fn hooks(&self, activation: ActivationMode) -> RefitHooks {
        self.set().hooks(HookOptions { activation, vocabulary: None })
    }

    /// The same for a verb that samples text: what is never sampled is a part of the weights.
    pub fn sampling_hooks(&self, activation: ActivationMode, tokenizer: &Tokenizer) -> RefitHooks {
        let vocabulary = u32::try_from(tokenizer.vocabulary()).ok();
        self.set().hooks(HookOptions { activation, vocabulary })
    }

    /// What the run starts with.
    pub fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What later candidates go through.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Where they run.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The recording, for who keeps the sandbox longer than this.
    pub fn take_recorded(&mut self) -> Option<Recorded> {
        self.recorded.take()
    }

    /// The settings of a component that comes later, by the stem of its file: as if it had been named at the start.
    pub fn settings_for(&self) -> impl Fn(&str) -> Vec<(String, String)> + Send + Sync + 'static {
        let (settings, named) = (self.settings.clone(), self.named.clone());
        move |stem| settings.for_patch(stem, named.is_empty() || named.iter().any(|n| n == stem))
    }

    /// Every patch that was loaded, whether it applies or not.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Patch>> {
        self.attachments.entries().iter().map(|(patch, _)| patch)
    }

    /// The set of those that apply.
    pub fn set(&self) -> &PatchSet {
        self.attachments.set()
    }

    /// Refuses if no patch quantizes, for verbs that are about that.
    pub fn require_quant(&self, verb: &str) -> Result<Arc<Patch>, UsageError> {
        if let Some(patch) = self.set().claims(Hook::BlockQuant) {
            return Ok(patch.clone());
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

    /// The ledger, as it stands now.
    pub fn ledger(&self) -> Vec<LedgerRow> {
        self.attachments.entries().iter().map(|(patch, applicability)| LedgerRow::of(patch, applicability)).collect()
    }

    /// Prints the ledger for people.
    pub fn print_ledger(&self) {
        LedgerRow::print(&self.ledger());
    }
}

impl LedgerRow {
    /// The line of one patch, as it stands now.
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

    /// Prints lines for people.
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

/// Where patches of a verb run.
pub fn sandbox(threads: usize) -> anyhow::Result<Sandbox> {
    Ok(Sandbox::new(threads)
        .map_err(|e| anyhow::anyhow!("the sandbox cannot start: {e:#}"))?
        .with_cache(Cache::from_env())
        .with_trial(Some(Trial::this_program()?)))
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

/// Moves a bar on as a refit goes on.
pub fn advance(bar: &ProgressBar) -> impl Fn(usize, usize, &str) + Sync + '_ {
    move |done, total, name| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(name.to_string());
    }
}
