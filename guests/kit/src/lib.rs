//! What the quantization patches share. Plain Rust over plain types: it builds and is tested natively, and the two
//! patches translate it to their WIT bindings in `glue/block_quant.rs`.

pub mod engines;
pub mod glob;
pub mod model_config;
pub mod mse;
pub mod numeric;
pub mod select;
pub mod settings;
pub mod types;
