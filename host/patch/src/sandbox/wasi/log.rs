//! Where a guest's standard output and error go: to the host's log, escaped, cut into lines, and not without end.

use crate::base::text;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Bytes that one instance may write in its life; what comes after is dropped, and that it is dropped is said once.
const BYTES: usize = 64 << 10;
/// Lines that one instance may write in its life.
const LINES: usize = 256;
/// Characters of a line that are shown.
const LINE: usize = 256;

/// The log of one instance: its standard output and its standard error.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    line: Vec<u8>,
    bytes: usize,
    lines: usize,
    said: bool,
}

impl Inner {
    /// Takes what is written and gives the lines that became whole.
    fn write(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut whole = Vec::new();
        let room = BYTES.saturating_sub(self.bytes).min(bytes.len());
        self.bytes = self.bytes.saturating_add(bytes.len());
        for byte in &bytes[..room] {
            if *byte == b'\n' || self.line.len() >= 4 * LINE {
                whole.extend(self.end());
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
        if (self.bytes > BYTES || self.lines >= LINES) && !self.said {
            self.said = true;
            whole.extend(self.end());
            whole.push(format!("(the rest is dropped: an instance may write {BYTES} bytes and {LINES} lines)"));
        }
        whole
    }

    fn end(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() || self.lines >= LINES {
            return None;
        }
        self.lines += 1;
        Some(text::clean(&String::from_utf8_lossy(&line), LINE))
    }
}

impl Log {
    fn take(&self, bytes: &[u8]) {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes);
        for line in lines {
            tracing::info!(target: "patchhost::guest", "{line}");
        }
    }
}

#[async_trait]
impl Pollable for Log {
    async fn ready(&mut self) {}
}

impl OutputStream for Log {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(4096)
    }
}

impl IsTerminal for Log {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Log {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for this one, and it is not linked.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_escaped() {
        let mut log = Inner::default();
        assert!(log.write(b"half a ").is_empty());
        assert_eq!(log.write(b"line\nand \x1b[2J\n"), ["half a line", "and \\u{1b}[2J"]);
        assert!(log.write(b"\n\n\n").is_empty(), "empty lines are nothing");
    }

    #[test]
    fn a_flood_ends() {
        let mut log = Inner::default();
        let lines: Vec<String> = (0..10_000).flat_map(|_| log.write(b"flood\n")).collect();
        assert_eq!(lines.len(), LINES + 1);
        assert!(lines[LINES].contains("dropped"));
        let mut log = Inner::default();
        let lines: Vec<String> = (0..100).flat_map(|_| log.write(&[b'x'; 4096])).collect();
        assert!(lines.iter().all(|line| line.len() <= 4 * LINE) && lines.len() < 100, "{}", lines.len());
        assert!(lines.last().is_some_and(|line| line.contains("dropped")));
    }
}
