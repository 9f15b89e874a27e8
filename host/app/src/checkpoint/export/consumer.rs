//! Who reads the export, and what that reader demands.

use std::fmt;
use std::str::FromStr;

use patchhost_runtime::hooks;

/// How config.json and the scales are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `quant_method: fp8`, scales `X.weight_scale_inv`: DeepSeek, vLLM, SGLang, transformers.
    BlockFp8,
    /// `quant_method: compressed-tensors`, `format: float-quantized`, scales `X.weight_scale`.
    CompressedTensors,
}

/// A reader and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    engine: &'static str,
    version: String,
}

/// Engine, the version that is meant where none is given, and the oldest one that reads block FP8 as written here.
const KNOWN: [(&str, &str, [u64; 2]); 5] = [
    ("transformers", "5.24.0", [4, 49]),
    ("vllm", "0.11.0", [0, 10]),
    ("sglang", "0.5.0", [0, 4]),
    ("compressed-tensors", "0.20.0", [0, 12]),
    ("deepseek", "3.1.0", [3, 0]),
];

/// Members of a fused module must all be FP8 or all not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agreement {
    /// q, k, v; gate, up; q_a, kv_a; the experts of a layer.
    Fused,
    /// The experts of a layer, which the reader stacks.
    Experts,
    /// Each matrix for itself.
    None,
}

impl Consumer {
    /// How config.json and the scales are written.
    pub fn format(&self) -> Format {
        if self.engine == "compressed-tensors" { Format::CompressedTensors } else { Format::BlockFp8 }
    }

    /// Whether matrices whose sizes are not multiples of the block load. transformers derives the block as rows divided
    /// by scale rows: such a matrix loads silently wrong, or not at all.
    pub fn takes_partial_blocks(&self) -> bool {
        self.engine != "transformers"
    }

    /// The consumer as a patch is told about it.
    pub fn for_patch(&self) -> hooks::Consumer {
        hooks::Consumer { engine: self.engine.to_string(), version: self.version.clone() }
    }

    /// compressed-tensors checkpoints are read by vLLM, which fuses.
    pub(super) fn agreement(&self) -> Agreement {
        match self.engine {
            "vllm" | "sglang" | "compressed-tensors" => Agreement::Fused,
            "transformers" => Agreement::Experts,
            _ => Agreement::None,
        }
    }

    /// The name of a scale tensor, given the suffix that the patch chose. SGLang reads both suffixes; the others know one
    /// name each. The format of compressed-tensors leaves no choice, so the name is the format's there.
    pub(super) fn scale_name(&self, tensor: &str, suffix: &str) -> Result<String, String> {
        let wanted: &[&str] = match (self.format(), self.engine) {
            (Format::CompressedTensors, _) => return Ok(format!("{tensor}_scale")),
            (_, "sglang") => &["_scale_inv", "_scale"],
            _ => &["_scale_inv"],
        };
        if wanted.contains(&suffix) {
            return Ok(format!("{tensor}{suffix}"));
        }
        let known = wanted.iter().map(|s| format!("`{tensor}{s}`")).collect::<Vec<_>>().join(" or ");
        Err(format!("its scale would be `{tensor}{}`, but {self} reads {known}", suffix.escape_debug()))
    }
}

impl fmt::Display for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.engine, self.version)
    }
}

impl FromStr for Consumer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        let Some((engine, default, oldest)) = KNOWN.iter().find(|(engine, ..)| *engine == name) else {
            let names: Vec<&str> = KNOWN.iter().map(|(engine, ..)| *engine).collect();
            return Err(format!("known readers are {}, each with an optional @VERSION", names.join(", ")));
        };
        let Some(version) = version else { return Ok(Self { engine, version: (*default).to_string() }) };
        let parts: Option<Vec<u64>> = version.split('.').map(|p| p.parse().ok()).collect();
        let [major, minor, patch] = match parts.as_deref() {
            Some([major, minor]) => [*major, *minor, 0],
            Some([major, minor, patch]) => [*major, *minor, *patch],
            _ => return Err(format!("a version is for example {name}@{default}")),
        };
        if [major, minor] < *oldest {
            return Err(format!(
                "{name} {version} is too old; what is written here is read from {name} {}.{} on",
                oldest[0], oldest[1]
            ));
        }
        Ok(Self { engine, version: format!("{major}.{minor}.{patch}") })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_and_versions() {
        assert_eq!("vllm@0.10".parse::<Consumer>().unwrap().to_string(), "vllm 0.10.0");
        assert_eq!("vllm".parse::<Consumer>().unwrap().to_string(), "vllm 0.11.0");
        assert_eq!("vllm@0.20.1".parse::<Consumer>().unwrap().to_string(), "vllm 0.20.1");
        for bad in
            ["vllm@0.2", "vllm@", "vllm@x", "vllm@0.11.0.0", "VLLM", "", "@1", "tgi", "vllm@99999999999999999999.1"]
        {
            assert!(bad.parse::<Consumer>().is_err(), "{bad}");
        }
    }

    #[test]
    fn scales_have_the_names_that_the_reader_knows() {
        let name = |consumer: &str, suffix: &str| consumer.parse::<Consumer>().unwrap().scale_name("a.weight", suffix);
        assert_eq!(name("vllm@0.11", "_scale_inv").unwrap(), "a.weight_scale_inv");
        assert!(name("vllm@0.11", "_scale").unwrap_err().contains("`a.weight_scale_inv`"));
        assert_eq!(name("sglang", "_scale").unwrap(), "a.weight_scale");
        assert_eq!(name("compressed-tensors", "_scale_inv").unwrap(), "a.weight_scale");
        assert!(name("deepseek", ".scale").is_err());
    }
}
