//! Reading config.json, with the tolerances that real checkpoints need: transformers 4 and 5 names, `text_config`
//! nesting, optional `head_dim`. Values are checked for sense (sizes that divide, bounds) before anything is allocated.

use serde_json::{Map, Value};

use crate::error::{Refusal, Result, RuntimeError};
use crate::families::{DefaultValue, Field};

/// Largest config.json we read; it is also the bound that patches are promised.
pub const MAX_CONFIG: usize = 1 << 20;
/// Most values in it, those of lists and objects within it counted: each takes far more memory than its text. Known ones have
/// a few thousand, most of them names of modules that are not quantized.
const MAX_VALUES: usize = 1 << 16;
/// Largest number a size in config.json may have: real ones are below 200,000; products of two stay far from overflow.
const MAX_SIZE: u64 = 1 << 24;

/// config.json, parsed: the object that describes the text model (`text_config` where there is one).
#[derive(Debug, Clone)]
pub struct RawConfig {
    text: String,
    architecture: String,
    model_type: String,
    values: Map<String, Value>,
    /// The whole file, of which `values` may be the part below `text_config`.
    root: Map<String, Value>,
    /// The fields that the family reads.
    fields: &'static [Field],
    /// Those of them that the file leaves out: they have the family's defaults.
    assumed: Vec<&'static Field>,
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
        let values: usize = root.values().map(count).sum();
        if values > MAX_VALUES {
            return Err(refuse(
                "config.json",
                format!("it holds {values} values, more than the limit of {MAX_VALUES}"),
            ));
        }
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
            _ => root.clone(),
        };
        Ok(Self { text: text.to_string(), architecture, model_type, values, root, fields: &[], assumed: Vec::new() })
    }

    /// The same for a family: its fields alone decide. They stand below `text_config` where it is `nested`, may have other names
    /// (`aliases`: other name, name), and what is left out has the default of `fields`.
    pub(crate) fn of_family(&self, nested: bool, aliases: &[(&str, &str)], fields: &'static [Field]) -> Result<Self> {
        let mut values = match (nested, self.root.get("text_config")) {
            (false, _) => self.root.clone(),
            (true, Some(Value::Object(inner))) => inner.clone(),
            (true, _) => {
                return Err(refuse("config.json", "`text_config`, which describes the text model, is missing".into()));
            }
        };
        for (alias, name) in aliases {
            let Some(value) = values.get(*alias).filter(|v| !v.is_null()).cloned() else { continue };
            match values.get(*name).filter(|v| !v.is_null()) {
                Some(other) if *other != value => {
                    let why = format!("`{alias}` is {value} and `{name}` is {other}, which are two names of one field");
                    return Err(refuse("config.json", why));
                }
                _ => values.insert((*name).to_string(), value),
            };
        }
        let mut assumed = Vec::new();
        for field in fields {
            let absent = match values.get(field.name) {
                None => true,
                Some(value) => value.is_null() && !field.nullable,
            };
            if absent {
                values.insert(field.name.to_string(), field.value());
                assumed.push(field);
            }
        }
        Ok(Self { values, fields, assumed, ..self.clone() })
    }

    /// Sizes of tensors that the file leaves out, with the defaults that stand for them: "`head_dim` (128)".
    pub(crate) fn assumed_shapes(&self) -> Vec<String> {
        let shapes = self.assumed.iter().filter(|f| matches!(f.default, DefaultValue::Shape(_)));
        shapes.map(|f| format!("`{}` ({})", f.name, f.value())).collect()
    }

    /// A value that the file itself gives.
    pub(crate) fn given(&self, key: &str) -> Option<&Value> {
        self.get(key).filter(|_| !self.assumed.iter().any(|f| f.name == key))
    }

    /// Whether the family has a field.
    pub(crate) fn reads(&self, key: &str) -> bool {
        self.fields.iter().any(|f| f.name == key)
    }

    /// Whether the output head shares the embedding, as the wrapper of a nested text model says it.
    pub(crate) fn wrapper_tied(&self) -> Result<Option<bool>> {
        let given = self.root.get("tie_word_embeddings").filter(|v| !v.is_null());
        let bad = |v: &Value| refuse("config.json", format!("`tie_word_embeddings` is {v}; it must be true or false"));
        given.map(|v| v.as_bool().ok_or_else(|| bad(v))).transpose()
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

    /// A required size of at least 1.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.size_opt(key)?.ok_or_else(|| self.missing(key))
    }

    /// An optional size of at least 1.
    pub fn size_opt(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(Some(n as usize)),
            _ => Err(refuse(
                "config.json",
                format!("`{key}` is {value}; it must be a whole number from 1 to {MAX_SIZE}"),
            )),
        }
    }

    /// A required finite number.
    pub fn number(&self, key: &str) -> Result<f64> {
        self.number_opt(key)?.ok_or_else(|| self.missing(key))
    }

    /// An optional finite number.
    pub fn number_opt(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|v| number(key, v)).transpose()
    }

    /// A required flag; `null` where that is a value of its own is false.
    pub fn flag(&self, key: &str) -> Result<bool> {
        match self.values.get(key) {
            None => Err(self.missing(key)),
            Some(Value::Null) => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(refuse("config.json", format!("`{key}` is {other}; it must be true or false"))),
        }
    }

    /// An optional word.
    pub fn word(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let bad = || refuse("config.json", format!("`{key}` is {value}; it must be a text"));
        value.as_str().map(Some).ok_or_else(bad)
    }

    fn missing(&self, key: &str) -> RuntimeError {
        let how = if self.values.contains_key(key) && !self.assumed.iter().any(|f| f.name == key) {
            "null"
        } else {
            "missing"
        };
        refuse("config.json", format!("`{key}` is {how}, and this family has no default for it"))
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
        match self.word("hidden_act")? {
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

/// Values in a value, itself counted. serde_json has bounded how deep they are nested.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(all) => all.iter().map(count).sum(),
        Value::Object(all) => all.values().map(count).sum::<usize>(),
        _ => 0,
    }
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
        assert!(zero.size("hidden_size").unwrap_err().to_string().contains("`hidden_size` is 0"));
        for bad in ["", "[]", "{}", "{\"model_type\":", "null"] {
            assert!(RawConfig::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn text_config_wins_over_the_wrapper() {
        let nested = r#"{"architectures":["X"],"hidden_size":1,"text_config":{"hidden_size":64}}"#;
        assert_eq!(RawConfig::parse(nested).unwrap().size("hidden_size").unwrap(), 64);
    }
}
