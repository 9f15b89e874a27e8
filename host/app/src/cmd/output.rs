//! Printing: lines that cannot panic, and numbers as people read them.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::OnceLock;

use serde::Serialize;

use super::failure::{HostError, Result};

/// Why standard output did not take everything, if it did not.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// A line on standard output. Unlike `println!` it does not panic where the output is closed or the disk is full.
macro_rules! outln {
    () => { $crate::cmd::output::write(format_args!("\n")) };
    ($($text:tt)*) => { $crate::cmd::output::write(format_args!("{}\n", format_args!($($text)*))) };
}

/// The same without the end of the line.
macro_rules! out {
    ($($text:tt)*) => { $crate::cmd::output::write(format_args!($($text)*)) };
}

/// A line on standard error, where somebody may read it or not.
macro_rules! errln {
    ($($text:tt)*) => { $crate::cmd::output::remark(format_args!($($text)*)) };
}

/// Writes to standard output, and keeps the first error for [`complete`]: [`outln`] and [`out`] are this.
pub(in crate::cmd) fn write(text: Arguments<'_>) {
    if let Err(error) = io::stdout().write_fmt(text) {
        // Only the first one is told; who closed the output has read enough.
        let _ = LOST.set(error);
    }
}

/// Keeps the error of what was printed in another way.
pub(super) fn printed(by_others: io::Result<()>) {
    if let Err(error) = by_others {
        let _ = LOST.set(error);
    }
}

pub(in crate::cmd) fn remark(text: Arguments<'_>) {
    let _ = io::stderr().write_fmt(format_args!("{text}\n"));
}

/// An error where a part of the output was lost, so that a script does not take half of it for all.
pub(super) fn complete() -> Result {
    if let Err(error) = io::stdout().flush() {
        let _ = LOST.set(error);
    }
    match LOST.get() {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let why = format!("{error}, so what was printed is not all there is");
            Err(HostError::new("standard output", why, "make room, or print to another place").into())
        }
        _ => Ok(()),
    }
}

/// "4.3 GB", decimal units as file managers use.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n >= 1e9 => format!("{:.2} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.2} MB", n / 1e6),
        n if n >= 1e3 => format!("{:.1} kB", n / 1e3),
        n => format!("{n} B"),
    }
}

/// "1.2M", for counts such as fuel.
pub fn count(n: u64) -> String {
    match n {
        n if n >= 10_000_000_000 => format!("{:.1}G", n as f64 / 1e9),
        n if n >= 10_000_000 => format!("{:.1}M", n as f64 / 1e6),
        n if n >= 10_000 => format!("{:.1}k", n as f64 / 1e3),
        n => n.to_string(),
    }
}

/// "1.50 s", "12.3 ms" or "4 us".
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} us", s * 1e6),
    }
}

/// "1 tensor", "2 tensors".
pub fn plural(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

pub fn json(value: &impl Serialize) -> Result {
    let text = serde_json::to_string_pretty(value).map_err(|e| HostError::bug("the answer as JSON", e))?;
    outln!("{text}");
    Ok(())
}
