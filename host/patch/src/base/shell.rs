//! Words of a command line that a message tells the reader to copy.

use std::ffi::OsStr;

/// A word of a shell's command line. What a terminal would not show as it is, is escaped.
pub fn quoted(word: &OsStr) -> String {
    let bytes = word.as_encoded_bytes();
    let safe = |b: &u8| b.is_ascii_alphanumeric() || b"-_./=:,+@%^".contains(b);
    if !bytes.is_empty() && bytes.iter().all(safe) {
        return word.to_string_lossy().into_owned();
    }
    let shows = |c: char| c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric();
    match word.to_str() {
        Some(text) if text.chars().all(shows) => format!("'{}'", text.replace('\'', "'\\''")),
        _ => {
            let mut out = String::from("$'");
            for b in bytes {
                match b {
                    b'\'' | b'\\' => out.extend(['\\', char::from(*b)]),
                    b' '..=b'~' => out.push(char::from(*b)),
                    _ => out.push_str(&format!("\\x{b:02x}")),
                }
            }
            out + "'"
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What bash makes of it is what went in.
    #[test]
    fn a_shell_reads_the_words_back() {
        let words =
            ["plain", "", "two words", "it's", "a\nb", "$(reboot)", "`x`", "ü", "\u{202e}x", "a\\b'c\u{7}", "*"];
        for word in words {
            let out = std::process::Command::new("bash")
                .args(["-c", &format!("printf %s {}", quoted(OsStr::new(word)))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), word, "{}", quoted(OsStr::new(word)));
        }
        assert_eq!(quoted(OsStr::new("a\u{202e}")), "$'a\\xe2\\x80\\xae'");
    }
}
