//! Checkpoints: the bundled model, writing safetensors, and versions of weights in folders. (Reading one checkpoint is the
//! runtime's: it must load models without us.)

pub mod bundled;
pub mod export;
mod layout;
pub(crate) mod links;
pub(crate) mod staging;
pub(crate) mod stream;
pub mod versions;
pub mod write;
