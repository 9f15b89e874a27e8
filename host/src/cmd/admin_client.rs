//! The admin API from the command line: one request over the admin socket, or over TCP with the admin token.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::failure::UsageError;
use crate::abi::text::clean;

/// How long an answer may take: a swap `now` loads all weights again.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Largest answer.
const MAX_ANSWER: u64 = 64 << 20;

/// Which server.
#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    /// The admin socket of the server
    #[arg(long, value_name = "unix:PATH", conflicts_with = "server")]
    admin: Option<String>,
    /// The server, as http://HOST:PORT; needs --admin-token-file
    #[arg(long, value_name = "URL", requires = "admin_token_file")]
    server: Option<String>,
    /// The file with the server's admin token
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
}

/// The server said no.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Status of the answer.
    pub status: u16,
    /// Its text, in three parts.
    pub message: String,
}

/// A body.
pub enum Sent {
    /// None.
    Nothing,
    /// JSON.
    Json(Value),
    /// A component.
    Wasm(Vec<u8>),
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl ServerArgs {
    /// One request.
    pub fn ask(&self, method: &str, path: &str, sent: Sent) -> anyhow::Result<Value> {
        let (mut stream, host, token) = self.connect()?;
        let (kind, body) = match sent {
            Sent::Nothing => ("", Vec::new()),
            Sent::Json(value) => ("application/json", serde_json::to_vec(&value)?),
            Sent::Wasm(bytes) => ("application/wasm", bytes),
        };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        if !kind.is_empty() {
            head.push_str(&format!("Content-Type: {kind}\r\n"));
        }
        if let Some(token) = token {
            head.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        let lost = |e: std::io::Error| self.lost(&e);
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).map_err(lost)?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).map_err(lost)?;
        self.parsed(&answer)
    }

    fn connect(&self) -> anyhow::Result<(Box<dyn Stream>, String, Option<String>)> {
        if let Some(admin) = &self.admin {
            let path = admin.strip_prefix("unix:").unwrap_or(admin);
            let stream = UnixStream::connect(path).map_err(|e| self.lost(&e))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            return Ok((Box::new(stream), "localhost".to_string(), None));
        }
        let (Some(server), Some(file)) = (&self.server, &self.admin_token_file) else {
            return Err(UsageError::new(
                "this verb",
                "it talks to a running server, and none is named",
                "give --admin unix:PATH, or --server http://HOST:PORT with --admin-token-file FILE",
            )
            .into());
        };
        let host = server.strip_prefix("http://").unwrap_or(server).trim_end_matches('/');
        if server.starts_with("https://") || host.contains(['/', '@', '\r', '\n']) {
            return Err(UsageError::new(
                format!("--server {}", clean(server, 200)),
                "it must be http://HOST:PORT, without a path",
                "for TLS, forward a port (ssh -L) and name the local end",
            )
            .into());
        }
        let token = std::fs::read_to_string(file).map_err(|e| {
            UsageError::new(
                format!("--admin-token-file {}", file.display()),
                e.to_string(),
                "give the file that the server was started with",
            )
        })?;
        let token = token.trim_end_matches(['\r', '\n']);
        if !token.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err(UsageError::new(
                format!("--admin-token-file {}", file.display()),
                "a token is one line of printable ASCII characters",
                "give the file that the server was started with",
            )
            .into());
        }
        let stream = TcpStream::connect(host).map_err(|e| self.lost(&e))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok((Box::new(stream), host.to_string(), Some(token.to_string())))
    }

    fn name(&self) -> &str {
        self.admin.as_deref().or(self.server.as_deref()).unwrap_or("the server")
    }

    fn lost(&self, e: &std::io::Error) -> UsageError {
        let what = format!("the server at {}", clean(self.name(), 200));
        UsageError::new(
            what,
            e.to_string(),
            "check that `patchhost serve` runs there, with --admin or --admin-token-file",
        )
    }

    fn parsed(&self, answer: &[u8]) -> anyhow::Result<Value> {
        let odd =
            |why: &str| UsageError::new(format!("the answer of {}", clean(self.name(), 200)), why, "check the address");
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| odd("it is not HTTP"))?;
        let head = String::from_utf8_lossy(&answer[..end]);
        let status = head.split(' ').nth(1).and_then(|s| s.parse::<u16>().ok()).filter(|_| head.starts_with("HTTP/1."));
        let status = status.ok_or_else(|| odd("it is not HTTP"))?;
        let body: Value = serde_json::from_slice(&answer[end + 4..]).map_err(|_| odd("its body is not JSON"))?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let message = body.pointer("/error/message").and_then(Value::as_str).unwrap_or("the server gave no reason");
        // Lines of the server's own three parts, and nothing that a terminal would obey.
        let message = message.lines().map(|line| clean(line, 2000)).collect::<Vec<_>>().join("\n");
        Err(Refused { status, message }.into())
    }
}
