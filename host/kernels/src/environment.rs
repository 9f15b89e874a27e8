//! What the environment may say about the kernels: `PATCHHOST_ISA` and `PATCHHOST_THREADS`.
//!
//! [`check`] is asked once, where a program or an engine starts. Behind it, [`Isa::detect`] and [`Team::global`] take a
//! value that makes no sense as one that is not there.
//!
//! [`Team::global`]: crate::team::Team::global

use std::ffi::OsStr;

use crate::isa::Isa;

/// Lowers the instruction set.
pub const ISA_VARIABLE: &str = "PATCHHOST_ISA";
/// Sets the number of threads that decode.
pub const THREADS_VARIABLE: &str = "PATCHHOST_THREADS";
/// Most threads of a team.
pub const MOST_THREADS: usize = 256;

/// A variable of the environment whose value means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused: {what}\n  why: {why}\n  next: {next}")]
pub struct EnvironmentError {
    /// The variable and its value.
    pub what: String,
    /// What is allowed.
    pub why: String,
    /// What to do next.
    pub next: String,
}

impl EnvironmentError {
    /// About `variable`, whose value is `value` and may be what `allowed` says.
    pub fn new(variable: &str, value: &OsStr, allowed: &str) -> Self {
        let shown: String = value.to_string_lossy().chars().take(100).flat_map(char::escape_debug).collect();
        Self {
            what: format!("the environment variable {variable}=\"{shown}\""),
            why: format!("it must be {allowed}"),
            next: format!("give it such a value, or remove it (unset {variable})"),
        }
    }
}

/// Refuses values of the variables of this crate that mean nothing.
pub fn check() -> Result<(), EnvironmentError> {
    if let Some(word) = std::env::var_os(ISA_VARIABLE) {
        isa(&word)?;
    }
    if let Some(text) = std::env::var_os(THREADS_VARIABLE) {
        threads(&text)?;
    }
    Ok(())
}

/// The instruction set of a name that this architecture knows.
pub(crate) fn isa(word: &OsStr) -> Result<Isa, EnvironmentError> {
    let known = Isa::ALL.iter().find(|isa| word == isa.name());
    known.copied().ok_or_else(|| {
        let names: Vec<&str> = Isa::ALL.iter().map(|isa| isa.name()).collect();
        EnvironmentError::new(ISA_VARIABLE, word, &format!("one of {} on this machine", names.join(", ")))
    })
}

/// A number of threads.
pub(crate) fn threads(text: &OsStr) -> Result<usize, EnvironmentError> {
    let number = text.to_str().filter(|t| t.bytes().all(|b| b.is_ascii_digit())).and_then(|t| t.parse().ok());
    number.filter(|n| (1..=MOST_THREADS).contains(n)).ok_or_else(|| {
        EnvironmentError::new(THREADS_VARIABLE, text, &format!("a whole number from 1 to {MOST_THREADS}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_means_nothing_is_named_with_what_is_allowed() {
        for text in ["", "0", "-1", "+4", " 4", "4.5", "vier", "257", "99999999999999999999999"] {
            let error = threads(OsStr::new(text)).expect_err(text);
            assert!(error.what.contains("PATCHHOST_THREADS") && error.what.contains(text), "{error}");
            assert!(error.why.contains("from 1 to 256"), "{error}");
        }
        for text in ["", "bogus", "AVX2", "avx2 ", "sse2", "\u{1b}[2J"] {
            let error = isa(OsStr::new(text)).expect_err(text);
            assert!(error.what.contains("PATCHHOST_ISA") && error.why.contains("portable"), "{error}");
            assert!(!error.to_string().contains('\u{1b}'));
        }
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStrExt;
            assert!(threads(OsStr::from_bytes(b"4\xff")).is_err() && isa(OsStr::from_bytes(b"avx2\xff")).is_err());
        }
    }

    #[test]
    fn what_is_allowed_is_taken() {
        assert_eq!(threads(OsStr::new("1")), Ok(1));
        assert_eq!(threads(OsStr::new("256")), Ok(256));
        for known in Isa::ALL {
            assert_eq!(isa(OsStr::new(known.name())), Ok(*known));
        }
    }
}
