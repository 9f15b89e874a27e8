//! A LoRA adapter for the verbs that run a model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use patchhost_runtime::assembly::ChunkHeader;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::files;
use patchhost_runtime::lora::{Adapter, AdapterBuilder};

use super::failure::{Result, UsageError};
use super::session::{Model, Patches};

/// Most bytes of a chunk: an adapter on disk goes the way of one that a trainer sends in pieces.
const CHUNK: usize = 1 << 20;

/// The bundled patch that admits adapters where the user names none.
pub const PATCH: &str = "lora_tensors";

/// The adapter that a verb runs with.
#[derive(Debug, clap::Args)]
pub struct LoraArgs {
    /// A PEFT adapter to run with: a folder with adapter_config.json and adapter_model.safetensors, or NAME=FOLDER
    #[arg(long, value_name = "[NAME=]FOLDER")]
    pub lora: Option<String>,
}

impl LoraArgs {
    /// The bundled patches that the option needs.
    pub fn patches(&self) -> &'static [&'static str] {
        if self.lora.is_some() { &[PATCH] } else { &[] }
    }

    /// Refuses an adapter that is not there, before anything large is read.
    pub fn check(&self) -> Result<(), UsageError> {
        let folder = self.lora.as_deref().map(|given| split(given).1);
        folder.map_or(Ok(()), |folder| read_config(&folder).map(|_| ()))
    }

    /// Loads the adapter into the engine, which must have its weights.
    pub fn load(&self, model: &Model, patches: &Patches) -> Result<Option<Arc<Adapter>>> {
        let Some(given) = &self.lora else { return Ok(None) };
        let (name, folder) = split(given);
        let patch = patches.set().lora().ok_or_else(|| {
            UsageError::new(
                format!("--lora {given}"),
                "no patch with the lora hook is loaded, and adapters are admitted by one",
                format!("name one, for example --component {PATCH}, or leave --no-default-patches away"),
            )
        })?;
        let text = read_config(&folder)?;
        let tensors = Checkpoint::open(&folder.join("adapter_model.safetensors"))?;
        let mut builder = AdapterBuilder::new(name, text);
        for t in tensors.tensors() {
            let header = |offset| ChunkHeader { name: &t.name, dtype: t.stored, shape: &t.shape, offset };
            if t.data.is_empty() {
                builder.chunk(&header(0), &[])?;
            }
            for part in t.data.parts(CHUNK) {
                let (start, bytes) = part?;
                builder.chunk(&header(start), &bytes)?;
            }
        }
        Ok(Some(model.engine.load_adapter(builder, patch.as_ref())?))
    }
}

fn read_config(folder: &Path) -> Result<String, UsageError> {
    let config = folder.join("adapter_config.json");
    files::read_text(&config, files::CONFIG).map_err(|e| {
        UsageError::new(
            format!("adapter `{}`", config.display()),
            e.to_string(),
            files::next_of(&e, "give the folder that PEFT's save_pretrained wrote"),
        )
    })
}

/// `NAME=FOLDER`, or a folder that gives its own name.
fn split(given: &str) -> (String, PathBuf) {
    if let Some((name, folder)) = given.split_once('=').filter(|(n, _)| !n.is_empty() && !n.contains(['/', '\\'])) {
        return (name.to_string(), PathBuf::from(folder));
    }
    let folder = Path::new(given);
    let name = folder.file_name().map_or_else(|| "lora".to_string(), |n| n.to_string_lossy().into_owned());
    (name, folder.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn names() {
        assert_eq!(split("sql=adapters/a"), ("sql".to_string(), "adapters/a".into()));
        assert_eq!(split("adapters/a"), ("a".to_string(), "adapters/a".into()));
        assert_eq!(split("runs/x=1/a"), ("a".to_string(), "runs/x=1/a".into()));
    }
}
