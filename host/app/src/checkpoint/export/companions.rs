//! The files beside the weights that readers need: tokenizer, chat template, generation defaults. An allow-list: nothing
//! that could be executed, and nothing that nobody reads.

use std::path::{Path, PathBuf};

use patchhost_runtime::files;

use super::{Result, io, usage};
use crate::checkpoint::bundled;
use crate::checkpoint::links::{self, Leads};
use crate::checkpoint::stream::{self, write_small};
use crate::checkpoint::write::WriteError;

/// Names that are copied.
const NAMES: [&str; 24] = [
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "added_tokens.json",
    "audio_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "image_processor_config.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Largest file that is copied; real tokenizers have at most about 35 MB.
const MOST: u64 = 128 << 20;

enum Content {
    File(PathBuf),
    Text(&'static str),
}

/// Files to copy, and those that are left behind.
pub struct Companions {
    copy: Vec<(String, Content)>,
    /// Files of the model's folder that are not in the export, sorted.
    pub left: Vec<String>,
}

impl Companions {
    /// Those of the bundled model.
    pub fn bundled() -> Self {
        let copy = bundled::FILES.iter().map(|(name, text)| ((*name).to_string(), Content::Text(text))).collect();
        Self { copy, left: Vec::new() }
    }

    /// Those of a model's folder. Links are followed inside of it, and from a snapshot of the Hugging Face hub to the blobs
    /// beside it; one that leaves is refused by name, that of config.json too, which the export is made of.
    pub fn of(folder: &Path) -> Result<Self> {
        let mut all = Self { copy: Vec::new(), left: Vec::new() };
        for entry in std::fs::read_dir(folder).map_err(io(folder))? {
            let path = entry.map_err(io(folder))?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()).map(str::to_string) else { continue };
            let Ok(data) = path.metadata() else { continue };
            let copied = NAMES.contains(&name.as_str()) && data.len() <= MOST;
            let real = match data.is_file() && (copied || name == "config.json") {
                true => Some(inside(folder, &path)?),
                false => None,
            };
            if let Some(real) = real.filter(|_| copied) {
                all.copy.push((name, Content::File(real)));
            } else if data.is_file() && !rewritten(&name) {
                all.left.push(name);
            }
        }
        all.copy.sort_by(|a, b| a.0.cmp(&b.0));
        all.left.sort();
        Ok(all)
    }

    /// Writes them, and gives their names.
    pub fn write(&self, to: &Path) -> std::result::Result<Vec<String>, WriteError> {
        for (name, content) in &self.copy {
            match content {
                Content::Text(text) => write_small(&to.join(name), text.as_bytes())?,
                Content::File(from) => {
                    write_small(&to.join(name), &files::read(from, MOST).map_err(stream::io(from))?)?
                }
            }
        }
        Ok(self.copy.iter().map(|(name, _)| name.clone()).collect())
    }
}

/// The file itself, where it may be copied.
fn inside(folder: &Path, path: &Path) -> Result<PathBuf> {
    match links::leads(folder, path).map_err(io(path))? {
        Leads::Here(real) => Ok(real),
        Leads::Away(to) => {
            let (why, next) = links::reason(&to);
            Err(usage(format!("`{}`", path.display()), why, next))
        }
    }
}

/// What the export writes itself.
fn rewritten(name: &str) -> bool {
    name == "config.json"
        || name == "model.safetensors.index.json"
        || (name.starts_with("model") && name.ends_with(".safetensors"))
}
