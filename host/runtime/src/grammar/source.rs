//! What a request asks for, and how it becomes a grammar of llguidance.

use llguidance::api::TopLevelGrammar;
use serde::Serialize;
use serde_json::{Value, json};

use super::gbnf;
use crate::error::{Refusal, Result, RuntimeError};

/// Most bytes of what describes a grammar.
const MOST_BYTES: usize = 256 << 10;
/// Most texts to choose from.
const MOST_CHOICES: usize = 4096;
/// How deep a schema may be nested: it is compiled by recursion.
const MOST_DEPTH: usize = 64;

/// What an answer must be.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// JSON that is valid by this schema. `whitespace`: there may be white space between its parts.
    Json {
        /// The schema: an object, or a truth value.
        schema: Value,
        /// Whether white space may stand between the parts.
        whitespace: bool,
    },
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this grammar: Lark as llguidance reads it, or rules with `::=`.
    Grammar(String),
    /// JSON between two texts: a call of a tool, in the form that a model writes calls in.
    Enclosed(Enclosed),
}

/// JSON by one of some schemas, between two texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Enclosed {
    /// What stands before the JSON.
    pub before: String,
    /// The schemas, at least one.
    pub schemas: Vec<Value>,
    /// What stands behind it.
    pub after: String,
    /// Whether more of them may follow, each on a line of its own.
    pub several: bool,
}

impl Source {
    /// JSON of any kind that is an object.
    pub fn json_object() -> Self {
        Self::Json { schema: json!({ "type": "object" }), whitespace: true }
    }

    /// What it is, for errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Json { .. } => "the JSON schema",
            Self::Regex(_) => "the regular expression",
            Self::Choice(_) => "the list of choices",
            Self::Grammar(_) => "the grammar",
            Self::Enclosed(_) => "the JSON schema of a tool",
        }
    }

    /// Whether its texts are JSON, at least where they have quotes.
    pub(super) fn is_json(&self) -> bool {
        matches!(self, Self::Json { .. } | Self::Enclosed(_))
    }

    /// The key under which the compiled grammar is kept.
    pub(super) fn key(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| self.refuse(e.to_string(), "send what JSON can hold"))
    }

    pub(super) fn refuse(&self, why: String, next: &str) -> RuntimeError {
        RuntimeError::Request(Refusal::new(self.name(), why, next))
    }

    /// As llguidance reads it, within the limits.
    pub(super) fn grammar(&self) -> Result<TopLevelGrammar> {
        let shorter = "describe less, or put it into several requests";
        let bytes = self.key()?.len();
        if bytes > MOST_BYTES {
            return Err(self.refuse(format!("it has {bytes} bytes, and {MOST_BYTES} is the limit"), shorter));
        }
        Ok(match self {
            Self::Json { schema, whitespace } => {
                self.check_depth(schema)?;
                if !schema.is_object() && !schema.is_boolean() {
                    let next = "give an object such as {\"type\": \"object\", \"properties\": {…}}";
                    return Err(self.refuse("it is neither an object nor a truth value".to_owned(), next));
                }
                TopLevelGrammar::from_json_schema(prepared(schema, *whitespace))
            }
            Self::Regex(pattern) => TopLevelGrammar::from_regex(whole(pattern)),
            Self::Choice(choices) => {
                if choices.is_empty() || choices.len() > MOST_CHOICES {
                    let why = format!("it has {} texts, and must have from 1 to {MOST_CHOICES}", choices.len());
                    return Err(self.refuse(why, "give texts to choose from"));
                }
                if choices.iter().any(String::is_empty) {
                    let next = "leave the empty text out, or give a regular expression";
                    return Err(self.refuse("one of its texts is empty".to_owned(), next));
                }
                let each: Vec<String> = choices.iter().map(|choice| regex::escape(choice)).collect();
                TopLevelGrammar::from_regex(&each.join("|"))
            }
            Self::Grammar(text) if gbnf::is_gbnf(text) => {
                let next = "write rules such as: root ::= \"yes\" | \"no\"";
                TopLevelGrammar::from_lark(gbnf::to_lark(text).map_err(|why| self.refuse(why, next))?)
            }
            Self::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
            Self::Enclosed(enclosed) => {
                enclosed.schemas.iter().try_for_each(|schema| self.check_depth(schema))?;
                TopLevelGrammar::from_lark(enclosed.lark())
            }
        })
    }

    fn check_depth(&self, schema: &Value) -> Result<()> {
        match depth(schema) > MOST_DEPTH {
            false => Ok(()),
            true => {
                let why = format!("it is nested deeper than the limit of {MOST_DEPTH}");
                Err(self.refuse(why, "describe less, or put it into several requests"))
            }
        }
    }
}

