//! Why a call of a guest failed: a trap, a limit that was reached, or an answer that cannot be one.

use super::Budget;
use super::limiter::LimitReached;
use super::wasi::WaitedTooLong;
use crate::base::Function;
use crate::base::text;
use patchhost_runtime::hooks::HookCause;
use wasmtime::{Trap, WasmBacktrace};

/// A failed call: which function of the guest, and why.
#[derive(Debug, Clone, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{function}: {why}")]
pub struct Fault {
    /// The function that was called.
    pub function: Function,
    /// What ended the call: a trap, a limit, or an answer that is refused.
    pub cause: HookCause,
    /// Why, with the limit where there is one.
    pub why: String,
}

/// The host refused to go on serving a guest: see `abi::row_source`.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(crate) struct ImportRefused {
    pub(crate) cause: HookCause,
    pub(crate) why: String,
}

/// What an error of wasmtime means.
///
/// `denied`: how much memory it wanted and how much it declared, if growing failed.
pub(super) fn classify(
    error: &wasmtime::Error,
    function: Function,
    budget: &Budget,
    denied: Option<(usize, usize)>,
) -> Fault {
    let (cause, why) = explain(error, budget, denied);
    Fault { function, cause, why: why + &place(error) }
}

fn explain(error: &wasmtime::Error, budget: &Budget, denied: Option<(usize, usize)>) -> (HookCause, String) {
    if let Some(refused) = error.downcast_ref::<ImportRefused>() {
        return (refused.cause, refused.why.clone());
    }
    if let Some(limit) = error.downcast_ref::<LimitReached>() {
        return (HookCause::Limit, limit.to_string());
    }
    if let Some(waited) = error.downcast_ref::<WaitedTooLong>() {
        return (HookCause::Limit, format!("{waited}: {} ms", budget.wall.as_millis()));
    }
    if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
        return (HookCause::Trap, format!("it called `wasi:cli/exit` with {}", exit.0));
    }
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        return (HookCause::Limit, format!("no free slot for another instance: {}", error.root_cause()));
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => {
            let Budget { fuel, formula, .. } = budget;
            (HookCause::Limit, format!("it used all of its fuel, {fuel} ({formula})"))
        }
        Some(Trap::Interrupt) => {
            (HookCause::Limit, format!("it ran longer than {} ms of wall time", budget.wall.as_millis()))
        }
        Some(Trap::StackOverflow) => {
            (HookCause::Limit, format!("its call stack grew beyond {} KiB", super::limits::STACK_BYTES >> 10))
        }
        Some(Trap::UnreachableCodeReached) => match denied {
            Some((wanted, declared)) => {
                let why = format!("it wanted {wanted} bytes of memory and declares at most {declared}, then gave up");
                (HookCause::Limit, why)
            }
            None => (HookCause::Trap, "it executed `unreachable` (a panic or an abort)".into()),
        },
        Some(trap) => (cause_of(*trap), format!("it trapped: {trap}")),
        None if is_hostcall_fuel(error) => {
            (HookCause::Limit, format!("its answer is larger than the {} bytes that it may have", budget.output))
        }
        None => (HookCause::BadOutput, text::clean(&error.root_cause().to_string(), 256)),
    }
}

/// Traps that the canonical ABI raises while the host reads the answer are wrong answers, not crashes.
fn cause_of(trap: Trap) -> HookCause {
    match trap {
        Trap::InvalidChar
        | Trap::StringOutOfBounds
        | Trap::ListOutOfBounds
        | Trap::InvalidDiscriminant
        | Trap::UnalignedPointer => HookCause::BadOutput,
        _ => HookCause::Trap,
    }
}

/// Recognized by its text, because wasmtime keeps the type of this error private. The test of `huge_list` fails if a
/// new version of wasmtime has another text.
fn is_hostcall_fuel(error: &wasmtime::Error) -> bool {
    error.root_cause().to_string().contains("fuel allocated for hostcalls has been exhausted")
}

/// Where: the innermost named functions, without the panic machinery above them.
fn place(error: &wasmtime::Error) -> String {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else { return String::new() };
    let names: Vec<String> = backtrace
        .frames()
        .iter()
        .filter_map(|frame| frame.func_name())
        .map(|name| format!("{:#}", rustc_demangle::demangle(name)))
        .filter(|name| !MACHINERY.iter().any(|part| name.contains(part)))
        .take(3)
        .map(|name| text::clean(&name, 80))
        .collect();
    if names.is_empty() { String::new() } else { format!(", in {}", names.join(" < ")) }
}

const MACHINERY: [&str; 8] = [
    "panicking",
    "rust_panic",
    "rust_begin_unwind",
    "__rust_",
    "panic_fmt",
    "handle_alloc_error",
    "alloc::raw_vec",
    "abort",
];
