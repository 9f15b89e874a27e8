//! Names and bytes as messages show them, and the known name that a misspelled one probably meant.

/// Lower-case hex digits of `bytes`, two a byte.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    digits.map(char::from).collect()
}

/// A name out of a file or a patch, as a message shows it: at most 200 characters, and nothing that moves a cursor.
pub fn shown(name: &str) -> String {
    name.chars().take(200).flat_map(char::escape_debug).collect()
}

/// The known name that is nearest to a misspelled one, if one is near: for "did you mean". Case, and `-` for `_`, count
/// for nothing; a swap of two neighbors counts as one change.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Names that are longer are not typed by hand.
    const LONGEST: usize = 256;
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let length = name.chars().count();
    if length > LONGEST {
        return None;
    }
    let (most, name) = ((length / 4).max(2), plain(name));
    let near = known
        .into_iter()
        .filter(|known| known.len().abs_diff(name.len()) <= 4 * most)
        .map(|known| (strsim::osa_distance(&name, &plain(known)), known))
        .filter(|(distance, _)| *distance <= most);
    near.min_by_key(|(distance, _)| *distance).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::{hex, nearest, shown};

    #[test]
    fn bytes_are_two_digits_each() {
        assert_eq!(hex(&[0, 0x0f, 0xa0, 0xff]), "000fa0ff");
        assert_eq!(hex(&[]), "");
    }

    #[test]
    fn a_shown_name_is_short_and_moves_no_cursor() {
        assert_eq!(shown("a\u{1b}b"), "a\\u{1b}b");
        assert_eq!(shown(&"x".repeat(999)).len(), 200);
    }

    #[test]
    fn the_nearest_name_is_found_if_it_is_near() {
        let known = ["require_lock", "require_signature", "threshold"];
        assert_eq!(nearest("require-lock", known), Some("require_lock"));
        assert_eq!(nearest("treshold", known), Some("threshold"));
        assert_eq!(nearest("thershold", known), Some("threshold"));
        assert_eq!(nearest("requires_signatures", known), Some("require_signature"));
        assert_eq!(nearest("color", known), None);
        assert_eq!(nearest(&"x".repeat(10_000), known), None);
    }
}
