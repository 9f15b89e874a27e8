//! Grammars written with `::=`: GBNF of llama.cpp, and the EBNF of XGrammar that vLLM's examples use. They become Lark.

/// Whether a grammar is written with `::=`.
pub(super) fn is_gbnf(text: &str) -> bool {
    text.contains("::=")
}

/// The same grammar as llguidance reads it: rules with `:`, the first of them called `start`, classes of characters as regular
/// expressions. An error says what was not understood.
pub(super) fn to_lark(text: &str) -> Result<String, String> {
    let tokens = tokens(text)?;
    // A rule begins with a name that `::=` follows.
    let begins =
        |i: usize| matches!(tokens.get(i), Some(Token::Name(_))) && matches!(tokens.get(i + 1), Some(Token::Defines));
    let mut lark = String::new();
    let mut first: Option<String> = None;
    let mut root = false;
    let mut i = 0;
    while i < tokens.len() {
        let Some(Token::Name(name)) = tokens.get(i).filter(|_| begins(i)) else {
            return Err(format!("a rule must begin with a name and `::=`, and there is {}", tokens[i].shown()));
        };
        root |= name == "root";
        first.get_or_insert_with(|| name.clone());
        lark.push_str(&format!("{}:", rule(name)));
        i += 2;
        while i < tokens.len() && !begins(i) {
            lark.push(' ');
            lark.push_str(&tokens[i].lark()?);
            i += 1;
        }
        lark.push('\n');
    }
    let Some(first) = first else { return Err("it has no rule".to_owned()) };
    Ok(format!("start: {}\n{lark}", rule(if root { "root" } else { &first })))
}

/// A name that is one of a rule in Lark, and not `start`.
fn rule(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    // Names that differ in case or in dashes only stay apart.
    let odd: u32 =
        name.bytes().filter(|b| !b.is_ascii_lowercase() && !b.is_ascii_digit() && *b != b'_').map(u32::from).sum();
    match odd {
        0 => format!("r_{plain}"),
        odd => format!("r{odd}_{plain}"),
    }
}

/// A piece of a grammar.
#[derive(Debug, PartialEq)]
enum Token {
    Name(String),
    Defines,
    /// A text between double quotes, with its escapes as they are.
    Text(String),
    /// A class of characters, with its brackets.
    Class(String),
    /// `|`, parentheses, `*`, `+`, `?`, `.`, and counts in braces.
    Sign(String),
}

impl Token {
    fn lark(&self) -> Result<String, String> {
        Ok(match self {
            Self::Name(name) => rule(name),
            Self::Text(text) if text.is_empty() => "()?".to_owned(),
            Self::Text(text) => serde_json::to_string(text).map_err(|e| e.to_string())?,
            Self::Class(class) => format!("/{}/", class.replace('/', "\\/")),
            Self::Sign(sign) if sign == "." => "/(.|\\n)/".to_owned(),
            Self::Sign(sign) => sign.clone(),
            Self::Defines => return Err("`::=` stands where no rule begins".to_owned()),
        })
    }

    fn shown(&self) -> String {
        match self {
            Self::Name(text) | Self::Class(text) | Self::Sign(text) => format!("`{}`", crate::words::shown(text)),
            Self::Text(text) => format!("the text \"{}\"", crate::words::shown(text)),
            Self::Defines => "`::=`".to_owned(),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut chars = text.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '#' => while chars.next().is_some_and(|c| c != '\n') {},
            '"' => tokens.push(Token::Text(quoted(&mut chars)?)),
            '[' => tokens.push(Token::Class(class(&mut chars)?)),
            ':' => {
                if chars.next() != Some(':') || chars.next() != Some('=') {
                    return Err("a `:` that does not begin `::=`".to_owned());
                }
                tokens.push(Token::Defines);
            }
            '{' => {
                let mut counts: String = chars.by_ref().take_while(|c| *c != '}').collect();
                counts.retain(|c| !c.is_whitespace());
                let number = |n: &str| n.is_empty() || n.parse::<u32>().is_ok();
                if counts.is_empty() || counts.split(',').count() > 2 || !counts.split(',').all(number) {
                    return Err(format!("`{{{}}}` is no count", crate::words::shown(&counts)));
                }
                tokens.push(Token::Sign(format!("{{{counts}}}")));
            }
            '|' | '(' | ')' | '*' | '+' | '?' | '.' => tokens.push(Token::Sign(c.to_string())),
            c if c.is_alphanumeric() || c == '_' || c == '-' => {
                let mut name = c.to_string();
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
                    name.push(c);
                }
                tokens.push(Token::Name(name));
            }
            c => return Err(format!("the character `{}` has no meaning here", c.escape_debug())),
        }
    }
    Ok(tokens)
}

/// A text up to its closing quote, with its escapes resolved.
fn quoted(chars: &mut impl Iterator<Item = char>) -> Result<String, String> {
    let mut text = String::new();
    loop {
        match chars.next().ok_or("a text has no closing `\"`")? {
            '"' => return Ok(text),
            '\\' => {
                let escape = chars.next().ok_or("a text ends with `\\`")?;
                let mut hex = |digits: usize| {
                    let code: String = chars.by_ref().take(digits).collect();
                    let number = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
                    number.ok_or_else(|| format!("`\\{escape}{}` is no character", crate::words::shown(&code)))
                };
                text.push(match escape {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'x' => hex(2)?,
                    'u' => hex(4)?,
                    'U' => hex(8)?,
                    other => other,
                });
            }
            c => text.push(c),
        }
    }
}

/// A class up to its closing bracket, escapes as they are: regular expressions have the same.
fn class(chars: &mut impl Iterator<Item = char>) -> Result<String, String> {
    let mut class = "[".to_owned();
    loop {
        match chars.next().ok_or("a class of characters has no closing `]`")? {
            ']' => return Ok(class + "]"),
            '[' => class.push_str("\\["),
            '\\' => {
                class.push('\\');
                class.push(chars.next().ok_or("a class of characters ends with `\\`")?);
            }
            '&' => class.push_str("\\&"),
            '~' => class.push_str("\\~"),
            c => class.push(c),
        }
    }
}
