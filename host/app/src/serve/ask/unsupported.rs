//! Fields that clients of other servers send and that ask for what this server does not do. They are refused by name
//! rather than ignored: an answer that silently lacks what was asked for is worse than none.

use serde_json::Value;

use crate::serve::error::{ApiError, ApiResult};

/// Refuses the first field that asks for something. Each field is its name, its value and why it is refused; `harmless`
/// says of a name and a value whether it asks for nothing.
pub fn refuse(
    fields: &[(&'static str, &Option<Value>, &'static str)],
    harmless: impl Fn(&str, &Value) -> bool,
) -> ApiResult<()> {
    let asks = |(name, value, _): &&(&str, &Option<Value>, &str)| value.as_ref().is_some_and(|v| !harmless(name, v));
    match fields.iter().find(asks) {
        Some((name, _, why)) => Err(ApiError::unsupported(name, *why)),
        None => Ok(()),
    }
}

/// Values that ask for nothing: clients send these as defaults. `null` never gets here.
pub fn harmless(name: &str, value: &Value) -> bool {
    match (name, value) {
        (_, Value::Bool(false)) => true,
        ("best_of", Value::Number(n)) => n.as_u64() == Some(1),
        ("response_format", Value::Object(format)) => format.get("type").and_then(Value::as_str) == Some("text"),
        (_, Value::Array(list)) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_field_that_asks_for_something_is_named() {
        let (none, some) = (None, Some(json!({ "type": "json_object" })));
        let fields = [("suffix", &none, "no gaps"), ("response_format", &some, "plain text"), ("tools", &some, "none")];
        let error = refuse(&fields, harmless).unwrap_err();
        assert!(error.message().contains("`response_format`") && error.message().contains("plain text"), "{error}");
        assert!(refuse(&fields, |_, _| true).is_ok() && refuse(&[], harmless).is_ok());
    }

    #[test]
    fn defaults_of_clients_ask_for_nothing() {
        for (name, value) in [
            ("use_beam_search", json!(false)),
            ("best_of", json!(1)),
            ("response_format", json!({ "type": "text" })),
            ("bad_words", json!([])),
        ] {
            assert!(harmless(name, &value), "{name}");
        }
        for (name, value) in [("best_of", json!(2)), ("guided_regex", json!("a+")), ("bad_words", json!(["x"]))] {
            assert!(!harmless(name, &value), "{name}");
        }
    }
}
