//! `quantization_config` of config.json: which block-FP8 formats can be read, and a refusal that names any other.

use serde_json::Value;

use crate::config::RawConfig;
use crate::error::{Refusal, Result, RuntimeError};

/// A block-FP8 checkpoint: e4m3fn weights, one multiplier per block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantFormat {
    /// Rows and columns of a block.
    pub block: [usize; 2],
    /// Who writes it so.
    pub method: QuantMethod,
}

/// Who writes a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantMethod {
    /// DeepSeek, transformers, vLLM, SGLang: `quant_method: fp8` with `weight_block_size`.
    Fp8,
    /// compressed-tensors' `float-quantized` with the strategy `block`.
    CompressedTensors,
}

impl QuantFormat {
    /// Reads `quantization_config`; `None` where there is none.
    pub fn read(config: &RawConfig) -> Result<Option<Self>> {
        let Some(quant) = config.get("quantization_config") else { return Ok(None) };
        let method = quant.get("quant_method").and_then(Value::as_str).unwrap_or_default();
        match method {
            "fp8" => fp8(quant).map(Some),
            "compressed-tensors" => compressed(quant).map(Some),
            other => Err(refuse(format!(
                "`quant_method` is `{}`; block FP8 (`fp8`, `compressed-tensors`) can be read",
                other.escape_debug()
            ))),
        }
    }
}

fn fp8(quant: &Value) -> Result<QuantFormat> {
    let word = |key: &str, allowed: &str| match quant.get(key).filter(|v| !v.is_null()) {
        Some(v) if v.as_str() != Some(allowed) => Err(refuse(format!("`{key}` is {v}; only `{allowed}` can be read"))),
        _ => Ok(()),
    };
    word("fmt", "e4m3")?;
    word("activation_scheme", "dynamic")?;
    let Some(block) = quant.get("weight_block_size").filter(|v| !v.is_null()) else {
        return Err(refuse("`weight_block_size` is missing: scales per tensor or channel cannot be read".to_string()));
    };
    Ok(QuantFormat { block: pair("weight_block_size", block)?, method: QuantMethod::Fp8 })
}

fn compressed(quant: &Value) -> Result<QuantFormat> {
    let format = quant.get("format").and_then(Value::as_str).unwrap_or_default();
    if format != "float-quantized" {
        return Err(refuse(format!("`format` is `{}`; `float-quantized` can be read", format.escape_debug())));
    }
    let groups = quant.get("config_groups").and_then(Value::as_object);
    let mut blocks = Vec::new();
    for (name, group) in groups.into_iter().flatten() {
        let weights = group.get("weights").unwrap_or(&Value::Null);
        let strategy = weights.get("strategy").and_then(Value::as_str).unwrap_or_default();
        let bits = weights.get("num_bits").and_then(Value::as_u64);
        let kind = weights.get("type").and_then(Value::as_str);
        if strategy != "block" || bits != Some(8) || kind != Some("float") {
            return Err(refuse(format!(
                "weights of `{}` are {} bits of type `{}` with strategy `{}`; 8-bit float blocks can be read",
                name.escape_debug(),
                bits.unwrap_or(0),
                kind.unwrap_or_default().escape_debug(),
                strategy.escape_debug()
            )));
        }
        blocks.push(pair("block_structure", weights.get("block_structure").unwrap_or(&Value::Null))?);
    }
    match blocks[..] {
        [first, ref rest @ ..] if rest.iter().all(|b| *b == first) => {
            Ok(QuantFormat { block: first, method: QuantMethod::CompressedTensors })
        }
        [] => Err(refuse("`config_groups` is empty".to_string())),
        _ => Err(refuse("its groups have different blocks".to_string())),
    }
}

fn pair(key: &str, value: &Value) -> Result<[usize; 2]> {
    let side = |i: usize| value.get(i).and_then(Value::as_u64).filter(|n| (1..=4096).contains(n)).map(|n| n as usize);
    match (side(0), side(1), value.as_array().map(Vec::len)) {
        (Some(rows), Some(cols), Some(2)) => Ok([rows, cols]),
        _ => Err(refuse(format!("`{key}` is {value}; it must be two whole numbers from 1 to 4096"))),
    }
}

fn refuse(why: String) -> RuntimeError {
    RuntimeError::Config(Refusal::new(
        "`quantization_config` of config.json",
        why,
        "give a block-FP8 checkpoint, or the unquantized one",
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(quant: &str) -> Result<Option<QuantFormat>> {
        let config = format!(r#"{{"model_type":"llama","quantization_config":{quant}}}"#);
        QuantFormat::read(&RawConfig::parse(&config).unwrap())
    }

    #[test]
    fn block_formats_are_read() {
        let fp8 = read(
            r#"{"quant_method":"fp8","fmt":"e4m3","activation_scheme":"dynamic","weight_block_size":[128,64],"scale_fmt":"ue8m0"}"#,
        );
        assert_eq!(fp8.unwrap(), Some(QuantFormat { block: [128, 64], method: QuantMethod::Fp8 }));
        let ct = read(
            r#"{"quant_method":"compressed-tensors","format":"float-quantized","config_groups":{"group_0":{"targets":["Linear"],
            "weights":{"num_bits":8,"type":"float","strategy":"block","block_structure":[128,128]}}}}"#,
        );
        assert_eq!(ct.unwrap(), Some(QuantFormat { block: [128, 128], method: QuantMethod::CompressedTensors }));
    }

    #[test]
    fn others_are_refused_by_name() {
        for (bad, says) in [
            (r#"{"quant_method":"awq"}"#, "`awq`"),
            (r#"{}"#, "`quant_method`"),
            (r#"{"quant_method":"fp8"}"#, "weight_block_size"),
            (r#"{"quant_method":"fp8","weight_block_size":[128]}"#, "[128]"),
            (r#"{"quant_method":"fp8","weight_block_size":[0,128]}"#, "[0,128]"),
            (r#"{"quant_method":"fp8","weight_block_size":[128,128],"activation_scheme":"static"}"#, "static"),
            (r#"{"quant_method":"fp8","weight_block_size":[128,128],"fmt":"e5m2"}"#, "e5m2"),
            (r#"{"quant_method":"compressed-tensors","format":"pack-quantized"}"#, "pack-quantized"),
            (r#"{"quant_method":"compressed-tensors","format":"float-quantized"}"#, "config_groups"),
            (
                r#"{"quant_method":"compressed-tensors","format":"float-quantized","config_groups":{"g":{"weights":{"strategy":"channel","num_bits":8,"type":"float"}}}}"#,
                "channel",
            ),
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
