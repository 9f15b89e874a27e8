//! Answers that must be JSON of a schema, match a regular expression, be one of some texts or follow a grammar: what requests
//! say of it in the words of OpenAI and vLLM.

use std::sync::Arc;

use patchhost_runtime::grammar::{Grammar, Source};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::base::text::clean;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::state::{App, blocking};

/// OpenAI's `response_format`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    #[schema(pattern = "^(text|json_object|json_schema)$")]
    pub kind: String,
    /// The schema, where the type is `json_schema`.
    pub json_schema: Option<JsonSchema>,
}

/// A schema with its name.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: name and description change no answer here")]
pub struct JsonSchema {
    /// Accepted; it changes nothing.
    pub name: Option<String>,
    /// Accepted; it changes nothing.
    pub description: Option<String>,
    /// The JSON schema.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// Accepted: every schema is kept to strictly.
    pub strict: Option<bool>,
}

/// vLLM's `structured_outputs`: one of `json`, `regex`, `choice`, `grammar` and `json_object`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: one field is accepted and asks for nothing here")]
pub struct StructuredOutputs {
    /// JSON that is valid by this schema: an object, or the same as text.
    #[schema(value_type = Option<Object>)]
    pub json: Option<Value>,
    /// A text that this regular expression matches as a whole.
    pub regex: Option<String>,
    /// One of these texts.
    pub choice: Option<Vec<String>>,
    /// A text of this grammar: Lark as llguidance reads it, or rules with `::=`.
    pub grammar: Option<String>,
    /// JSON of any kind that is an object.
    pub json_object: Option<bool>,
    /// No white space between the parts of JSON, except behind `,` and `:`.
    pub disable_any_whitespace: Option<bool>,
    /// Accepted: there is one engine, which never falls back.
    pub disable_fallback: Option<bool>,
    #[schema(ignore)]
    disable_additional_properties: Option<Value>,
    #[schema(ignore)]
    whitespace_pattern: Option<Value>,
    #[schema(ignore)]
    structural_tag: Option<Value>,
}

/// What an answer must be, and the field that said so.
#[derive(Debug, Clone)]
pub struct Structure {
    field: String,
    source: Source,
}

impl Structure {
    /// What `field` asks for.
    pub fn new(field: impl Into<String>, source: Source) -> Self {
        Self { field: field.into(), source }
    }

    /// JSON by the schema that `field` holds, as an object or as the text of one.
    pub fn json(field: impl Into<String>, schema: &Value, whitespace: bool) -> ApiResult<Self> {
        let field = field.into();
        let schema = match schema {
            Value::String(text) => serde_json::from_str(text).map_err(|e| {
                let why = format!("its text is not JSON: {e}");
                ApiError::bad(format!("`{field}`"), why, "give the schema as an object").param(field.clone())
            })?,
            schema => schema.clone(),
        };
        Ok(Self { field, source: Source::Json { schema, whitespace } })
    }

    /// The one that is asked for, if any is. Two at once are refused: an answer cannot be made by both.
    pub fn only(all: impl IntoIterator<Item = Option<Self>>) -> ApiResult<Option<Self>> {
        let mut all = all.into_iter().flatten();
        match (all.next(), all.next()) {
            (Some(one), Some(other)) => Err(ApiError::bad(
                format!("`{}` and `{}`", one.field, other.field),
                "an answer is made by one of them",
                "leave one away",
            )
            .param(other.field)),
            (one, _) => Ok(one),
        }
    }

    /// The same as vLLM's `structured_outputs`.
    pub fn structured_outputs(&self) -> Value {
        match &self.source {
            Source::Json { schema, whitespace: true } => json!({ "json": schema }),
            Source::Json { schema, whitespace: false } => json!({ "json": schema, "disable_any_whitespace": true }),
            Source::Regex(regex) => json!({ "regex": regex }),
            Source::Choice(choice) => json!({ "choice": choice }),
            Source::Grammar(grammar) => json!({ "grammar": grammar }),
            Source::Enclosed(enclosed) => json!({ "grammar": enclosed.lark() }),
        }
    }

    /// The grammar, compiled. It takes milliseconds.
    pub async fn compiled(&self, app: &Arc<App>) -> ApiResult<Arc<Grammar>> {
        let Self { field, source } = self.clone();
        blocking(app, move |app| app.grammars.compile(&source).map_err(ApiError::from))
            .await
            .map_err(|e| e.param(field))
    }
}

