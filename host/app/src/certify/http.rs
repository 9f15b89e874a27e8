//! Requests to a server, and its answers as the kit reads them.

use std::io::Write as _;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde_json::Value;

use super::error::KitError;
use crate::base::text::clean;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take: a large model is loaded before it comes.
const ANSWER: Duration = Duration::from_secs(1800);
/// An answer is read up to so many bytes.
const MOST_BYTES: u64 = 64 << 20;
/// So many bytes of an answer's text are shown.
const SHOWN: usize = 400;

/// A server.
pub struct Client {
    agent: ureq::Agent,
    url: String,
    token: Option<String>,
}

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body; null where it is no JSON.
    pub json: Value,
    text: String,
}

impl Answer {
    /// Whether the status says that it went well.
    pub fn good(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Status and reason, for a line of a report.
    pub fn said(&self) -> String {
        let places = ["/error/message", "/message", "/detail", "/error"];
        let message = places.iter().find_map(|place| self.json.pointer(place).and_then(Value::as_str));
        // On one line: reports have one for each case.
        let message = message.unwrap_or(&self.text).split_whitespace().collect::<Vec<_>>().join(" ");
        format!("HTTP {}: {}", self.status, clean(&message, SHOWN))
    }
}

impl Client {
    /// A server at `http://HOST:PORT`, with a token where it asks for one.
    pub fn new(url: &str, token: Option<String>) -> Result<Self, KitError> {
        let host = url.strip_prefix("http://").map(|host| host.trim_end_matches('/'));
        let Some(host) = host.filter(|host| !host.is_empty() && !host.contains(['/', '@', ' ', '\r', '\n'])) else {
            return Err(KitError::usage(
                format!("server {}", clean(url, 200)),
                "it must be http://HOST:PORT, without a path",
                "for TLS, forward a port (ssh -L) and name the local end",
            ));
        };
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // A connection of its own for each request: servers close idle ones (uvicorn after 5 s), and an update that meets such
            // a close would look like an engine that died.
            .max_idle_connections(0)
            .max_idle_connections_per_host(0)
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(ANSWER));
        Ok(Self { agent: config.build().into(), url: format!("http://{host}"), token })
    }

    /// Where the server is: `http://HOST:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A GET.
    pub fn get(&self, path: &str) -> Result<Answer, KitError> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        self.answer(path, request.call())
    }

    /// A POST of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer, KitError> {
        self.send(path, "application/json", body.to_string().as_bytes())
    }

    /// A POST of bytes.
    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Result<Answer, KitError> {
        self.send(path, "application/octet-stream", body)
    }

    fn send(&self, path: &str, kind: &str, body: &[u8]) -> Result<Answer, KitError> {
        let mut request = self.agent.post(format!("{}{path}", self.url)).header("Content-Type", kind);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        self.answer(path, request.send(body))
    }

    /// Sends the first half of a body and hangs up, as a sender does that dies.
    pub fn hang_up(&self, path: &str, kind: &str, body: &[u8]) -> Result<(), KitError> {
        let host = self.url.trim_start_matches("http://");
        let address = host.to_socket_addrs().map_err(|e| self.lost(path, &e.to_string()))?.next();
        let address = address.ok_or_else(|| self.lost(path, "the name has no address"))?;
        let token = self.token.as_ref().map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n{token}Content-Length: {}\r\n\r\n",
            body.len()
        );
        let half = body.get(..body.len() / 2).unwrap_or_default();
        let mut stream = TcpStream::connect_timeout(&address, CONNECT).map_err(|e| self.lost(path, &e.to_string()))?;
        // The server may hang up first: it is the same to the update.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(half));
        Ok(())
    }

    fn answer(
        &self,
        path: &str,
        got: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Answer, KitError> {
        let mut got = got.map_err(|e| self.lost(path, &e.to_string()))?;
        let status = got.status().as_u16();
        let bytes = got.body_mut().with_config().limit(MOST_BYTES).read_to_vec();
        let bytes = bytes.map_err(|e| self.lost(path, &e.to_string()))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Answer { status, json: serde_json::from_str(&text).unwrap_or(Value::Null), text })
    }

    fn lost(&self, path: &str, why: &str) -> KitError {
        let what = format!("the server at {}, asked for {path}", self.url);
        KitError::host(what, clean(why, SHOWN), "check that the server runs there, and look at its log")
    }
}
