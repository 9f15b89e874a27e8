//! How Python takes a text apart into words and lines, and what it makes of their letters.

use minijinja::Value;

use super::python::is_space;

/// The first letter large and all others small.
pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(lower(chars.as_str())).collect())
}

fn lower(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

/// The first letter of each run of letters large, as `str.title` has it: `they'Re`.
pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_alphabetic();
    }
    out
}

/// The words of a text between spaces, at most so many; the last one is the rest.
pub(super) fn split(text: &str, most: usize) -> Vec<Value> {
    let (mut words, mut rest) = (Vec::new(), text.trim_start_matches(is_space));
    while !rest.is_empty() {
        let end = if words.len() + 1 >= most { None } else { rest.find(is_space) };
        let (word, behind) = rest.split_at(end.unwrap_or(rest.len()));
        // Python keeps the spaces behind the rest, unless there was nothing to split any more.
        words.push(Value::from(word));
        rest = behind.trim_start_matches(is_space);
    }
    words
}

/// The same from the end of the text.
pub(super) fn rsplit(text: &str, most: usize) -> Vec<Value> {
    let (mut words, mut rest) = (Vec::new(), text.trim_end_matches(is_space));
    while !rest.is_empty() {
        let start = if words.len() + 1 >= most { None } else { rest.char_indices().rfind(|(_, c)| is_space(*c)) };
        let (behind, word) = rest.split_at(start.map_or(0, |(at, c)| at + c.len_utf8()));
        words.push(Value::from(word));
        rest = behind.trim_end_matches(is_space);
    }
    words.reverse();
    words
}

/// The lines of a text, with what ends them or without.
pub(super) fn lines(text: &str, keep: bool) -> Vec<Value> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let (mut lines, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let at = rest.find(ENDS).unwrap_or(rest.len());
        let end = match rest[at..].chars().next() {
            Some('\r') if rest[at..].starts_with("\r\n") => at + 2,
            Some(c) => at + c.len_utf8(),
            None => at,
        };
        lines.push(Value::from(&rest[..if keep { end } else { at }]));
        rest = &rest[end..];
    }
    lines
}
