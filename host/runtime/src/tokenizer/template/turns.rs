//! Messages as transformers hands them to a template, and the last message where the model goes on with it.

use serde_json::{Map, Value, json};

use super::super::Message;

/// Stands in the last message for the place where the model goes on; transformers' own mark.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
/// Names that the reasoning in a message goes by. The first is the one that templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Stands in a message that finds out how a template reads contents.
pub(super) const NEEDLE: &str = "patchhostneedle";

/// In what form a template gets messages. Those of OpenAI's API hold what some templates cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// Arguments of tool calls are JSON texts, and not what they say.
    pub(super) arguments_as_text: bool,
    /// A message without content has an empty one.
    pub(super) empty_content: bool,
    /// Contents stay lists of parts; else their texts are joined.
    pub(super) parts: bool,
}

/// The messages in a form.
pub(super) fn formed(messages: &[Message], form: Form) -> Vec<Map<String, Value>> {
    messages.iter().map(|message| one(message.fields(), form)).collect()
}

fn one(message: &Map<String, Value>, form: Form) -> Map<String, Value> {
    let reasoning = REASONING.iter().find_map(|name| message.get(*name).filter(|v| !v.is_null())).cloned();
    let mut out = Map::new();
    if let Some(reasoning) = &reasoning {
        out.insert("thinking".to_owned(), reasoning.clone());
    }
    // What is null is not there: many templates would write `None`.
    let there = message.iter().filter(|(_, value)| !value.is_null());
    out.extend(there.map(|(name, value)| (name.clone(), value.clone())));
    if let Some(reasoning) = reasoning {
        out.insert("reasoning_content".to_owned(), reasoning);
    }
    if form.empty_content {
        out.entry("content").or_insert_with(|| Value::from(""));
    }
    // Templates write what a tool says as a text.
    let tool = out.get("role").is_some_and(|role| role == "tool");
    if (!form.parts || tool)
        && let Some(text) = out.get("content").and_then(joined)
    {
        out.insert("content".to_owned(), Value::from(text));
    }
    match out.get_mut("tool_calls") {
        Some(Value::Array(calls)) if calls.is_empty() => drop(out.remove("tool_calls")),
        Some(Value::Array(calls)) => calls.iter_mut().for_each(|call| arguments(call, form)),
        _ => {}
    }
    out
}

/// The texts of a content that is a list of parts.
fn joined(content: &Value) -> Option<String> {
    let texts = content.as_array()?.iter().map(|part| part.get("text").and_then(Value::as_str).or(part.as_str()));
    texts.collect::<Option<Vec<_>>>().map(|texts| texts.join("\n"))
}

/// OpenAI's arguments are a JSON text. Templates read what it says, as vLLM has it; where it is no JSON, nothing.
fn arguments(call: &mut Value, form: Form) {
    let function = match call.get_mut("function") {
        Some(function) => function,
        None => call,
    };
    let Some(arguments) = function.get_mut("arguments") else { return };
    let value = match (&*arguments, form.arguments_as_text) {
        (Value::String(_), true) => return,
        (Value::String(text), false) => serde_json::from_str(text).unwrap_or_else(|_| json!({})),
        (Value::Null, _) => json!({}),
        (other, true) => Value::from(spaced(other)),
        (_, false) => return,
    };
    *arguments = value;
}

/// JSON as `json.dumps` spaces it.
fn spaced(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("[{}]", list.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entry = |(name, value): (&String, &Value)| format!("{}: {}", Value::from(name.as_str()), spaced(value));
            format!("{{{}}}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// Whether anything in the messages depends on the form.
pub(super) fn depends(messages: &[Message]) -> (bool, bool, bool) {
    let fields = || messages.iter().map(Message::fields);
    let calls = fields().filter_map(|m| m.get("tool_calls").and_then(Value::as_array)).any(|calls| !calls.is_empty());
    let empty = fields().any(|m| m.get("content").is_none_or(Value::is_null));
    let parts = fields().any(|m| m.get("content").is_some_and(Value::is_array));
    (calls, empty, parts)
}

/// Puts the mark behind the last message's text, and gives that text.
pub(super) fn marked(messages: &mut [Map<String, Value>], template: &str) -> Result<String, String> {
    let what = "continue_final_message goes on with the last message";
    let last = messages.last_mut().ok_or_else(|| format!("{what}, and there is none"))?;
    let content = last.get_mut("content").ok_or_else(|| format!("{what}, which has no `content`"))?;
    if !template.contains("content") {
        return Err(format!("{what}, and this template does not write any `content`"));
    }
    let texts = match content {
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        text => Some(text),
    };
    match texts {
        Some(Value::String(text)) => {
            let before = text.clone();
            text.push_str(MARK);
            Ok(before)
        }
        _ => Err(format!("{what}, which has no text")),
    }
}

/// The text up to the mark, as transformers cuts it.
pub(super) fn cut(rendered: &str, last: &str) -> Result<String, String> {
    let missing = "continue_final_message goes on with the last message, and this template leaves parts of it away";
    match rendered.rfind(MARK.trim_end()) {
        Some(at) if rendered.contains(last.trim()) => Ok(match rendered[at..].starts_with(MARK) {
            true => rendered[..at].to_owned(),
            // The template trims the message.
            false => rendered[..at].trim_end().to_owned(),
        }),
        _ => Err(missing.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PLAIN: Form = Form { arguments_as_text: false, empty_content: false, parts: false };

    fn formed_one(message: Value, form: Form) -> Value {
        let message = Message::from(message.as_object().unwrap().clone());
        Value::from(formed(&[message], form).remove(0))
    }

    #[test]
    fn what_is_null_is_left_away_and_reasoning_has_all_its_names() {
        let message = json!({ "role": "assistant", "content": null, "reasoning": "r", "name": "n" });
        let wanted =
            json!({ "thinking": "r", "role": "assistant", "reasoning": "r", "name": "n", "reasoning_content": "r" });
        assert_eq!(formed_one(message.clone(), PLAIN), wanted);
        assert_eq!(formed_one(message, Form { empty_content: true, ..PLAIN })["content"], "");
    }

    #[test]
    fn arguments_are_what_their_text_says() {
        let calls = |arguments: Value| json!({ "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": arguments } }] });
        let read = |arguments: Value, form: Form| {
            formed_one(calls(arguments), form)["tool_calls"][0]["function"]["arguments"].clone()
        };
        assert_eq!(read(json!("{\"b\": 1, \"a\": [2]}"), PLAIN).to_string(), r#"{"b":1,"a":[2]}"#);
        for empty in [json!(""), json!("not JSON"), json!(null)] {
            assert_eq!(read(empty, PLAIN), json!({}));
        }
        let text = Form { arguments_as_text: true, ..PLAIN };
        assert_eq!(read(json!({ "b": 1, "a": ["x"] }), text), r#"{"b": 1, "a": ["x"]}"#);
        assert_eq!(read(json!("{\"b\":1}"), text), r#"{"b":1}"#);
        assert_eq!(formed_one(json!({ "role": "assistant", "tool_calls": [] }), PLAIN), json!({ "role": "assistant" }));
    }

    #[test]
    fn parts_are_joined_unless_the_template_reads_them() {
        let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
        let message = json!({ "role": "user", "content": parts });
        assert_eq!(formed_one(message.clone(), PLAIN)["content"], "a\nb");
        assert_eq!(formed_one(message, Form { parts: true, ..PLAIN })["content"], parts);
    }
}
