//! What changes when an entry takes the place of another.

use super::Entry;
use crate::base::text::clean;
use serde::Serialize;
use serde_json::{Map, Value};

/// One difference of two entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `wasm`, `config`, `limits`, `grants`, `signers`, `review`, …
    pub part: &'static str,
    /// Before; empty: there was none.
    pub before: String,
    /// The value in the second entry; empty: there is none.
    pub after: String,
}

impl Change {
    /// The change in one line, escaped to be shown.
    pub fn line(&self) -> String {
        let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { clean(text, 300) };
        format!("{}: {} -> {}", self.part, or_none(&self.before), or_none(&self.after))
    }
}

/// The differences, those of the identity first.
pub fn changes(before: Option<&Entry>, after: &Entry) -> Vec<Change> {
    let Some(before) = before else {
        return vec![Change { part: "new", before: String::new(), after: after.digest.to_string() }];
    };
    let part = |part, of: &dyn Fn(&Entry) -> String| {
        let (before, after) = (of(before), of(after));
        (before != after).then_some(Change { part, before, after })
    };
    let mut all: Vec<Change> = Vec::new();
    all.extend(part("wasm", &|e| e.digest.to_string()));
    all.extend(part("size", &|e| e.size.to_string()));
    all.extend(part("version", &|e| e.version.clone()));
    all.extend(part("hooks", &|e| e.hooks.join(", ")));
    all.extend(part("imports", &|e| e.imports.join(", ")));
    all.extend(part("config", &|e| list(&e.settings)));
    all.extend(limits(before, after));
    all.extend(part("grants", &|e| e.grants.lines().join(", ")));
    all.extend(part("signers", &|e| list(&e.signatures.iter().map(|s| s.key).collect::<Vec<_>>())));
    all.extend(part("review", &|e| {
        e.review.as_ref().map(|r| format!("{} {}: {}", r.who, r.date, r.note)).unwrap_or_default()
    }));
    all
}

fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Each limit that differs, by name.
fn limits(before: &Entry, after: &Entry) -> Vec<Change> {
    let (before, after) = (fields(&before.limits), fields(&after.limits));
    let differs = |(name, value): (&String, &Value)| {
        let old = before.get(name).filter(|old| *old != value)?;
        Some(Change { part: "limits", before: format!("{name}={old}"), after: format!("{name}={value}") })
    };
    after.iter().filter_map(differs).collect()
}

/// A struct of numbers as names and numbers.
pub(in crate::trust) fn fields(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}
