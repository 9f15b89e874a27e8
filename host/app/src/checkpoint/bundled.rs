//! The model inside the binary: a small Qwen3-MoE trained on Shakespeare's plays (`models/tiny-shakespeare-moe`).

use std::path::Path;
use std::sync::Arc;

use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::error::{Refusal, Result, RuntimeError};
use patchhost_runtime::files;
#[cfg(feature = "text")]
use patchhost_runtime::tokenizer::{Tokenizer, TokenizerFiles};
use safetensors::tensor::{Metadata, TensorInfo};

/// Its name.
pub const NAME: &str = "tiny-shakespeare-moe";

/// A prompt it can continue.
pub const PROMPT: &str = "KING HENRY.\n";

/// How it is spoken to, which knows plays and no chat: every turn is a speech of its role. It is no part of the model's files:
/// verbs other than `serve` continue the text that they are given.
pub const TEMPLATE: &str = "{% for message in messages %}{{ message.role | upper }}.\n{{ message.content }}\n\n{% endfor %}\
                            {% if add_generation_prompt %}ASSISTANT.\n{% endif %}";

macro_rules! file {
    ($name:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-shakespeare-moe/", $name)
    };
}

/// Its config.json.
pub const CONFIG: &str = include_str!(file!("config.json"));
static WEIGHTS: &[u8] = include_bytes!(file!("model.safetensors"));

/// The header of its weights, apart from them: a program that needs only names and shapes does not carry nine megabytes.
static HEADER: [u8; HEADER_LEN] = match include_bytes!(file!("model.safetensors")).first_chunk() {
    Some(header) => *header,
    None => panic!("a safetensors file begins with its header"),
};
const HEADER_LEN: usize = match include_bytes!(file!("model.safetensors")).first_chunk::<8>() {
    Some(length) => 8 + u64::from_le_bytes(*length) as usize,
    None => panic!("a safetensors file begins with the length of its header"),
};

/// The other files of its folder that readers use: name and content.
pub const FILES: [(&str, &str); 3] = [
    ("generation_config.json", include_str!(file!("generation_config.json"))),
    ("tokenizer.json", include_str!(file!("tokenizer.json"))),
    ("tokenizer_config.json", include_str!(file!("tokenizer_config.json"))),
];

/// Its tensors.
pub fn checkpoint() -> Result<Checkpoint> {
    Checkpoint::from_bytes(NAME, WEIGHTS)
}

/// Tensors of the same names, types and shapes, of zeros: for whoever asks where they go.
pub fn outline() -> Result<Checkpoint> {
    let unreadable = |why: String| {
        let next = "please report this: it is an error of patchhost";
        RuntimeError::Checkpoint(Refusal::new(format!("the header of `{NAME}`"), why, next))
    };
    let header: Metadata = serde_json::from_slice(&HEADER[8..]).map_err(|e| unreadable(e.to_string()))?;
    let tensors = header.tensors();
    let size = |info: &TensorInfo| info.data_offsets.1.saturating_sub(info.data_offsets.0);
    let zeros = Arc::new(vec![0u8; tensors.values().map(|info| size(info)).max().unwrap_or(0)]);
    let outlined = tensors.iter().map(|(name, info)| {
        let data = TensorBytes::new(zeros.clone(), 0..size(info)).ok_or_else(|| unreadable("too short".to_owned()))?;
        Ok(CheckpointTensor::new(name.clone(), info.dtype, info.shape.clone(), data))
    });
    Checkpoint::from_tensors(outlined.collect::<Result<Vec<_>>>()?)
}

#[cfg(feature = "text")]
pub fn tokenizer() -> Result<Tokenizer> {
    Tokenizer::new(&TokenizerFiles {
        tokenizer: include_str!(file!("tokenizer.json")).to_string(),
        config: Some(include_str!(file!("tokenizer_config.json")).to_string()),
        generation: Some(include_str!(file!("generation_config.json")).to_string()),
        model: Some(CONFIG.to_string()),
        ..TokenizerFiles::default()
    })
}

/// Whether a folder has its tokenizer: then what is in the folder is this model, or was made of it.
pub fn is_tokenizer_of(folder: &Path) -> bool {
    let own = include_str!(file!("tokenizer.json"));
    let path = folder.join("tokenizer.json");
    let same_size = path.metadata().is_ok_and(|data| data.len() == own.len() as u64);
    same_size && files::read_text(&path, files::TOKENIZER).is_ok_and(|text| text == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outline_is_that_of_the_weights() {
        let of = |checkpoint: Checkpoint| -> Vec<_> {
            checkpoint.tensors().map(|t| (t.name.clone(), t.stored, t.shape.clone(), t.data.len())).collect()
        };
        assert_eq!(of(outline().expect("an outline")), of(checkpoint().expect("weights")));
    }
}
