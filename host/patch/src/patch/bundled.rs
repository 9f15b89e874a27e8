//! Patches that come inside the binary, and how a name on the command line becomes a candidate.

use super::{Candidate, StageError};
use std::path::Path;

/// The bundled patches: name and component.
pub const BUNDLED: [(&str, &[u8]); 7] = [
    ("moe_loader", include_bytes!("../../../../guests/moe_loader.wasm")),
    ("fp8_block", include_bytes!("../../../../guests/fp8_block.wasm")),
    ("fp8_block_mse", include_bytes!("../../../../guests/fp8_block_mse.wasm")),
    ("gpu_layout", include_bytes!("../../../../guests/gpu_layout.wasm")),
    ("lora_tensors", include_bytes!("../../../../guests/lora_tensors.wasm")),
    ("refit_guard", include_bytes!("../../../../guests/refit_guard.wasm")),
    ("vocab_mask", include_bytes!("../../../../guests/vocab_mask.wasm")),
];

/// A bundled patch by name, with or without `.wasm`.
pub fn bundled(name: &str) -> Option<Candidate> {
    let name = name.strip_suffix(".wasm").unwrap_or(name);
    let (name, bytes) = BUNDLED.iter().find(|(bundled, _)| *bundled == name)?;
    Some(Candidate::bundled(name, bytes))
}

/// A path that exists, else a bundled patch.
pub fn resolve(name_or_path: &str) -> Result<Candidate, StageError> {
    let path = Path::new(name_or_path);
    if path.is_file() {
        return Candidate::from_file(path);
    }
    match bundled(name_or_path) {
        Some(candidate) => Ok(candidate),
        // A folder, a pipe: reading it says so.
        None if path.exists() => Candidate::from_file(path),
        None => Err(StageError::NotFound {
            name: crate::base::text::clean(name_or_path, 200),
            bundled: BUNDLED.iter().map(|(name, _)| *name).collect(),
        }),
    }
}
