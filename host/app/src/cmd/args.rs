//! Groups of arguments that several verbs share.

use std::path::PathBuf;

use super::failure::UsageError;
use super::trust_args::TrustArgs;
use clap::{Args, ValueEnum};
use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::copies;
use patchhost_runtime::rename::{Rename, Renames};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    /// One JSON object on standard output.
    Json,
}

/// What can be asked for: SARIF is `audit`'s alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AnyFormat {
    /// Lines for people
    Text,
    /// One JSON object on standard output
    Json,
    /// SARIF 2.1.0, of `audit`
    Sarif,
}

/// Options that every verb has.
#[derive(Debug, Args)]
pub struct Global {
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub format: AnyFormat,
    /// Worker threads (results do not depend on it) [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=256).contains(&n) => Ok(n),
        _ => Err("give a whole number from 1 to 256".to_string()),
    }
}

/// Which patches are loaded.
#[derive(Debug, Args)]
pub struct PatchArgs {
    /// A patch: a path, or the name of a bundled one (see guests/README.md: fp8_block, fp8_block_mse, moe_loader, gpu_layout,
    /// lora_tensors, refit_guard, vocab_mask); can be repeated
    #[arg(long = "component", value_name = "X.wasm")]
    pub components: Vec<String>,
    /// A setting of the patch: KEY=VALUE, or NAME.KEY=VALUE where several patches are loaded; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// The digest that the component's bytes must have; the n-th belongs to the n-th --component
    #[arg(long = "sha256", value_name = "HEX")]
    pub sha256: Vec<String>,
    /// Run each patch in child processes of its own: what takes one down does not take this process down
    #[arg(long)]
    pub isolate: bool,
    /// Do not load the bundled patches that are on by default (moe_loader; vocab_mask where text is sampled;
    /// lora_tensors in serve)
    #[arg(long)]
    pub no_default_patches: bool,
    #[command(flatten)]
    pub trust: TrustArgs,
}

/// Which model, and how its checkpoint is read.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A Hugging Face model folder: config.json, tokenizer.json, *.safetensors [default: the bundled tiny MoE]
    #[arg(value_name = "MODEL")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub reading: ReadingArgs,
}

/// How a checkpoint is read.
#[derive(Debug, Clone, Args)]
pub struct ReadingArgs {
    /// Widen the weights of an FP8 checkpoint to bf16 when they are loaded (they can then be quantized anew)
    #[arg(long)]
    pub dequantize: bool,
    /// Tensors that the model does not know are skipped instead of refused, where their names match; can be repeated
    #[arg(long, value_name = "GLOB")]
    pub allow_unknown: Vec<String>,
    /// Where config.json ties the head to the embedding, and the checkpoint has a head that differs: refuse it, use the
    /// file's (as transformers does), or use the embedding
    #[arg(long, value_enum, value_name = "WHICH", default_value = "refuse")]
    pub tied_head: TiedHead,
    #[command(flatten)]
    pub renames: RenameArgs,
}

/// What names of tensors become when they are read.
#[derive(Debug, Clone, Default, Args)]
pub struct RenameArgs {
    /// Rename tensors when they are read: FROM becomes TO wherever it stands at the beginning of a component of a name (`_orig_mod.=`
    /// takes that wrapper's prefix away), with ^FROM only at the beginning of the name; can be repeated, one after the other
    #[arg(long, value_name = "FROM=TO", value_parser = rename)]
    pub rename: Vec<Rename>,
}

impl RenameArgs {
    /// In the order of the command line.
    pub fn all(&self) -> Result<Renames, UsageError> {
        Renames::new(self.rename.iter().cloned()).map_err(|r| UsageError::new(r.what, r.why, r.next))
    }

    /// The checkpoint under its new names; what is worth saying of the renames is said.
    pub fn apply(&self, checkpoint: Checkpoint) -> super::failure::Result<Checkpoint> {
        let (renamed, notes) = checkpoint.renamed(&self.all()?)?;
        notes.iter().for_each(|note| errln!("note: {note}"));
        Ok(renamed)
    }
}

fn rename(text: &str) -> Result<Rename, String> {
    Rename::parse(text).map_err(|r| format!("{}; {}", r.why, r.next))
}

/// [`patchhost_runtime::copies::TiedHead`], as the command line names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum TiedHead {
    /// It is an error
    #[default]
    Refuse,
    /// The head is the file's own, as if config.json did not tie it
    File,
    /// The head is the embedding
    Embedding,
}

impl From<TiedHead> for copies::TiedHead {
    fn from(which: TiedHead) -> Self {
        match which {
            TiedHead::Refuse => Self::Refuse,
            TiedHead::File => Self::File,
            TiedHead::Embedding => Self::Embedding,
        }
    }
}

/// Treatment of activations before FP8 matrices.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Fp8Activation {
    /// Quantized in 1x128 groups, as W8A8 engines do
    #[value(name = "dynamic-128")]
    Dynamic128,
    /// Not quantized: weight-only
    None,
}

impl From<Fp8Activation> for ActivationMode {
    fn from(a: Fp8Activation) -> Self {
        match a {
            Fp8Activation::Dynamic128 => ActivationMode::Dynamic128,
            Fp8Activation::None => ActivationMode::None,
        }
    }
}
