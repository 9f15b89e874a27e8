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
                // The head belongs to the wrapper: its word about tying counts, the text config's is a default.
                if let Some(tied) = root.get("tie_word_embeddings") {
                    merged.insert("tie_word_embeddings".to_string(), tied.clone());
                }
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

    /// An optional list of texts, such as `layer_types`.
    pub fn texts(&self, key: &str) -> Result<Vec<String>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let bad = || refuse("config.json", format!("`{key}` is {value}; it must be a list of texts"));
        value.as_array().ok_or_else(bad)?.iter().map(|v| v.as_str().map(str::to_string).ok_or_else(bad)).collect()
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
}

pub(crate) fn number(key: &str, value: &Value) -> Result<f64> {
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
    fn nonsense_is_refused_with_the_field() {
        let zero = RawConfig::parse(r#"{"model_type":"llama","hidden_size":0}"#).unwrap();
        assert!(zero.size(&["hidden_size"]).unwrap_err().to_string().contains("`hidden_size` is 0"));
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
