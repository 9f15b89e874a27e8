//! What the verbs with a live model share: its options, and making one.

use std::path::PathBuf;
use std::sync::Arc;

use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::tokenizer::Tokenizer;

use super::args::{Fp8Activation, PatchArgs};
use super::failure::{HostError, Result};
use super::record::{RecordArgs, Recorded};
use super::session::{Load, Model, Patches, advance, progress_bar};
use super::staging::Reports;
use crate::live::{CanaryUnit, LiveModel, LiveOptions, Refitted, Watcher};
use crate::patch::{Actor, HookOptions, Ledger, LedgerOptions, Phase, When};

/// Options of a model whose patches can change.
#[derive(Debug, clap::Args)]
pub struct LiveArgs {
    /// A component file, or a folder of them: what changes there is staged, and takes the place of the patch with its
    /// hooks; can be repeated
    #[arg(long = "watch", value_name = "DIR|FILE")]
    pub watch: Vec<PathBuf>,
    /// When a watched change takes effect: refit (at the next one), now, or step:N
    #[arg(long, value_name = "WHEN", default_value = "refit", value_parser = when)]
    pub watch_when: When,
    /// The ledger: every event of the patches, hash-chained; is continued if it exists [default: in memory only]
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Where reports of candidates in shadow or canary are written
    #[arg(long, value_name = "DIR")]
    pub shadow_reports: Option<PathBuf>,
    /// Activations before FP8 matrices
    #[arg(long, value_enum, default_value = "dynamic-128")]
    pub fp8_activation: Fp8Activation,
    #[command(flatten)]
    pub record: RecordArgs,
}

fn when(text: &str) -> Result<When, String> {
    text.parse()
}

/// What differs between the verbs with a live model.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    /// Bundled patches that are loaded where the user names none for their hooks.
    pub patches: &'a [&'a str],
    /// Whether a canary gets some requests or some steps.
    pub canary: CanaryUnit,
    /// Write a digest of all weights to the ledger with every refit.
    pub hash_weights: bool,
}

/// A live model that is ready except for its weights, which [`Started::load`] loads.
pub struct Started {
    /// Name or folder of the model, for messages.
    pub name: String,
    /// Its folder; none for the bundled model.
    pub folder: Option<PathBuf>,
    /// Its own; a server may speak through another one.
    pub tokenizer: Arc<Tokenizer>,
    pub live: Arc<LiveModel>,
    /// The tensors that the first load reads.
    pub checkpoint: Checkpoint,
    /// Looks after `--watch`, if anything is watched.
    pub watcher: Option<Watcher>,
    /// Looks at `--watch` and `--component` files when somebody asks (SIGHUP).
    pub files: Watcher,
    /// Says how far candidates are.
    _reports: Reports,
    /// The last field, so that the recording is closed after everything that may still write to it.
    _recorded: Option<Recorded>,
}

impl LiveArgs {
    /// Makes the model and its first set of patches, and starts watching. What is in watched files now takes part in the
    /// first load.
    pub fn start(&self, model: Model, patches: &PatchArgs, needs: Needs<'_>) -> Result<Started> {
        let tokenizer = Arc::new(model.tokenizer()?);
        let ledger = match &self.ledger {
            None => Ledger::in_memory(),
            Some(path) => {
                let (ledger, opened) = Ledger::open(path, LedgerOptions::default())?;
                if let Some(torn) = &opened.torn {
                    errln!(
                        "note: the ledger ended in the middle of a line; {} bytes are kept in {}",
                        torn.bytes,
                        torn.moved_to.display()
                    );
                }
                ledger
            }
        };
        let watches = !self.watch.is_empty();
        let architecture = model.engine.info().architecture.clone();
        let recorded = self.record.start(&model.name, &model.engine.info().config)?;
        let phase = Phase::of(Some(&model.engine));
        let more = needs.patches;
        let load = Load { more, phase, watches, recorded, ..Load::new(patches, &architecture) };
        let mut loaded = Patches::load(load)?;
        let options = LiveOptions {
            hooks: HookOptions {
                activation: self.fp8_activation.into(),
                vocabulary: u32::try_from(tokenizer.vocabulary()).ok(),
                rules: loaded.policy().refit_rules(),
            },
            canary: needs.canary,
            reports: self.shadow_reports.clone(),
            hash_weights: needs.hash_weights,
            gate: loaded.gate().clone(),
        };
        let folder = model.folder().map(std::path::Path::to_path_buf);
        let Model { name, engine, checkpoint, .. } = model;
        let (site, policy) = (loaded.site().clone(), loaded.policy().clone());
        let rules = if patches.isolate { policy.isolated().rules() } else { policy.rules() };
        let live = LiveModel::new(engine, loaded.attachments(), site, rules, ledger, options);
        let live = Arc::new(live.map_err(|e| HostError::system("the threads of the live model", e))?);
        live.board().started(&Actor::cli())?;
        let reports = Reports::start(&live);
        let settings: crate::live::SettingsFor = Arc::new(loaded.settings_for());
        let watcher = match watches {
            false => None,
            true => Some(Watcher::start(&live, &self.watch, settings.clone(), self.watch_when)?),
        };
        for seen in watcher.iter().flat_map(Watcher::sync) {
            if let Err(error) = &seen.outcome {
                errln!("note: {} is not used\n{error}", seen.path.display());
            }
        }
        let given = patches.components.iter().map(PathBuf::from).filter(|path| path.is_file());
        let files: Vec<PathBuf> = given.chain(self.watch.iter().cloned()).collect();
        let files = Watcher::by_hand(&live, &files, settings, self.watch_when);
        let (_reports, _recorded) = (reports, loaded.take_recorded());
        Ok(Started { name, folder, tokenizer, live, checkpoint, watcher, files, _reports, _recorded })
    }
}

impl Started {
    /// The first load, with a progress bar.
    pub fn load(&self) -> Result<Refitted> {
        let bar = progress_bar("load");
        // vLLM's name for weights that no trainer has sent.
        let loaded = self.live.load_as(Some("default"), self.checkpoint.clone(), &Actor::cli(), &advance(&bar));
        bar.finish_and_clear();
        Ok(loaded?)
    }
}
