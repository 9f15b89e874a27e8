//! Reading config.json, with the tolerances that real checkpoints need: transformers 4 and 5 names, `text_config`
//! nesting, optional `head_dim`. Values are checked for sense (sizes that divide, bounds) before anything is allocated.

use serde_json::{Map, Value};

use crate::error::{Refusal, Result, RuntimeError};

/// Largest config.json we read; it is also the bound that patches are promised.
pub const MAX_CONFIG: usize = 1 << 20;
/// Largest number a size in config.json may have: real ones are below 200,000; products of two stay far from overflow.
const MAX_SIZE: u64 = 1 << 24;

/// config.json, parsed: the object that describes the text model (`text_config` where there is one).
#[derive(Debug, Clone)]
pub struct RawConfig {
    text: String,
    architecture: String,
    model_type: String,
    values: Map<String, Value>,
}

impl RawConfig {
    /// Parses the text of a config.json.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_CONFIG {
            return Err(refuse("config.json", format!("{} bytes, more than the limit of {MAX_CONFIG}", text.len())));
        }
        let root: Value =
            serde_json::from_str(text).map_err(|e| refuse("config.json", format!("not valid JSON: {e}")))?;
        let Value::Object(root) = root else {
            return Err(refuse("config.json", "not a JSON object".to_string()));
        };
        let string = |key: &str| root.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let architecture =
            root.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str).unwrap_or_default().to_string();
        let model_type = string("model_type");
        if architecture.is_empty() && model_type.is_empty() {
            return Err(refuse("config.json", "it has neither `architectures` nor `model_type`".to_string()));
        }
        let values = match root.get("text_config") {
            Some(Value::Object(inner)) => {
                let mut merged = root.clone();
                merged.extend(inner.clone());
                merged
            }
            _ => root,
        };
        Ok(Self { text: text.to_string(), architecture, model_type, values })
    }

    /// The text as read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// `architectures[0]`, or empty.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// `model_type`, or empty.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// A value that is present and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|v| !v.is_null())
    }

    /// A required size of at least 1, under any of several names.
    pub fn size(&self, keys: &[&str]) -> Result<usize> {
        match self.size_opt(keys)? {
            Some(n) => Ok(n),
            None => Err(refuse("config.json", format!("`{}` is missing", keys.join("` or `")))),
        }
    }

    /// An optional size of at least 1.
    pub fn size_opt(&self, keys: &[&str]) -> Result<Option<usize>> {
        let Some((key, value)) = keys.iter().find_map(|k| self.get(k).map(|v| (*k, v))) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(Some(n as usize)),
            _ => Err(refuse(
                "config.json",
                format!("`{key}` is {value}; it must be a whole number from 1 to {MAX_SIZE}"),
            )),
        }
    }

    /// An optional finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => number(key, v).map(Some),
        }
    }

    /// An optional flag.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(refuse("config.json", format!("`{key}` is {other}; it must be true or false"))),
        }
    }

    /// An optional list of indices.
    pub fn indices(&self, key: &str) -> Result<Vec<usize>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let bad = || refuse("config.json", format!("`{key}` is {value}; it must be a list of layer indices"));
        value.as_array().ok_or_else(bad)?.iter().map(|v| v.as_u64().map(|n| n as usize).ok_or_else(bad)).collect()
    }

    /// Refuses an activation other than SiLU.
    pub fn require_silu(&self) -> Result<()> {
        match self.get("hidden_act").and_then(Value::as_str) {
            None | Some("silu" | "swish") => Ok(()),
            Some(other) => Err(refuse("config.json", format!("`hidden_act` is `{other}`; only `silu` is supported"))),
        }
    }

    /// Rotary embedding, from `rope_theta` + `rope_scaling` or transformers 5's `rope_parameters`.
    pub fn rope(&self) -> Result<RopeConfig> {
        let params = self.get("rope_parameters").and_then(Value::as_object);
        let scaling = self.get("rope_scaling").and_then(Value::as_object).or(params);
        let theta = match params.and_then(|p| p.get("rope_theta")) {
            Some(v) => number("rope_parameters.rope_theta", v)?,
            None => self.number("rope_theta")?.unwrap_or(10_000.0),
        };
        if theta.is_nan() || theta < 1.0 {
            return Err(refuse("config.json", format!("`rope_theta` is {theta}; it must be at least 1")));
        }
        let kind = scaling.and_then(|s| s.get("rope_type").or(s.get("type"))).and_then(Value::as_str);
        let field = |key: &str| -> Result<f64> {
            match scaling.and_then(|s| s.get(key)) {
                Some(v) => number(key, v),
                None => Err(refuse("config.json", format!("rope scaling needs `{key}`"))),
            }
        };
        let scaling = match kind {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: field("factor")? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: field("factor")?,
                low: field("low_freq_factor")?,
                high: field("high_freq_factor")?,
                original: field("original_max_position_embeddings")?,
            },
            Some(other) => {
                return Err(refuse(
                    "config.json",
                    format!("rope scaling `{other}` is not supported in this version (default, linear, llama3 are)"),
                ));
            }
        };
        Ok(RopeConfig { theta, scaling })
    }
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1's interpolation by wavelength.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// `low_freq_factor`.
        low: f64,
        /// `high_freq_factor`.
        high: f64,
        /// `original_max_position_embeddings`.
        original: f64,
    },
}

