//! Globs over full tensor names: `*` is any run of characters, dots included; `?` is exactly one.

/// Whether `pattern` matches all of `name`. Linear in practice: only the last `*` is ever retried.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(b'?') => {
                p += 1;
                n += char_len(name[n]);
            }
            Some(&c) if c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((after_star, start)) => {
                    p = after_star;
                    n = start + 1;
                    retry = Some((after_star, start + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// Bytes of the UTF-8 character that starts with `first`.
const fn char_len(first: u8) -> usize {
    match first {
        0..=0xBF => 1,
        0xC0..=0xDF => 2,
        0xE0..=0xEF => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_and_question_marks() {
        assert!(matches("*", ""));
        assert!(matches("", ""));
        assert!(!matches("", "a"));
        assert!(matches("*.q_proj.weight", "model.layers.0.self_attn.q_proj.weight"));
        assert!(!matches("*.q_proj.weight", "model.layers.0.self_attn.q_proj.bias"));
        assert!(matches("model.layers.?.mlp.*", "model.layers.3.mlp.experts.1.up_proj.weight"));
        assert!(!matches("model.layers.?.mlp.*", "model.layers.13.mlp.gate.weight"));
        assert!(matches("*a*b*", "xxaxxbxx"));
        assert!(matches("*ab", "aab"));
        assert!(!matches("*ab", "aba"));
        assert!(matches("a?c", "aßc"));
        assert!(matches("**", "anything.at.all"));
    }
}
