//! The model inside the binary: a small Qwen3-MoE trained on Shakespeare's plays (`models/tiny-shakespeare-moe`).

use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::error::Result;
#[cfg(feature = "text")]
use patchhost_runtime::tokenizer::{Tokenizer, TokenizerFiles};

/// Its name.
pub const NAME: &str = "tiny-shakespeare-moe";

/// A prompt it can continue.
pub const PROMPT: &str = "KING HENRY.\n";

macro_rules! file {
    ($name:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-shakespeare-moe/", $name)
    };
}

/// Its config.json.
pub const CONFIG: &str = include_str!(file!("config.json"));
static WEIGHTS: &[u8] = include_bytes!(file!("model.safetensors"));

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
