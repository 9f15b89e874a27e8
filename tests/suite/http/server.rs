//! A server under test, and requests to it.

use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Server {
    child: Child,
    /// What it prints, where somebody reads it.
    out: Option<BufReader<ChildStdout>>,
    /// What it said when it was ready.
    pub ready: Value,
    pub agent: Agent,
}

pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub text: String,
}

impl Server {
    /// Starts a server of the bundled model on a free port, and waits until it is ready.
    pub fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"))
            .args(["serve", "--listen", "127.0.0.1:0", "--format", "json", "--threads", "1"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE)).build();
        Self { child, out: Some(out), ready, agent: config.new_agent() }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ready["port"])
    }

    pub fn get(&self, path: &str) -> Answer {
        read(self.agent.get(self.url(path)).call().unwrap())
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        read(self.agent.post(self.url(path)).send_json(body).unwrap())
    }

    /// A body that may be no JSON, with a content type. A server that refuses a large body hangs up while it is still
    /// being sent: whether this client sees the answer or a broken pipe is a race, so it tries again.
    pub fn post_raw(&self, path: &str, kind: &str, body: &[u8]) -> Answer {
        for _ in 0..50 {
            match self.agent.post(self.url(path)).header("content-type", kind).send(body) {
                Err(ureq::Error::Io(e)) if hung_up(e.kind()) => {}
                answer => return read(answer.unwrap()),
            }
        }
        panic!("{path}: the connection breaks every time");
    }

    /// The chunks of a stream; it must end with `[DONE]`.
    pub fn stream(&self, path: &str, mut body: Value) -> Vec<Value> {
        body["stream"] = json!(true);
        let answer = self.post(path, &body);
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        chunks(&answer.text)
    }

    /// Opens a stream and gives what reads it.
    pub fn open(&self, path: &str, mut body: Value) -> BufReader<Box<dyn Read>> {
        body["stream"] = json!(true);
        let response = self.agent.post(self.url(path)).send_json(&body).unwrap();
        assert_eq!(response.status(), 200);
        BufReader::new(Box::new(response.into_body().into_reader()))
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Its largest resident set until now, in KiB.
    pub fn peak_kib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    pub fn port(&self) -> u16 {
        u16::try_from(self.ready["port"].as_u64().unwrap()).unwrap()
    }

    /// Nobody reads what it prints from here on.
    pub fn close_output(&mut self) {
        self.out = None;
    }

    /// Waits for the end; the exit code.
    pub fn code(&mut self) -> i32 {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(since.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end; the exit code and the last line.
    pub fn ended(mut self) -> (i32, Value) {
        let code = self.code();
        let mut rest = String::new();
        self.out.take().unwrap().read_to_string(&mut rest).unwrap();
        let last = serde_json::from_str(rest.trim()).unwrap_or_else(|e| panic!("{e}: {rest}"));
        (code, last)
    }

    pub fn status(&self) -> Value {
        self.get("/status").good()
    }

    /// Waits until the status is as it should be.
    pub fn until(&self, what: &str, right: impl Fn(&Value) -> bool) -> Value {
        let since = Instant::now();
        loop {
            let status = self.status();
            if right(&status) {
                return status;
            }
            assert!(since.elapsed() < PATIENCE, "{what}: {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a connection that the other side has closed looks like, while a body is sent or when the answer is read.
fn hung_up(kind: std::io::ErrorKind) -> bool {
    matches!(kind, BrokenPipe | ConnectionReset | ConnectionAborted | UnexpectedEof)
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> Answer {
    let text = response.body_mut().read_to_string().unwrap();
    Answer { status: response.status().as_u16(), headers: response.headers().clone(), text }
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    #[track_caller]
    pub fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// Asserts status and field of an error in OpenAI's form with three parts; its message.
    #[track_caller]
    pub fn refused(&self, status: u16, param: Option<&str>) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        let json = self.json();
        let error = &json["error"];
        assert_eq!(error["param"].as_str(), param, "{json}");
        assert!(error["type"].is_string() && error["code"].is_string(), "{json}");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with("refused: "), "{message}");
        assert!(message.contains("\n  why: ") && message.contains("\n  next: "), "not three parts: {message}");
        message.to_string()
    }
}

/// The JSON of each event of a stream.
pub fn chunks(text: &str) -> Vec<Value> {
    let mut data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.iter().map(|d| serde_json::from_str(d).unwrap_or_else(|e| panic!("{e}: {d}"))).collect()
}

/// Joins a field of all chunks of one choice: texts to one, lists to one.
pub fn joined(chunks: &[Value], choice: usize, pointer: &str) -> Value {
    let choices = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap());
    let mut parts =
        choices.filter(|c| c["index"] == choice).filter_map(|c| c.pointer(pointer)).filter(|v| !v.is_null());
    let Some(first) = parts.next() else { return Value::Null };
    parts.fold(first.clone(), |all, part| match (all, part) {
        (Value::String(a), Value::String(b)) => Value::String(a + b),
        (Value::Array(mut a), Value::Array(b)) => {
            a.extend(b.clone());
            Value::Array(a)
        }
        (_, last) => last.clone(),
    })
}
