//! What transformers' dialect of Jinja has and the engine has not, written in words that the engine knows: the tags
//! `{% generation %}` and `{% endgeneration %}`, whose body is rendered in a scope of its own, and `'text' % values`.

/// The name of the filter that [`rewritten`] writes for `'text' % values`.
pub(super) const PERCENT: &str = "__percent";

/// The same template in the engine's words. What is not understood stays as it is: the engine says what is wrong with it.
pub(super) fn rewritten(source: &str) -> String {
    // As Jinja reads a template.
    let lines = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(lines.len() + 64);
    let mut rest = lines.as_str();
    while let Some(at) = opening(rest) {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let taken = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{') => expression(&tag[2..], "}}").map_or(tag.len(), |end| end + 2),
            _ => block(tag),
        };
        let (tag, behind) = tag.split_at(taken);
        written(tag, &mut out);
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// Where the next tag, expression or comment begins.
fn opening(text: &str) -> Option<usize> {
    let starts = |pair: &[u8]| matches!(pair, [b'{', b'{' | b'%' | b'#']);
    text.as_bytes().windows(2).position(starts)
}

/// The length of a tag; of a raw block, everything up to its end.
fn block(tag: &str) -> usize {
    if name(tag) == "raw" {
        let ends = tag.match_indices("{%").skip(1).map(|(at, _)| at).find(|at| name(&tag[*at..]) == "endraw");
        return ends.and_then(|at| tag[at..].find("%}").map(|end| at + end + 2)).unwrap_or(tag.len());
    }
    expression(&tag[2..], "%}").map_or(tag.len(), |end| end + 2)
}

/// The first word of a tag.
fn name(tag: &str) -> &str {
    let inner = tag.strip_prefix("{%").unwrap_or(tag);
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_start();
    let end = inner.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(inner.len());
    &inner[..end]
}

/// Where an expression ends, behind the mark that closes it. The mark counts only outside of texts and brackets.
fn expression(text: &str, close: &str) -> Option<usize> {
    let (mut at, mut depth) = (0, 0usize);
    while let Some(token) = Token::first(&text[at..]) {
        if depth == 0 && text[at..].starts_with(close) {
            return Some(at + close.len());
        }
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += token.len;
    }
    None
}

/// Writes one tag, with what has to be said otherwise.
fn written(tag: &str, out: &mut String) {
    if !(tag.starts_with("{%") || tag.starts_with("{{")) {
        return out.push_str(tag);
    }
    let word = name(tag);
    if tag.starts_with("{%") && matches!(word, "generation" | "endgeneration") {
        let begins = word.as_ptr() as usize - tag.as_ptr() as usize;
        out.push_str(&tag[..begins]);
        out.push_str(if word == "generation" { "with" } else { "endwith" });
        return out.push_str(&tag[begins + word.len()..]);
    }
    if word == "raw" || !tag[2..].contains(['%', '\\']) {
        return out.push_str(tag);
    }
    formats(tag, out);
}

/// Writes a text in quotes. Python has escapes that the engine has not, and leaves those alone that it does not know.
fn text(quoted: &str, out: &mut String) {
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('a') => out.push_str("\\x07"),
            Some('v') => out.push_str("\\x0b"),
            Some('/') => out.push_str("\\\\/"),
            // A line that goes on.
            Some('\n') => {}
            Some('U') => {
                let digits: String = chars.as_str().chars().take(8).collect();
                match u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32).filter(|_| digits.len() == 8) {
                    Some(c) => {
                        out.push(c);
                        chars.nth(7);
                    }
                    None => out.push_str("\\U"),
                }
            }
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
}

/// Writes the texts of a tag, and `'text' % values` as a filter.
fn formats(tag: &str, out: &mut String) {
    let mut at = 2;
    out.push_str(&tag[..at]);
    let mut behind_text = false;
    while let Some(token) = Token::first(&tag[at..]) {
        let here = &tag[at..at + token.len];
        let operator = here == "%" && !tag[at..].starts_with("%}");
        if operator && behind_text {
            let operand = operand(&tag[at + 1..]);
            out.push('|');
            out.push_str(PERCENT);
            out.push('(');
            // A text in the values may have values of its own.
            let mut inner = String::new();
            formats(&format!("{{{{{}", &tag[at + 1..at + 1 + operand]), &mut inner);
            out.push_str(&inner[2..]);
            out.push(')');
            at += 1 + operand;
            behind_text = false;
            continue;
        }
        if token.kind != Kind::Space {
            behind_text = token.kind == Kind::Text;
        }
        match token.kind {
            Kind::Text => text(here, out),
            _ => out.push_str(here),
        }
        at += token.len;
    }
    out.push_str(&tag[at..]);
}

/// The length of what an operator takes on its right: a name, text, number or bracket, with calls, attributes, items and
/// filters behind it.
fn operand(text: &str) -> usize {
    let (mut at, mut depth, mut end, mut wants) = (0, 0usize, 0, true);
    while let Some(token) = Token::first(&text[at..]) {
        let here = &text[at..at + token.len];
        match token.kind {
            Kind::Space => {}
            Kind::Open if depth > 0 || wants || matches!(here, "(" | "[") => depth += 1,
            Kind::Close if depth > 0 => {
                depth -= 1;
                wants = false;
            }
            _ if depth > 0 => {}
            Kind::Sign if matches!(here, "." | "|") => wants = true,
            Kind::Sign if wants && matches!(here, "-" | "+") => {}
            Kind::Word | Kind::Text if wants => wants = false,
            _ => break,
        }
        at += token.len;
        if token.kind != Kind::Space {
            end = at;
        }
    }
    end
}

/// A piece of an expression.
struct Token {
    kind: Kind,
    len: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Space,
    /// A text in quotes.
    Text,
    /// A name or a number.
    Word,
    Open,
    Close,
    Sign,
}

impl Token {
    /// The first piece; none at the end, and where a text has no end.
    fn first(text: &str) -> Option<Self> {
        let c = text.chars().next()?;
        let run = |of: fn(char) -> bool| text.find(|c| !of(c)).unwrap_or(text.len());
        let (kind, len) = match c {
            '\'' | '"' => (Kind::Text, quoted(text, c)?),
            '(' | '[' | '{' => (Kind::Open, 1),
            ')' | ']' | '}' => (Kind::Close, 1),
            c if c.is_whitespace() => (Kind::Space, run(char::is_whitespace)),
            c if c.is_alphanumeric() || c == '_' => (Kind::Word, run(|c| c.is_alphanumeric() || c == '_')),
            c => (Kind::Sign, c.len_utf8()),
        };
        Some(Self { kind, len })
    }
}

/// The length of a text in quotes, with them.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    let mut closes = |c: char| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    };
    let end = text.char_indices().skip(1).find(|(_, c)| closes(*c))?.0;
    Some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_scopes_with_the_same_marks() {
        let source = "a\n  {%- generation -%} b {% endgeneration %}\n{%+generation%}c{%-  endgeneration +%}";
        let wanted = "a\n  {%- with -%} b {% endwith %}\n{%+with%}c{%-  endwith +%}";
        assert_eq!(rewritten(source), wanted);
    }

    #[test]
    fn what_only_looks_like_a_tag_stays() {
        for same in [
            "{# {% generation %} #}x",
            "{% raw %}{% generation %}{% endraw %}",
            "{%- raw -%} {{ '%s' % 1 }} {%- endraw %}",
            "{{ '{% generation %}' }}",
            "{% if a == '%}' %}{{ {'a': {'b': 1}}['a'] }}{% endif %}",
            "100 % of {{ 7 % 2 }} {{ x % 'a' }} generation",
            "{% generations %}",
            "{{ 'no end",
            "{%",
            "{{ 'a\\'' }}",
        ] {
            assert_eq!(rewritten(same), same);
        }
        assert_eq!(rewritten("{# {{ #}{% generation %}"), "{# {{ #}{% with %}");
    }

    #[test]
    fn escapes_of_python_are_written_as_the_engine_knows_them() {
        for (source, wanted) in [
            (r"{{ '\a\v' }}", r"{{ '\x07\x0b' }}"),
            (r"{{ '\/ \\/ \d' }}", r"{{ '\\/ \\/ \d' }}"),
            (r"{{ '\U0001F389\U00' }}", r"{{ '🎉\U00' }}"),
            ("{{ 'a\\\nb' }}\r\nx\ry", "{{ 'ab' }}\nx\ny"),
        ] {
            assert_eq!(rewritten(source), wanted);
        }
    }

    #[test]
    fn a_text_with_values_becomes_a_filter() {
        for (source, wanted) in [
            ("{{ '%s' % x }}", "{{ '%s' |__percent( x) }}"),
            ("{{ '%s-%s' % (a, b.c) ~ 'd' }}", "{{ '%s-%s' |__percent( (a, b.c)) ~ 'd' }}"),
            ("{% set a = \"%d\" % b[0].c(1)|abs -%}", "{% set a = \"%d\" |__percent( b[0].c(1)|abs) -%}"),
            ("{{ '%s' % ('%d' % 1) }}", "{{ '%s' |__percent( ('%d' |__percent( 1))) }}"),
        ] {
            assert_eq!(rewritten(source), wanted);
        }
    }
}
