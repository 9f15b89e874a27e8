//! The inference runtime that patchhost embeds: config and families, checkpoint reading, the tensor registry, staged
//! refit, forward pass, sampling and tokenizer. It asks patches through the traits of [`hooks`] and knows nothing of
//! WebAssembly.

mod absorbed;
pub mod activation;
pub mod assembly;
pub mod bytes;
pub mod caught;
pub mod checkpoint;
pub mod config;
pub mod copies;
pub mod engine;
pub mod error;
pub mod families;
pub mod files;
pub mod fp8;
#[cfg(feature = "text")]
pub mod generate;
#[cfg(feature = "text")]
pub mod grammar;
pub mod hooks;
pub mod kv;
pub mod layout;
pub mod lora;
pub mod metrics;
pub mod model;
#[cfg(feature = "text")]
mod output;
pub mod pace;
pub mod plan;
pub mod quant_config;
pub mod quantize;
pub mod refit;
pub mod registry;
pub mod rename;
pub mod rope;
pub mod sampling;
#[cfg(feature = "text")]
pub mod scheduler;
pub mod size;
#[cfg(feature = "text")]
pub mod tokenizer;
mod weight_file;
pub mod weights;
pub mod words;
