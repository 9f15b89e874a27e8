//! Errors for Python: the classes of `patchhost.errors`, made of their three parts. A panic becomes an `InternalError`: pyo3's
//! own `PanicException` is no `Exception`, so a user's `except Exception` would miss it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use patchhost::base::{Code, Exit};
use patchhost::live::LiveError;
use patchhost::patch::SwapError;
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::hooks::{HookCause, HookError};
use pyo3::marker::Ungil;
use pyo3::prelude::*;

/// An error on its way to Python.
#[derive(Debug)]
pub struct Raised {
    kind: &'static str,
    parts: Refusal,
}

/// Shorthand of this crate.
pub type Result<T, E = Raised> = std::result::Result<T, E>;

impl Raised {
    /// One of the words of `patchhost.errors.KINDS`, and the three parts.
    pub fn new(kind: &'static str, what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { kind, parts: Refusal::new(what, why, next) }
    }

    /// Something that the caller of this module did wrong.
    pub fn usage(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new("usage", what, why, next)
    }

    /// A tensor that cannot be taken.
    pub fn tensor(name: &str, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new("tensor", format!("tensor `{name}`"), why, next)
    }

    /// An object of the process that this one was forked from.
    pub fn forked(what: &str, parent: u32) -> Self {
        Self::new(
            "forked",
            what,
            format!(
                "it was made in process {parent}, and this is its child {}: threads do not survive a fork",
                std::process::id()
            ),
            "load it again here from its specs (`PatchSet.load(...)`), or start the child by spawn",
        )
    }

    /// A panic that was caught.
    fn panicked(panic: &(dyn std::any::Any + Send)) -> Self {
        let text =
            panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
        let what = format!("internal: {}", text.unwrap_or_else(|| "a panic".to_owned()));
        Self::new("internal", what, "a bug of this program", "please report this")
    }
}

impl<E: Exit + 'static> From<E> for Raised {
    fn from(error: E) -> Self {
        Self { kind: kind(&error), parts: error.parts() }
    }
}

/// The word for an error: of the runtime by what it is, of everything else by how a command would end.
fn kind(error: &(dyn Exit + 'static)) -> &'static str {
    let any: &(dyn std::error::Error + 'static) = error;
    if let Some(error) = any.downcast_ref::<RuntimeError>() {
        return of_runtime(error);
    }
    match any.downcast_ref::<LiveError>() {
        Some(LiveError::Runtime(error)) => return of_runtime(error),
        Some(LiveError::Swap(_) | LiveError::Busy(_)) => return "swap",
        _ => {}
    }
    if let Some(error) = any.downcast_ref::<HookError>() {
        return of_hook(error);
    }
    if any.is::<SwapError>() {
        return "swap";
    }
    match error.exit() {
        Code::Refused => "refused",
        Code::Usage => "usage",
        Code::Patch => "patch",
        Code::Host => "host",
    }
}

fn of_runtime(error: &RuntimeError) -> &'static str {
    match error {
        RuntimeError::Refit(_) | RuntimeError::Checkpoint(_) => "refit",
        RuntimeError::NonFinite(_) => "non-finite",
        RuntimeError::Contract(_) => "contract",
        RuntimeError::Hook(error) => of_hook(error),
        RuntimeError::Internal(_) => "internal",
        RuntimeError::Environment(_)
        | RuntimeError::Config(_)
        | RuntimeError::Tokenizer(_)
        | RuntimeError::Request(_) => "usage",
    }
}

fn of_hook(error: &HookError) -> &'static str {
    match error.cause {
        HookCause::Refused => "refused",
        _ => "patch",
    }
}

/// The exception.
pub fn raise(py: Python<'_>, raised: Raised) -> PyErr {
    let Raised { kind, parts: Refusal { what, why, next } } = raised;
    let made = py
        .import("patchhost.errors")
        .and_then(|module| module.getattr("make"))
        .and_then(|make| make.call1((kind, what, why, next)));
    match made {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// Work without the GIL; an error of it is raised, and a panic too.
pub fn off<T: Ungil + Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Ungil + Send) -> PyResult<T> {
    let done = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    match done {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(raised)) => Err(raise(py, raised)),
        Err(panic) => Err(raise(py, Raised::panicked(&*panic))),
    }
}

/// Work with the GIL, the same otherwise.
pub fn on<T>(py: Python<'_>, work: impl FnOnce() -> Result<T>) -> PyResult<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(raised)) => Err(raise(py, raised)),
        Err(panic) => Err(raise(py, Raised::panicked(&*panic))),
    }
}

/// A panic on another thread as an error.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Raised::panicked(&*panic)))
}