impl ResponseFormat {
    /// What it asks for; none for text.
    pub fn structure(&self) -> ApiResult<Option<Structure>> {
        let field = "response_format";
        match self.kind.as_str() {
            "text" => Ok(None),
            "json_object" => Ok(Some(Structure::new(field, Source::json_object()))),
            "json_schema" => match self.json_schema.as_ref().and_then(|named| named.schema.as_ref()) {
                Some(schema) => Structure::json("response_format.json_schema.schema", schema, true).map(Some),
                None => {
                    let next = "give {\"type\": \"json_schema\", \"json_schema\": {\"name\": …, \"schema\": {…}}}";
                    Err(ApiError::bad("`response_format`", "its `json_schema.schema` is missing", next).param(field))
                }
            },
            other => Err(ApiError::bad(
                format!("`response_format` of type `{}`", clean(other, 60)),
                "it is neither text nor json_object nor json_schema",
                "for other forms see `structured_outputs`: regex, choice, grammar",
            )
            .param(field)),
        }
    }
}

impl StructuredOutputs {
    /// What it asks for. `field` is its own name.
    pub fn structure(&self, field: &str) -> ApiResult<Option<Structure>> {
        let at = |name: &str| format!("{field}.{name}");
        for (name, value, why) in [
            ("whitespace_pattern", &self.whitespace_pattern, "white space is that of JSON"),
            ("structural_tag", &self.structural_tag, "a whole answer follows one grammar"),
            (
                "disable_additional_properties",
                &self.disable_additional_properties,
                "a schema says it itself: \"additionalProperties\": false",
            ),
        ] {
            if value.as_ref().is_some_and(|value| *value != Value::Bool(false)) {
                return Err(ApiError::unsupported(&at(name), why));
            }
        }
        let whitespace = !self.disable_any_whitespace.unwrap_or(false);
        let json = self.json.as_ref().map(|schema| Structure::json(at("json"), schema, whitespace)).transpose()?;
        let any = self.json_object == Some(true);
        let asked = Structure::only([
            json,
            self.regex.as_ref().map(|regex| Structure::new(at("regex"), Source::Regex(regex.clone()))),
            self.choice.as_ref().map(|choice| Structure::new(at("choice"), Source::Choice(choice.clone()))),
            self.grammar.as_ref().map(|text| Structure::new(at("grammar"), Source::Grammar(text.clone()))),
            any.then(|| Structure::new(at("json_object"), Source::json_object())),
        ])?;
        asked.map(Some).ok_or_else(|| {
            let next = "give `json`, `regex`, `choice`, `grammar` or `json_object`, or leave it away";
            ApiError::bad(format!("`{field}`"), "it names no structure", next).param(field)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn asked(body: Value) -> ApiResult<Option<Structure>> {
        serde_json::from_value::<StructuredOutputs>(body).unwrap().structure("structured_outputs")
    }

    #[test]
    fn one_structure_is_taken_and_two_are_not() {
        let json = asked(json!({ "json": "{\"type\": \"object\"}" })).unwrap().unwrap();
        assert_eq!(json.source, Source::Json { schema: json!({ "type": "object" }), whitespace: true });
        assert_eq!(asked(json!({ "regex": "a" })).unwrap().unwrap().source, Source::Regex("a".to_owned()));
        for (body, word) in [
            (json!({ "regex": "a", "choice": ["b"] }), "`structured_outputs.choice`"),
            (json!({}), "no structure"),
            (json!({ "json": "{" }), "not JSON"),
            (json!({ "structural_tag": {} }), "structural_tag"),
            (json!({ "json_object": false }), "no structure"),
        ] {
            let error = asked(body).unwrap_err().message();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn formats_of_openai_are_read() {
        let format = |body: Value| serde_json::from_value::<ResponseFormat>(body).unwrap().structure();
        assert!(format(json!({ "type": "text" })).unwrap().is_none());
        assert_eq!(format(json!({ "type": "json_object" })).unwrap().unwrap().source, Source::json_object());
        let schema = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": {}, "strict": true } });
        assert!(format(schema).unwrap().is_some());
        for (body, word) in [
            (json!({ "type": "json_schema", "json_schema": {} }), "missing"),
            (json!({ "type": "structural_tag" }), "structural_tag"),
        ] {
            let error = format(body).unwrap_err();
            assert!(error.message().contains(word) && error.body().error.param.as_deref() == Some("response_format"));
        }
    }
}