impl RopeConfig {
    /// Inverse frequencies of the `head_dim / 2` rotated pairs, in f32 as transformers computes them.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let plain = 1.0 / (self.theta as f32).powf((2 * i) as f32 / head_dim as f32);
                match self.scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear { factor } => plain / factor as f32,
                    RopeScaling::Llama3 { factor, low, high, original } => {
                        let wavelength = 2.0 * std::f32::consts::PI / plain;
                        let (factor, low, high, original) = (factor as f32, low as f32, high as f32, original as f32);
                        if wavelength > original / low {
                            plain / factor
                        } else if wavelength < original / high {
                            plain
                        } else {
                            let smooth = (original / wavelength - low) / (high - low);
                            (1.0 - smooth) * plain / factor + smooth * plain
                        }
                    }
                }
            })
            .collect()
    }
}

fn number(key: &str, value: &Value) -> Result<f64> {
    value
        .as_f64()
        .filter(|n| n.is_finite())
        .ok_or_else(|| refuse("config.json", format!("`{key}` is {value}; it must be a finite number")))
}

/// A config refusal with the usual advice.
pub fn refuse(what: &str, why: String) -> RuntimeError {
    RuntimeError::Config(Refusal::new(
        what,
        why,
        "use the config.json that belongs to the checkpoint, or repair the field",
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_both_generations_of_rope() {
        let old =
            RawConfig::parse(r#"{"model_type":"llama","rope_theta":5e5,"rope_scaling":{"type":"linear","factor":2}}"#);
        assert_eq!(
            old.unwrap().rope().unwrap(),
            RopeConfig { theta: 5e5, scaling: RopeScaling::Linear { factor: 2.0 } }
        );
        let new = r#"{"model_type":"llama","rope_parameters":{"rope_theta":1e6,"rope_type":"default"}}"#;
        assert_eq!(
            RawConfig::parse(new).unwrap().rope().unwrap(),
            RopeConfig { theta: 1e6, scaling: RopeScaling::None }
        );
    }

    #[test]
    fn nonsense_is_refused_with_the_field() {
        let zero = RawConfig::parse(r#"{"model_type":"llama","hidden_size":0}"#).unwrap();
        assert!(zero.size(&["hidden_size"]).unwrap_err().to_string().contains("`hidden_size` is 0"));
        let yarn = RawConfig::parse(r#"{"model_type":"llama","rope_scaling":{"rope_type":"yarn"}}"#).unwrap();
        assert!(yarn.rope().unwrap_err().to_string().contains("yarn"));
        for bad in ["", "[]", "{}", "{\"model_type\":", "null"] {
            assert!(RawConfig::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn text_config_wins_over_the_wrapper() {
        let nested = r#"{"architectures":["X"],"hidden_size":1,"text_config":{"hidden_size":64}}"#;
        assert_eq!(RawConfig::parse(nested).unwrap().size(&["hidden_size"]).unwrap(), 64);
    }
}
