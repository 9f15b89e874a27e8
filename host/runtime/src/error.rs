//! Errors of the runtime. Each says what was refused, why, and what to do next.

use std::path::Path;

use patchhost_kernels::environment::EnvironmentError;

use crate::hooks::HookError;

/// What was refused, why (with the number, name or limit), and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}\n  why: {why}\n  next: {next}")]
pub struct Refusal {
    /// What was refused.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do next.
    pub next: String,
}

impl Refusal {
    /// Three parts, in order, made plain: names out of files go into them.
    pub fn new(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: plain(what.into()), why: plain(why.into()), next: plain(next.into()) }
    }

    /// About a bug of this program, in the words of whoever found it.
    pub fn internal(what: &str) -> Self {
        let (why, next) = ("a bug of this program".to_owned(), "please report this".to_owned());
        Self { what: format!("internal: {what}"), why, next }
    }
}

/// Longest part of a refusal, in bytes.
const MOST_BYTES: usize = 4 << 10;

/// Text out of a file as it may be printed: without what moves a cursor, ends a line or turns the direction of text, and cut
/// where it is longer than any message needs.
pub fn plain(text: String) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let odd = |c: char| c.is_control() || turns(c);
    if text.len() <= MOST_BYTES && !text.contains(odd) {
        return text;
    }
    let mut out = String::new();
    for c in text.chars() {
        if out.len() > MOST_BYTES {
            out.push_str(&format!("… ({} bytes)", text.len()));
            break;
        }
        if odd(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Everything that can go wrong between a model folder and generated text.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A variable of the environment has a value that means nothing.
    #[error("refused: {0}")]
    Environment(Refusal),
    /// config.json is missing, malformed or of a family that is not supported.
    #[error("config refused: {0}")]
    Config(Refusal),
    /// A safetensors file or index is missing, malformed or inconsistent.
    #[error("checkpoint refused: {0}")]
    Checkpoint(Refusal),
    /// tokenizer.json or the chat template is missing or malformed.
    #[error("tokenizer refused: {0}")]
    Tokenizer(Refusal),
    /// The checkpoint does not cover the model: unknown, missing, duplicate or misshapen tensors, or no loader.
    #[error("refit refused: {0}")]
    Refit(Refusal),
    /// A weight is not finite.
    #[error("refit refused: {0}")]
    NonFinite(Refusal),
    /// A patch gave scales that the native cast disproved.
    #[error("scale contract broken: {0}")]
    Contract(Refusal),
    /// A request cannot be served (prompt too long, unknown option value, …).
    #[error("request refused: {0}")]
    Request(Refusal),
    /// A patch failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// A panic was caught: a bug of this program.
    #[error("{}", Refusal::internal(.0))]
    Internal(String),
}

impl From<EnvironmentError> for RuntimeError {
    fn from(error: EnvironmentError) -> Self {
        Self::Environment(Refusal::new(error.what, error.why, error.next))
    }
}

impl RuntimeError {
    /// The same error with the path of the config.json that it speaks of.
    pub(crate) fn of_config(self, path: &Path) -> Self {
        match self {
            Self::Config(Refusal { what, why, next }) => {
                let path = format!("`{}`", path.display());
                let what = match what.contains("config.json") {
                    true => what.replacen("config.json", &path, 1),
                    false => format!("{path}: {what}"),
                };
                Self::Config(Refusal::new(what, why, next))
            }
            other => other,
        }
    }

    /// The same error once more: a step that fails ends several sequences.
    #[cfg(feature = "text")]
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Environment(r) => Self::Environment(r.clone()),
            Self::Config(r) => Self::Config(r.clone()),
            Self::Checkpoint(r) => Self::Checkpoint(r.clone()),
            Self::Tokenizer(r) => Self::Tokenizer(r.clone()),
            Self::Refit(r) => Self::Refit(r.clone()),
            Self::NonFinite(r) => Self::NonFinite(r.clone()),
            Self::Contract(r) => Self::Contract(r.clone()),
            Self::Request(r) => Self::Request(r.clone()),
            Self::Hook(e) => Self::Hook(e.clone()),
            Self::Internal(what) => Self::Internal(what.clone()),
        }
    }
}

/// Shorthand of this crate.
pub type Result<T> = std::result::Result<T, RuntimeError>;

#[cfg(test)]
mod tests {
    use super::Refusal;

    #[test]
    fn names_out_of_files_cannot_move_the_cursor() {
        let refusal = Refusal::new("tensor `\u{1b}[2J\n\u{202e}x`", "größe", "y".repeat(10_000));
        assert_eq!(refusal.what, "tensor `\\u{1b}[2J\\n\\u{202e}x`");
        assert_eq!(refusal.why, "größe");
        assert!(refusal.next.len() < 5_000 && refusal.next.ends_with("(10000 bytes)"));
    }
}
