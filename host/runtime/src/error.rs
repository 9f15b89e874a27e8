//! Errors of the runtime. Each says what was refused, why, and what to do next.

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
    /// Three parts, in order.
    pub fn new(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into(), next: next.into() }
    }
}

/// Everything that can go wrong between a model folder and generated text.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
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
    /// The tensor library failed: a bug of this program.
    #[error("internal: {0}\n  why: the tensor library refused an operation\n  next: please report this")]
    Compute(#[from] candle_core::Error),
}

impl RuntimeError {
    /// The same error once more: a step that fails ends several sequences.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Config(r) => Self::Config(r.clone()),
            Self::Checkpoint(r) => Self::Checkpoint(r.clone()),
            Self::Tokenizer(r) => Self::Tokenizer(r.clone()),
            Self::Refit(r) => Self::Refit(r.clone()),
            Self::NonFinite(r) => Self::NonFinite(r.clone()),
            Self::Contract(r) => Self::Contract(r.clone()),
            Self::Request(r) => Self::Request(r.clone()),
            Self::Hook(e) => Self::Hook(e.clone()),
            Self::Compute(e) => Self::Compute(candle_core::Error::Msg(e.to_string())),
        }
    }
}

/// Shorthand of this crate.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// The name of `known` closest to `name`, for "did you mean", if any is close.
pub fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.len() / 4).max(2);
    known
        .filter(|k| k.len().abs_diff(name.len()) <= limit)
        .map(|k| (edit_distance(name, k), k))
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
