//! A plan as a folder: plan.json, and a complete Hugging Face checkpoint for each set of weights.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::cases::name_of;
use super::change::changes;
use super::draw::{Known, draw};
use super::error::KitError;
use super::family::{Family, VOCABULARY};
use super::plan::{self, Held, Plan, TensorEntry};
use super::weights::Tensor;
use crate::base::Digest;
use crate::checkpoint::links::{self, Leads};
use crate::checkpoint::write::{Out, WriteError, safetensors, write_file};

/// Tokens of an answer. With [`super::plan`]'s longest prompt they stay far below the models' 256 positions.
pub const MAX_TOKENS: usize = 32;

/// Which plan is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The family of the tiny model.
    pub family: &'static Family,
    /// The same seed gives the same plan.
    pub seed: u64,
    /// How many updates.
    pub cases: usize,
    /// Experts of a width that engines pad.
    pub padded: bool,
}

/// A plan that was written, with its weights.
pub struct Made {
    /// The plan.
    pub plan: Plan,
    /// The folder that it lies in.
    pub folder: PathBuf,
    /// The tensors of each checkpoint, in the order of the plan.
    pub weights: Vec<Vec<Tensor>>,
}

/// Makes a plan and writes it to a folder that is empty or does not exist yet.
pub fn make(wanted: Wanted, folder: &Path) -> Result<Made, MakeError> {
    let Wanted { family, seed, cases, padded } = wanted;
    if padded && !family.is_moe() {
        let why = format!("{} has no experts, and only experts are padded", family.name);
        return Err(KitError::usage("--padded", why, "leave it out, or give a family with experts (qwen3_moe)").into());
    }
    fresh(folder)?;
    let base: Vec<Tensor> = family.tensors(padded).into_iter().map(|t| Tensor::drawn(t, seed)).collect();
    let changed = changes(&base, seed);
    let known = Known::new(&base, &changed);
    let cases = draw(&known, seed, cases);
    let config = family.config(padded);
    let mut checkpoints = Vec::new();
    let mut weights = vec![base];
    weights.extend(changed.iter().map(|c| c.tensors.clone()));
    let words = std::iter::once("as generated").chain(changed.iter().map(|c| c.change.as_str()));
    for (number, (tensors, change)) in weights.iter().zip(words).enumerate() {
        let name = name_of(number);
        let sha256 = write_model(&folder.join(&name), &config, tensors)?.hex();
        let entries = tensors.iter().map(|t| Ok((t.name.clone(), serde_json::to_value(TensorEntry::of(t))?)));
        let tensors = entries.collect::<Result<_, serde_json::Error>>().map_err(impossible)?;
        checkpoints.push(Held { path: name.clone(), name, change: change.to_owned(), sha256, tensors });
    }
    let plan = Plan {
        version: plan::VERSION,
        kit: kit(),
        seed,
        family: family.name.to_owned(),
        architecture: family.architecture.to_owned(),
        tied: family.tied,
        padded,
        prompts: plan::prompts(seed, VOCABULARY),
        max_tokens: MAX_TOKENS,
        ignore_eos: true,
        checkpoints,
        cases,
    };
    let mut text = serde_json::to_vec_pretty(&plan).map_err(impossible)?;
    text.push(b'\n');
    write_file(&folder.join("plan.json"), &text)?;
    Ok(Made { plan, folder: folder.to_owned(), weights })
}