/// White space that may stand between the parts of JSON, at once: enough to indent, and not without end. A model that has nothing
/// to say would otherwise write spaces until its tokens are used up.
const WHITESPACE: &str = "[ \\t\\r\\n]{1,32}";

/// The schema as it is compiled: with the options for white space, and with what it leaves open decided.
fn prepared(schema: &Value, whitespace: bool) -> Value {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        other => other.clone(),
    };
    decided(&mut schema);
    if let Some(fields) = schema.as_object_mut() {
        let options = match whitespace {
            true => json!({ "whitespace_pattern": WHITESPACE }),
            false => json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " }),
        };
        // Requests do not set options of the compiler.
        fields.insert("x-guidance".to_owned(), options);
    }
    schema
}

/// A day that exists: the parser's own form has a year 0, and a 29th of February in every year.
const DATE: &str = r"(?:[1-9][0-9]{3}-(?:02-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-[0-9]{2})|[1-9][0-9](?:0[48]|[2468][048]|[13579][26])-02-29)";
/// A time that every reader takes: RFC 3339 allows `z`, leap seconds and a fraction of any length too, and few readers do.
const TIME: &str = r"[0-9]{2}:[0-9]{2}:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])";

/// Dates and times are narrowed to what readers take, where the schema has no pattern of its own.
fn decided(schema: &mut Value) {
    match schema {
        Value::Array(list) => list.iter_mut().for_each(decided),
        Value::Object(fields) => {
            let narrowed = match fields.get("format").and_then(Value::as_str) {
                Some("date") => Some(format!("^{DATE}$")),
                Some("time") => Some(format!("^{TIME}$")),
                Some("date-time") => Some(format!("^{DATE}T{TIME}$")),
                _ => None,
            };
            if let Some(pattern) = narrowed.filter(|_| !fields.contains_key("pattern")) {
                fields.insert("pattern".to_owned(), Value::from(pattern));
            }
            let values = |name: &str| matches!(name, "enum" | "const" | "default" | "examples");
            fields.iter_mut().filter(|(name, _)| !values(name)).for_each(|(_, inner)| decided(inner));
        }
        _ => {}
    }
}

impl Enclosed {
    /// The same as a grammar of llguidance, in Lark.
    pub fn lark(&self) -> String {
        let text = |text: &str| Value::from(text).to_string();
        let more = if self.several { " (\"\\n\" one)*" } else { "" };
        let names: Vec<String> = (0..self.schemas.len()).map(|i| format!("json_{i}")).collect();
        let (before, after) = (text(&self.before), text(&self.after));
        let mut lark = format!("start: one{more}\none: {before} body {after}\nbody: {}\n", names.join(" | "));
        for (name, schema) in names.iter().zip(&self.schemas) {
            lark.push_str(&format!("{name}: %json {}\n", prepared(schema, false)));
        }
        lark
    }
}

/// The pattern without anchors at its ends: it is matched as a whole anyway, and the parser knows none.
fn whole(pattern: &str) -> &str {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    match pattern.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0 => rest,
        _ => pattern,
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
