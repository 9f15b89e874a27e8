//! Checkpoints: the bundled model and writing safetensors. (Reading is the runtime's: it must load models without us.)

pub mod bundled;
pub mod export;
pub mod write;
