//! What is wrong with a TOML file, in words: where, and what was probably meant.

use super::nearest;
use super::text::clean;

/// What the parser says, with line and column, and for an unknown key the known one that is nearest.
pub(crate) fn explain(text: &str, error: &toml::de::Error) -> String {
    let message = plain(&clean(error.message().trim(), 500));
    let place = error.span().map(|span| {
        let before = text.get(..span.start.min(text.len())).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("line {line}, column {column}: ")
    });
    let hint = meant(&message).map(|known| format!(" (did you mean `{known}`?)")).unwrap_or_default();
    format!("{}{message}{hint}", place.unwrap_or_default())
}

/// Without Rust's names of types.
fn plain(message: &str) -> String {
    let Some((before, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let expected = match expected {
        "usize" | "u64" | "u32" => "a whole number",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        other => other.strip_prefix("struct ").map_or(other, |_| "a table"),
    };
    format!("{before}, expected {expected}")
}

/// serde says: unknown field `x`, expected one of `a`, `b`.
fn meant(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field ").or_else(|| message.strip_prefix("unknown variant "))?;
    let mut names = rest.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    let known: Vec<&str> = names.collect();
    nearest(unknown, known.iter().copied()).map(str::to_owned)
}
