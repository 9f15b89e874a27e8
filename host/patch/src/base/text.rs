//! Text that a guest wrote, before it reaches a message, a log or a terminal.

/// Escapes what is neither printable ASCII nor a letter or digit (control characters, escape sequences, bidirectional
/// marks), and cuts at `max` bytes.
pub fn clean(text: &str, max: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let plain = c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric();
        let start = out.len();
        if plain {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
        if out.len() > max {
            out.truncate(start);
            out.push_str(&format!("… ({} bytes)", text.len()));
            break;
        }
    }
    out
}

/// An answer as messages show it: JSON, with the names that the interface has.
pub fn answer(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("(not shown: {error})"))
}

/// What a guest gave as its reason, or that it gave none.
pub(crate) fn reason(text: &str, max: usize) -> String {
    if text.trim().is_empty() { "it gave no reason".to_owned() } else { clean(text, max) }
}

#[cfg(test)]
mod tests {
    use super::{clean, reason};

    #[test]
    fn no_reason_is_said_to_be_none() {
        assert_eq!(
            (reason("", 10), reason(" \n", 10)),
            ("it gave no reason".to_owned(), "it gave no reason".to_owned())
        );
        assert_eq!(reason("because", 10), "because");
    }

    #[test]
    fn control_and_bidi_are_escaped() {
        assert_eq!(clean("a\x1b[31m\nb\u{202e}c", 100), "a\\u{1b}[31m\\nb\\u{202e}c");
        assert_eq!(clean("größe", 100), "größe");
    }

    #[test]
    fn length_is_capped() {
        assert_eq!(clean(&"x".repeat(1000), 5), "xxxxx… (1000 bytes)");
        assert_eq!(clean("\n\n\n", 5), "\\n\\n… (3 bytes)");
    }
}
