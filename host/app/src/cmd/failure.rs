//! Why a verb ended early: what is printed, and the exit code.

use std::fmt::Display;
use std::process::ExitCode;

use patchhost_runtime::error::{Refusal, plain};

use super::args::Format;
use crate::base::{Code, Exit};

/// What functions of the command line return.
pub type Result<T = (), E = Failure> = std::result::Result<T, E>;

/// Why a verb ended early. `?` makes one of every error that says its exit code ([`Exit`]); for an error type that does
/// not, it does not compile.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    said: Said,
    text: String,
    /// What `--format json` shows beside the text and the exit code.
    fields: serde_json::Map<String, serde_json::Value>,
}

/// How much of a failure the verb has printed itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Nothing,
    /// With `--format json`, the verb's one object says it.
    InJson,
    Everything,
}

impl<E: Exit> From<E> for Failure {
    fn from(error: E) -> Self {
        let Refusal { what, why, next } = error.parts();
        let parts = [("what", what), ("why", why), ("next", next)].map(|(name, part)| (name.to_owned(), part.into()));
        let fields = parts.into_iter().chain(error.details()).collect();
        Self { code: error.exit(), said: Said::Nothing, text: error.to_string(), fields }
    }
}

impl Failure {
    /// The verb printed everything: only the exit code is left.
    pub(super) fn said(code: Code) -> Self {
        Self { code, said: Said::Everything, text: String::new(), fields: serde_json::Map::new() }
    }

    /// The verb printed findings of the audit that refuse `what`.
    pub(super) fn findings(what: &str) -> Self {
        let next = "mend what they name; `patchhost audit --explain ID` says more";
        Self::found(what, "findings that refuse, listed above", next)
    }

    /// The verb printed what it found; with `--format json` its one object says that it is refused.
    pub(super) fn found(what: &str, why: &str, next: &str) -> Self {
        let text = format!("refused: {what}\n  why: {why}\n  next: {next}");
        Self { code: Code::Refused, said: Said::InJson, text, fields: serde_json::Map::new() }
    }

    /// Prints the error (with `--format json` on standard output, else as text on standard error) and gives its exit code.
    pub(super) fn report(self, format: Format) -> ExitCode {
        match (self.said, format) {
            (Said::Everything, _) | (Said::InJson, Format::Json) => {}
            (_, Format::Text) => errln!("error: {}", self.text),
            (Said::Nothing, Format::Json) => {
                let mut object = serde_json::json!({ "error": self.text, "exit": self.code as u8 });
                for (name, value) in self.fields {
                    object[name] = value;
                }
                outln!("{object}");
            }
        }
        self.code.into()
    }
}

/// Arguments that clap cannot judge.
#[derive(Debug, thiserror::Error)]
#[error("refused: {what}\n  why: {why}\n  next: {next}")]
pub struct UsageError {
    what: String,
    why: String,
    next: String,
}

impl UsageError {
    pub(super) fn new(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        // Names out of files go into them.
        Self { what: plain(what.into()), why: plain(why.into()), next: plain(next.into()) }
    }

    /// The same with other advice, where a verb takes its arguments in another way.
    pub(super) fn with_next(self, next: impl Into<String>) -> Self {
        Self { next: next.into(), ..self }
    }
}

impl Exit for UsageError {
    fn exit(&self) -> Code {
        Code::Usage
    }

    fn parts(&self) -> Refusal {
        Refusal { what: self.what.clone(), why: self.why.clone(), next: self.next.clone() }
    }
}

/// The machine or this program failed: neither the arguments nor a patch are to blame.
#[derive(Debug, thiserror::Error)]
#[error("failed: {what}\n  why: {why}\n  next: {next}")]
pub struct HostError {
    what: String,
    why: String,
    next: &'static str,
}

impl HostError {
    pub(super) fn new(what: impl Into<String>, why: impl Display, next: &'static str) -> Self {
        Self { what: plain(what.into()), why: plain(why.to_string()), next }
    }

    /// The operating system did not give what every machine has: a thread, a signal handler, a path to this program.
    pub(super) fn system(what: impl Into<String>, error: impl Display) -> Self {
        Self::new(what, error, "look at the limits of this machine (processes, open files, memory), then try again")
    }

    /// Something that cannot happen has happened.
    pub(super) fn bug(what: impl Into<String>, why: impl Display) -> Self {
        Self::new(what, why, "please report this: it is an error of patchhost")
    }
}

impl Exit for HostError {
    fn exit(&self) -> Code {
        Code::Host
    }

    fn parts(&self) -> Refusal {
        Refusal { what: self.what.clone(), why: self.why.clone(), next: self.next.to_owned() }
    }
}