/// The name of this program, as plans and certificates have it.
pub fn kit() -> String {
    concat!("patchhost ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Why a plan was not made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// What was wanted cannot be.
    #[error(transparent)]
    Kit(#[from] KitError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl crate::base::Exit for MakeError {
    fn exit(&self) -> crate::base::Code {
        match self {
            Self::Kit(error) => error.exit(),
            Self::Write(error) => error.exit(),
        }
    }

    fn parts(&self) -> patchhost_runtime::error::Refusal {
        match self {
            Self::Kit(error) => error.parts(),
            Self::Write(error) => error.parts(),
        }
    }
}

fn impossible(error: serde_json::Error) -> KitError {
    KitError::host("the plan as JSON", error.to_string(), "please report this: it is an error of patchhost")
}

/// Files of an older plan would be taken for this one's.
fn fresh(folder: &Path) -> Result<(), MakeError> {
    let io = |source| WriteError::Io { path: folder.display().to_string(), source };
    std::fs::create_dir_all(folder).map_err(io)?;
    if std::fs::read_dir(folder).map_err(io)?.next().is_none() {
        return Ok(());
    }
    let what = format!("folder `{}`", folder.display());
    Err(KitError::usage(what, "it is not empty", "name a folder that does not exist yet, or empty this one").into())
}

/// Writes a complete model folder and gives the digest of its model.safetensors.
pub fn write_model(folder: &Path, config: &serde_json::Value, tensors: &[Tensor]) -> Result<Digest, MakeError> {
    let io = |source| WriteError::Io { path: folder.display().to_string(), source };
    std::fs::create_dir_all(folder).map_err(io)?;
    let text = |value: &serde_json::Value| Ok::<_, KitError>(format!("{:#}\n", value));
    write_file(&folder.join("config.json"), text(config)?.as_bytes())?;
    write_file(&folder.join("generation_config.json"), text(&json!({ "do_sample": false }))?.as_bytes())?;
    let vocabulary = config.get("vocab_size").and_then(serde_json::Value::as_u64).unwrap_or(0);
    write_file(&folder.join("tokenizer.json"), text(&tokenizer(vocabulary))?.as_bytes())?;
    let class = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    write_file(&folder.join("tokenizer_config.json"), text(&class)?.as_bytes())?;
    let path = folder.join("model.safetensors");
    write_tensors(&path, tensors)?;
    let bytes = std::fs::read(&path).map_err(io)?;
    Ok(Digest::of(&bytes))
}

/// A word for each token id: engines that want a tokenizer get one, and nothing depends on it.
fn tokenizer(vocabulary: u64) -> serde_json::Value {
    let words: serde_json::Map<_, _> = (0..vocabulary).map(|id| (format!("w{id}"), id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": words, "unk_token": "w0" },
    })
}

/// Writes tensors, whose names must differ, to a safetensors file.
pub fn write_tensors(path: &Path, tensors: &[Tensor]) -> Result<(), WriteError> {
    let out = |t| {
        let Tensor { name, dtype, shape, data, .. }: &Tensor = t;
        Out { name: name.clone(), dtype: *dtype, shape: shape.clone(), data: Cow::Borrowed(data.as_slice()) }
    };
    let out: Vec<Out<'_>> = tensors.iter().map(out).collect();
    // transformers refuses a file that does not say which framework it is for.
    safetensors(path, &out, HashMap::from([("format".to_owned(), "pt".to_owned())]))?;
    Ok(())
}

/// Copies what is beside the weights of a model's folder: config, tokenizer and what else its readers want. A link that leaves
/// the folder is refused.
pub fn copy_beside(from: &Path, to: &Path) -> Result<(), KitError> {
    let next = "make room, or name another folder with TMPDIR";
    let io = |path: &Path, e: std::io::Error| KitError::host(format!("`{}`", path.display()), e.to_string(), next);
    for entry in std::fs::read_dir(from).map_err(|e| io(from, e))? {
        let path = entry.map_err(|e| io(from, e))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if !path.is_file() || name.contains(".safetensors") {
            continue;
        }
        match links::leads(from, &path).map_err(|e| io(&path, e))? {
            Leads::Here(real) => std::fs::copy(&real, to.join(&name)).map_err(|e| io(&path, e))?,
            Leads::Away(real) => {
                let (why, next) = links::reason(&real);
                return Err(KitError::usage(format!("`{}`", path.display()), why, next));
            }
        };
    }
    Ok(())
}
