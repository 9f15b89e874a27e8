//! The admin API from the command line: one request over the admin socket, or over TCP with the admin token.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use patchhost_runtime::error::Refusal;
use serde_json::Value;

use super::environment::variable;
use super::failure::{Result, UsageError};
use crate::base::text::clean;
use crate::base::{Code, Exit};

/// How long an answer may take: a swap `now` loads all weights again.
const PATIENCE: Duration = Duration::from_secs(3600);
/// An answer is cut after so many bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// Which server is asked, and what opens its door.
#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    /// The admin socket of the server [default: $PATCHHOST_ADMIN]
    #[arg(long, value_name = "unix:PATH", conflicts_with = "server")]
    admin: Option<String>,
    /// The server, as http://HOST:PORT; needs its admin token [default: $PATCHHOST_SERVER]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The file with the server's admin token [default: $PATCHHOST_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
}

/// The two ways into a server's admin API.
enum Door {
    Socket(String),
    Tcp { server: String, token_file: PathBuf },
}

/// The server answered, and the answer is an error.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// Its text, in three parts.
    pub message: String,
}

impl Exit for Refused {
    fn exit(&self) -> Code {
        // The server's status says whose fault it is.
        match self.status {
            400 | 401 | 404 | 413 | 415 => Code::Usage,
            _ => Code::Refused,
        }
    }

    fn parts(&self) -> Refusal {
        // The answer has one text for all three: here it came over a socket, and nothing else tells them apart.
        let text = self.message.strip_prefix("refused: ").unwrap_or(&self.message);
        let parts = text.split_once("\n  why: ").and_then(|(what, rest)| {
            let (why, next) = rest.split_once("\n  next: ")?;
            Some((what.to_owned(), why.to_owned(), next.to_owned()))
        });
        let (what, why, next) = parts.unwrap_or_else(|| {
            let what = format!("this request (the server answered {})", self.status);
            (what, text.to_owned(), "look at the log of the server".to_owned())
        });
        Refusal { what, why, next }
    }
}

/// The body of a request.
pub enum Sent {
    Nothing,
    Json(Value),
    /// The bytes of a component.
    Wasm(Vec<u8>),
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl ServerArgs {
    /// What was given, or what the environment says where nothing was.
    fn door(&self) -> Result<Door, UsageError> {
        let server = self.server.clone().or_else(|| variable("PATCHHOST_SERVER").filter(|_| self.admin.is_none()));
        let token_file = self.admin_token_file.clone().or_else(|| variable("PATCHHOST_TOKEN_FILE").map(PathBuf::from));
        match (&self.admin, server, token_file) {
            (Some(path), _, _) => Ok(Door::Socket(path.clone())),
            (None, Some(server), Some(token_file)) => Ok(Door::Tcp { server, token_file }),
            (None, Some(server), None) => Err(UsageError::new(
                format!("server {}", clean(&server, 200)),
                "over TCP the admin API asks for a token",
                "give --admin-token-file FILE, or set PATCHHOST_TOKEN_FILE",
            )),
            (None, None, _) => variable("PATCHHOST_ADMIN").map(Door::Socket).ok_or_else(|| {
                UsageError::new(
                    "this verb",
                    "it talks to a running server, and none is named",
                    "give --admin unix:PATH, or --server http://HOST:PORT with --admin-token-file FILE (or set \
                     PATCHHOST_ADMIN, or PATCHHOST_SERVER and PATCHHOST_TOKEN_FILE)",
                )
            }),
        }
    }

    /// Sends one request and gives the JSON of its answer.
    pub fn ask(&self, method: &str, path: &str, sent: Sent) -> Result<Value> {
        self.door()?.ask(method, path, sent)
    }
}

impl Door {
    fn ask(&self, method: &str, path: &str, sent: Sent) -> Result<Value> {
        let (mut stream, host, token) = self.connect()?;
        let (kind, body) = match sent {
            Sent::Nothing => ("", Vec::new()),
            Sent::Json(value) => ("application/json", value.to_string().into_bytes()),
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

    fn connect(&self) -> Result<(Box<dyn Stream>, String, Option<String>)> {
        let (server, file) = match self {
            Self::Socket(name) => {
                let path = name.strip_prefix("unix:").unwrap_or(name);
                let stream = UnixStream::connect(path).map_err(|e| self.lost(&e))?;
                stream.set_read_timeout(Some(PATIENCE)).map_err(|e| self.lost(&e))?;
                return Ok((Box::new(stream), "localhost".to_string(), None));
            }
            Self::Tcp { server, token_file } => (server, token_file),
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
        let token = patchhost_runtime::files::read_text(file, patchhost_runtime::files::CONFIG).map_err(|e| {
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
        stream.set_read_timeout(Some(PATIENCE)).map_err(|e| self.lost(&e))?;
        Ok((Box::new(stream), host.to_string(), Some(token.to_string())))
    }

    fn name(&self) -> &str {
        match self {
            Self::Socket(name) | Self::Tcp { server: name, .. } => name,
        }
    }

    fn lost(&self, e: &std::io::Error) -> UsageError {
        let what = format!("the server at {}", clean(self.name(), 200));
        UsageError::new(
            what,
            e.to_string(),
            "check that `patchhost serve` runs there, with --admin or --admin-token-file",
        )
    }

    fn parsed(&self, answer: &[u8]) -> Result<Value> {
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
