//! The chat templates of a model folder: one, or several with names. Where they stand, and which of them counts.

use std::path::Path;

use serde_json::Value;

use super::{TokenizerFiles, refuse};
use crate::error::Result;
use crate::files;

/// The folder of further templates, each a file `NAME.jinja`.
const FOLDER: &str = "additional_chat_templates";
/// Most templates of a model. Known ones have three.
const MOST: usize = 64;
/// The name of the one that counts where no other does.
const DEFAULT: &str = "default";
/// The name of the one that counts where there are tools.
const TOOLS: &str = "tool_use";

/// A model's chat templates, each with its name.
#[derive(Debug, Clone, Default)]
pub(super) struct Templates(Vec<(String, String)>);

impl Templates {
    /// Those of the files. As transformers has it, files of their own replace what tokenizer_config.json says;
    /// chat_template.json, which processors had, counts where there is nothing else.
    pub(super) fn of(files: &TokenizerFiles, config: &Value) -> Result<Self> {
        let default = files.template.iter().map(|text| (DEFAULT.to_owned(), text.clone()));
        let own: Vec<(String, String)> = default.chain(files.more_templates.iter().cloned()).collect();
        if !own.is_empty() {
            return Ok(Self(own));
        }
        let configured = named("tokenizer_config.json", config)?;
        match &files.template_json {
            Some(text) if configured.is_empty() => {
                let file = "chat_template.json";
                let json = serde_json::from_str(text).map_err(|e| refuse(file, format!("not valid JSON: {e}")))?;
                Ok(Self(named(file, &json)?))
            }
            _ => Ok(Self(configured)),
        }
    }

    /// One that counts always.
    pub(super) fn one(template: String) -> Self {
        Self(vec![(DEFAULT.to_owned(), template)])
    }

    /// The template of a conversation: `tool_use` where there are tools, else `default`. A model whose only templates have
    /// other names is spoken to by the first.
    pub(super) fn choose(&self, tools: bool) -> Option<&str> {
        let named = |name: &str| self.0.iter().find(|(n, _)| n == name);
        let found = named(TOOLS).filter(|_| tools).or_else(|| named(DEFAULT)).or(self.0.first());
        found.map(|(_, text)| text.as_str())
    }
}

/// The further templates of a folder, in the order of their names.
pub(super) fn read(folder: &Path) -> Result<Vec<(String, String)>> {
    let place = folder.join(FOLDER);
    let bad = |e: std::io::Error| refuse(&place.display().to_string(), e.to_string());
    let entries = match std::fs::read_dir(&place) {
        Ok(entries) => entries,
        // A file of that name is no folder of templates: transformers does not look into it either.
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(bad(e)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.map_err(bad)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jinja"));
        let Some(name) = name.map(str::to_owned) else { continue };
        if all.len() >= MOST {
            return Err(refuse(&place.display().to_string(), format!("it has more than {MOST} templates")));
        }
        let text = files::read_text(&path, files::TEMPLATE);
        all.push((name, text.map_err(|e| refuse(&path.display().to_string(), e.to_string()))?));
    }
    all.sort();
    Ok(all)
}

/// `chat_template` of a file: a text, or a list of texts with names.
fn named(file: &str, json: &Value) -> Result<Vec<(String, String)>> {
    let bad = |what: &str, found: &Value| {
        let kind = match found {
            Value::Null => "null",
            Value::Bool(_) => "a truth value",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        let why = format!("{what} is {kind}, not a text or a list of {{\"name\", \"template\"}} with texts");
        refuse(&format!("`chat_template` of {file}"), why)
    };
    match &json["chat_template"] {
        Value::Null => Ok(Vec::new()),
        Value::String(template) => Ok(vec![(DEFAULT.to_owned(), template.clone())]),
        Value::Array(all) => {
            let one = |member: &Value| match (member["name"].as_str(), member["template"].as_str()) {
                (Some(name), Some(text)) => Ok((name.to_owned(), text.to_owned())),
                _ => Err(match ["name", "template"].into_iter().find(|part| !member[*part].is_string()) {
                    Some(part) if member.is_object() => bad(&format!("`{part}` of a member"), &member[part]),
                    _ => bad("a member of it", member),
                }),
            };
            all.iter().map(one).collect()
        }
        other => Err(bad("it", other)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn chosen(files: &TokenizerFiles, config: Value) -> (Option<String>, Option<String>) {
        let templates = Templates::of(files, &config).unwrap();
        let text = |tools| templates.choose(tools).map(str::to_owned);
        (text(false), text(true))
    }

    fn both(plain: &str, tools: &str) -> (Option<String>, Option<String>) {
        (Some(plain.to_owned()), Some(tools.to_owned()))
    }

    #[test]
    fn the_template_for_tools_counts_where_there_are_tools() {
        let list = json!({ "chat_template": [{ "name": "tool_use", "template": "t" }, { "name": "default", "template": "d" }] });
        let none = TokenizerFiles::default();
        assert_eq!(chosen(&none, list), both("d", "t"));
        assert_eq!(chosen(&none, json!({ "chat_template": "c" })), both("c", "c"));
        assert_eq!(chosen(&none, json!({ "chat_template": [{ "name": "rag", "template": "r" }] })), both("r", "r"));
        assert_eq!(chosen(&none, json!({})), (None, None));
    }

    #[test]
    fn files_of_their_own_replace_the_configuration() {
        let config = json!({ "chat_template": "c" });
        let json_file = Some(json!({ "chat_template": "j" }).to_string());
        let files = TokenizerFiles { template_json: json_file, ..TokenizerFiles::default() };
        assert_eq!(chosen(&files, json!({})), both("j", "j"));
        assert_eq!(chosen(&files, config.clone()), both("c", "c"));
        let more_templates = vec![("tool_use".to_owned(), "t".to_owned())];
        let files = TokenizerFiles { template: Some("d".to_owned()), more_templates, ..files };
        assert_eq!(chosen(&files, config), both("d", "t"));
    }

    #[test]
    fn a_file_that_is_no_template_is_named() {
        let wrong = |text: &str| {
            let files = TokenizerFiles { template_json: Some(text.to_owned()), ..TokenizerFiles::default() };
            Templates::of(&files, &Value::Null).unwrap_err().to_string()
        };
        assert!(wrong("{").contains("chat_template.json\n  why: not valid JSON"), "{}", wrong("{"));
        assert!(
            wrong(r#"{"chat_template": 7}"#).contains("`chat_template` of chat_template.json\n  why: it is a number")
        );
    }
}
