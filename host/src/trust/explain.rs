//! What is wrong with a TOML file, in words: where, and what was probably meant.

use crate::abi::text::clean;

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

/// The name that is nearest to a misspelled one, if any is near.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = (name.chars().count() / 3).max(2);
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let name = plain(name);
    let near = known.into_iter().map(|k| (distance(&name, &plain(k)), k)).filter(|(d, _)| *d <= most);
    near.min_by_key(|(d, _)| *d).map(|(_, k)| k)
}

/// Insertions, deletions, replacements and swaps of neighbors between two texts. Long ones are not looked at.
fn distance(a: &str, b: &str) -> usize {
    const LONGEST: usize = 64;
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len() > LONGEST || b.len() > LONGEST {
        return LONGEST;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

    #[test]
    fn distances() {
        for (a, b, d) in [("", "abc", 3), ("abc", "abc", 0), ("abc", "acb", 1), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_name_is_found_if_it_is_near() {
        let known = ["require_lock", "require_signature", "threshold"];
        assert_eq!(nearest("require-lock", known), Some("require_lock"));
        assert_eq!(nearest("treshold", known), Some("threshold"));
        assert_eq!(nearest("requires_signatures", known), Some("require_signature"));
        assert_eq!(nearest("colour", known), None);
    }
}
