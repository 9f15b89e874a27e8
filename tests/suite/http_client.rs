//! A `patchhost serve` that is spoken to in every form that trainers use: JSON, bytes, tokens, sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A token of the tests.
pub const TOKEN: &str = "0123456789abcdef-of-the-tests";

/// A running server.
pub struct Server {
    child: Child,
    pub url: String,
}

/// An answer.
pub struct Answer {
    pub status: u16,
    pub text: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    #[track_caller]
    pub fn good(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// Asserts the status and that the error, in whichever form, has three parts; gives its text.
    #[track_caller]
    pub fn refused(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        let json = self.json();
        let text = match json.pointer("/error/message") {
            Some(text) => text.as_str().unwrap().to_string(),
            None => {
                assert_eq!(json["success"], false, "{json}");
                json["message"].as_str().unwrap().to_string()
            }
        };
        assert!(text.starts_with("refused: ") && text.contains("\n  why: ") && text.contains("\n  next: "), "{text}");
        text
    }
}

/// A file with a token that only this user can read.
pub fn token_file(folder: &Path, token: &str) -> PathBuf {
    let path = folder.join("token");
    std::fs::write(&path, token).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

impl Server {
    /// The bundled model on a free port.
    pub fn start(args: &[&str]) -> Self {
        Self::try_start(args).unwrap_or_else(|e| panic!("it did not start: {e}"))
    }

    /// The same; what it said where it did not start.
    pub fn try_start(args: &[&str]) -> Result<Self, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"));
        command
            .args(["serve", "--format", "json"])
            .args(if args.contains(&"--listen") { &[][..] } else { &["--listen", "127.0.0.1:0"] })
            .args(args);
        Self::of(&mut command)
    }

    /// What a command of the test's own starts.
    pub fn of(command: &mut Command) -> Result<Self, String> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_default();
        let Some(url) = ready["listen"][0].as_str() else {
            let mut errors = String::new();
            child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            let _ = child.wait();
            return Err(format!("{line}{errors}"));
        };
        Ok(Self { child, url: url.to_string() })
    }

    /// The same of a server that listens on all addresses: it is asked over loopback.
    pub fn at_loopback(mut self) -> Self {
        self.url = self.url.replace("0.0.0.0", "127.0.0.1");
        self
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A request with any headers.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)))
            .build()
            .into();
        let url = format!("{}{path}", self.url);
        let mut response = match method {
            "GET" => {
                let mut request = agent.get(&url);
                for (name, value) in headers {
                    request = request.header(*name, *value);
                }
                request.call().unwrap()
            }
            _ => {
                let mut request = agent.post(&url);
                for (name, value) in headers {
                    request = request.header(*name, *value);
                }
                request.send(body).unwrap()
            }
        };
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(256 << 20).read_to_string().unwrap();
        Answer { status, text }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    /// Without a body.
    pub fn post(&self, path: &str) -> Answer {
        self.send("POST", path, &[], b"")
    }

    pub fn json(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    pub fn bytes(&self, path: &str, body: &[u8]) -> Answer {
        self.send("POST", path, &[("Content-Type", "application/octet-stream")], body)
    }

    pub fn as_admin(&self, method: &str, path: &str, body: &Value) -> Answer {
        let bearer = format!("Bearer {TOKEN}");
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        self.send(method, path, &headers, body.to_string().as_bytes())
    }

    /// SHA-256 of every runtime tensor.
    pub fn checksums(&self) -> std::collections::BTreeMap<String, String> {
        let answer = self.json("/weight_checker", &serde_json::json!({ "action": "checksum" })).good();
        serde_json::from_value(answer["checksums"].clone()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request over a unix socket.
pub fn over_socket(socket: &Path, method: &str, path: &str, body: &Value) -> Answer {
    let mut stream = UnixStream::connect(socket).unwrap();
    let body = body.to_string();
    // In one piece: a server that needs no body answers, and closes, before it has read one.
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, text: body.to_string() }
}

/// Standard base64.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().enumerate().fold(0u32, |n, (i, b)| n | u32::from(*b) << (16 - 8 * i));
        for i in 0..4 {
            let symbol = ALPHABET[(n >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(symbol) } else { '=' });
        }
    }
    out
}
