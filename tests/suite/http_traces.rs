//! Traces of requests, refits and swaps, as a collector gets them. The collector here reads the bytes by itself.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http_client::{Server, TOKEN, token_file};
use crate::http_rl::{file, step};

/// Takes spans over OTLP/HTTP.
struct Collector {
    url: String,
    got: Arc<Mutex<Got>>,
}

#[derive(Default)]
struct Got {
    spans: Vec<Span>,
    resource: BTreeMap<String, Value>,
    heads: Vec<String>,
}

#[derive(Debug, Clone, Default)]
struct Span {
    name: String,
    trace: String,
    id: String,
    parent: String,
    kind: u64,
    attributes: BTreeMap<String, Value>,
    events: Vec<String>,
    /// 0 unset, 2 an error; and its text.
    status: (u64, String),
    nanos: (u64, u64),
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let got = Arc::new(Mutex::new(Got::default()));
        let to = Arc::clone(&got);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let to = Arc::clone(&to);
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream);
                    while let Some((head, body)) = request(&mut reader) {
                        to.lock().unwrap().take(head, &body);
                        let answer =
                            "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";
                        reader.get_mut().write_all(answer.as_bytes()).unwrap();
                    }
                });
            }
        });
        Self { url, got }
    }

    fn spans(&self) -> Vec<Span> {
        self.got.lock().unwrap().spans.clone()
    }

    /// Waits until a span is there that is asked for.
    #[track_caller]
    fn span(&self, is: impl Fn(&Span) -> bool) -> Span {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let spans = self.spans();
            if let Some(span) = spans.iter().find(|span| is(span)) {
                return span.clone();
            }
            assert!(Instant::now() < until, "it did not come; there are: {spans:#?}");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    #[track_caller]
    fn named(&self, name: &str) -> Span {
        self.span(|span| span.name == name)
    }
}

fn request(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

/// A field of a protobuf message: its number, and what it holds.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Field<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(n) => panic!("{n} is no message"),
        }
    }

    fn number(&self) -> u64 {
        match self {
            Self::Number(n) => *n,
            Self::Bytes(_) => panic!("this is a message"),
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).unwrap()
    }
}

fn fields(mut of: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn varint(of: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, rest) = of.split_first().unwrap();
            *of = rest;
            value |= u64::from(byte & 127) << shift;
            shift += 7;
            if byte & 128 == 0 {
                return value;
            }
        }
    }
    let mut all = Vec::new();
    while !of.is_empty() {
        let tag = varint(&mut of);
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut of)),
            wire @ (1 | 2 | 5) => {
                let length = match wire {
                    1 => 8,
                    5 => 4,
                    _ => varint(&mut of) as usize,
                };
                let (bytes, rest) = of.split_at(length);
                of = rest;
                match wire {
                    1 => Field::Number(u64::from_le_bytes(bytes.try_into().unwrap())),
                    5 => Field::Number(u64::from(u32::from_le_bytes(bytes.try_into().unwrap()))),
                    _ => Field::Bytes(bytes),
                }
            }
            wire => panic!("wire type {wire}"),
        };
        all.push((tag >> 3, field));
    }
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn value(of: &[u8]) -> Value {
    match fields(of).first() {
        Some((1, text)) => json!(text.text()),
        Some((2, flag)) => json!(flag.number() == 1),
        Some((3, number)) => json!(number.number() as i64),
        Some((4, number)) => json!(f64::from_bits(number.number())),
        Some((5, list)) => fields(list.bytes()).iter().map(|(_, one)| value(one.bytes())).collect(),
        _ => Value::Null,
    }
}

fn pair(of: &[u8]) -> (String, Value) {
    let all = fields(of);
    (all[0].1.text(), all.get(1).map_or(Value::Null, |(_, of)| value(of.bytes())))
}

impl Span {
    fn read(of: &[u8]) -> Self {
        let mut span = Self::default();
        for (number, field) in fields(of) {
            match number {
                1 => span.trace = hex(field.bytes()),
                2 => span.id = hex(field.bytes()),
                4 => span.parent = hex(field.bytes()),
                5 => span.name = field.text(),
                6 => span.kind = field.number(),
                7 => span.nanos.0 = field.number(),
                8 => span.nanos.1 = field.number(),
                9 => {
                    let (name, value) = pair(field.bytes());
                    let before = span.attributes.insert(name.clone(), value);
                    assert!(before.is_none(), "{name} comes twice");
                }
                11 => {
                    span.events.extend(fields(field.bytes()).iter().find(|(n, _)| *n == 2).map(|(_, name)| name.text()))
                }
                15 => {
                    for (number, field) in fields(field.bytes()) {
                        match number {
                            2 => span.status.1 = field.text(),
                            3 => span.status.0 = field.number(),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        span
    }

    #[track_caller]
    fn text(&self, name: &str) -> &str {
        self.attributes.get(name).and_then(Value::as_str).unwrap_or_else(|| panic!("{name}: {self:#?}"))
    }

    #[track_caller]
    fn number(&self, name: &str) -> f64 {
        self.attributes.get(name).and_then(Value::as_f64).unwrap_or_else(|| panic!("{name}: {self:#?}"))
    }
}

impl Got {
    fn take(&mut self, head: String, body: &[u8]) {
        self.heads.push(head);
        for (_, resource_spans) in fields(body) {
            for (number, field) in fields(resource_spans.bytes()) {
                match number {
                    1 => {
                        let attributes = fields(field.bytes());
                        self.resource =
                            attributes.iter().filter(|(n, _)| *n == 1).map(|(_, of)| pair(of.bytes())).collect();
                    }
                    2 => {
                        let spans = fields(field.bytes());
                        self.spans.extend(spans.iter().filter(|(n, _)| *n == 2).map(|(_, of)| Span::read(of.bytes())));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A server whose environment names no collector but the given one, and that sends what it has at once.
fn serve(args: &[&str], variables: &[(&str, &str)]) -> Server {
    let mut command = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"));
    command.args(["serve", "--format", "json", "--listen", "127.0.0.1:0"]).args(args);
    command.env("OTEL_BSP_SCHEDULE_DELAY", "100").envs(variables.iter().copied());
    Server::of(&mut command).unwrap()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn within_a_trace(server: &Server, path: &str, body: &Value) -> u16 {
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let headers = [("traceparent", traceparent.as_str()), ("Content-Type", "application/json")];
    server.send("POST", path, &headers, body.to_string().as_bytes()).status
}

#[test]
fn a_request_is_a_span_of_its_clients_trace() {
    let collector = Collector::start();
    let variables = [
        ("OTEL_SERVICE_NAME", "rollouts"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team=rl,rank=3"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=of-the-tests"),
    ];
    let server = serve(&["--otlp-endpoint", &collector.url], &variables);
    let asked = json!({ "prompt": "To be, or not", "max_tokens": 5, "temperature": 0.5, "top_p": 0.75, "n": 2, "ignore_eos": true });
    assert_eq!(within_a_trace(&server, "/v1/completions", &asked), 200);
    let span = collector.named("llm_request");
    assert_eq!((span.trace.as_str(), span.parent.as_str(), span.kind), (TRACE, PARENT, 2));
    assert_eq!((span.text("http.route"), span.number("http.response.status_code")), ("/v1/completions", 200.0));
    for (name, expected) in [
        ("gen_ai.request.max_tokens", 5.0),
        ("gen_ai.request.temperature", 0.5),
        ("gen_ai.request.top_p", 0.75),
        ("gen_ai.request.n", 2.0),
        ("gen_ai.usage.num_sequences", 2.0),
        ("gen_ai.usage.completion_tokens", 10.0),
    ] {
        assert_eq!(span.number(name), expected, "{name}");
    }
    assert!(span.number("gen_ai.usage.prompt_tokens") > 2.0);
    assert_eq!(span.attributes["gen_ai.response.finish_reasons"], json!(["length", "length"]));
    assert!(span.text("gen_ai.request.id").starts_with("cmpl-"), "{span:?}");
    let seconds = |name: &str| span.number(&format!("gen_ai.latency.{name}"));
    let (queue, first, all) = (seconds("time_in_queue"), seconds("time_to_first_token"), seconds("e2e"));
    assert!(queue >= 0.0 && queue <= first && first <= all, "{queue} {first} {all}");
    assert!(seconds("time_in_model_prefill") + seconds("time_in_model_decode") <= all);
    let took = (span.nanos.1 - span.nanos.0) as f64 / 1e9;
    assert!((took - all).abs() < 0.5, "{took} {all}");
    let info = server.get("/weight_info").good();
    assert_eq!(span.text("patchhost.patch_set"), info["patch_set"]);
    assert_eq!(span.text("patchhost.weight_version"), info["weight_version"]);
    assert_eq!(span.status, (0, String::new()));
    let got = collector.got.lock().unwrap();
    assert_eq!(got.resource["service.name"], "rollouts");
    assert_eq!((&got.resource["team"], &got.resource["rank"]), (&json!("rl"), &json!("3")));
    assert!(got.heads.iter().all(|head| head.starts_with("POST /v1/traces HTTP/1.1")), "{:?}", got.heads);
    assert!(got.heads[0].to_ascii_lowercase().contains("x-tenant: of-the-tests"), "{:?}", got.heads);
}

#[test]
fn streams_batches_and_refusals_are_traced_to_their_end() {
    let collector = Collector::start();
    let server = serve(&[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)]);
    let stream = json!({ "prompt": "Once", "max_tokens": 20, "ignore_eos": true, "stream": true });
    assert_eq!(within_a_trace(&server, "/v1/completions", &stream), 200);
    let span = collector.named("llm_request");
    assert_eq!(span.number("gen_ai.usage.completion_tokens"), 20.0, "it ends when the stream does");
    assert_eq!(span.attributes["gen_ai.response.finish_reasons"], json!(["length"]));
    // SGLang's batches are several requests inside.
    let batch = json!({ "text": ["a", "b", "c"], "sampling_params": { "max_new_tokens": 3, "ignore_eos": true } });
    assert_eq!(server.json("/generate", &batch).status, 200);
    let span = collector.span(|span| span.attributes.get("http.route") == Some(&json!("/generate")));
    assert_eq!((span.number("gen_ai.usage.num_sequences"), span.number("gen_ai.usage.completion_tokens")), (3.0, 9.0));
    assert_ne!(span.trace, TRACE, "who names no trace begins one");
    assert_eq!(span.parent, "");
    // A refusal is the client's fault, which its span says without being a server's error.
    assert_eq!(within_a_trace(&server, "/v1/completions", &json!({ "prompt": "a", "model": "none" })), 404);
    let span = collector.named("POST /v1/completions");
    assert_eq!((span.text("error.type"), span.status.0), ("404", 0));
    // Who decided that its trace is not followed is not followed; probes are not either.
    let unsampled = format!("00-{TRACE}-{PARENT}-00");
    let count = collector.spans().len();
    let headers = [("traceparent", unsampled.as_str()), ("Content-Type", "application/json")];
    assert_eq!(server.send("POST", "/v1/completions", &headers, br#"{"prompt":"a","max_tokens":1}"#).status, 200);
    for path in ["/health", "/readyz", "/metrics"] {
        assert_eq!(server.get(path).status, 200);
    }
    for broken in ["", "00-1-2-3", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"] {
        assert_eq!(server.send("GET", "/version", &[("traceparent", broken)], b"").status, 200);
    }
    collector.span(|_| collector.spans().len() >= count + 3);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(collector.spans().len(), count + 3, "{:#?}", collector.spans());
}

#[test]
fn refits_and_swaps_are_spans_with_the_patch_set() {
    let tmp = tempfile::tempdir().unwrap();
    let token = token_file(tmp.path(), TOKEN);
    let collector = Collector::start();
    let server = serve(&["--otlp-traces-endpoint", &collector.url, "--admin-token-file", &text(&token)], &[]);
    let first = collector.named("patchhost.refit");
    assert_eq!((first.parent.as_str(), first.status.0), ("", 0), "the first load is nobody's request");
    let start = server.get("/weight_info").good()["patch_set"].as_str().unwrap().to_string();
    assert_eq!(first.text("patchhost.patch_set"), start);

    let staged = server.as_admin("POST", "/admin/v1/stage", &json!({ "bundled": "fp8_block" })).good();
    let stage = collector.named("patchhost.stage");
    assert_eq!(stage.text("patchhost.patch.sha256"), staged["sha256"]);
    assert_eq!((stage.text("patchhost.patch.name"), stage.text("patchhost.actor")), ("fp8_block", "token"));
    for part in ["audit", "compile", "probe"] {
        assert_eq!(collector.named(&format!("patchhost.stage.{part}")).parent, stage.id, "{part}");
    }
    let http = collector.span(|span| span.id == stage.parent);
    assert_eq!((http.name.as_str(), &http.trace), ("POST /admin/v1/stage", &stage.trace));

    server.as_admin("POST", "/admin/v1/swap", &json!({ "to": staged["generation"], "reason": "a test" })).good();
    let swap = collector.named("patchhost.swap");
    assert_eq!((swap.text("patchhost.swap.state"), swap.text("patchhost.patch_set")), ("pending", start.as_str()));
    let headers = [("traceparent", &*format!("00-{TRACE}-{PARENT}-01")), ("Content-Type", "application/octet-stream")];
    let published = server.send("POST", "/update_weights?weight_version=step-7", &headers, &file(&step(1), &[])).good();
    let refit = collector.span(|span| span.name == "patchhost.refit" && span.trace == TRACE);
    assert_eq!(refit.text("patchhost.patch_set"), published["patch_set"]);
    assert_eq!(refit.text("patchhost.weight_version"), published["weight_version"]);
    assert_eq!(
        (refit.text("patchhost.swap.from"), &refit.events[..]),
        (start.as_str(), &["swap.landed".to_string()][..])
    );
    assert_eq!(refit.number("patchhost.bytes.received"), published["bytes"].as_f64().unwrap());
    assert_eq!(refit.number("patchhost.tensors.quantized"), published["quantized"].as_f64().unwrap());
    let steps: Vec<Span> = ["wait", "prove", "publish"]
        .map(|part| collector.span(|span| span.name == format!("patchhost.refit.{part}") && span.parent == refit.id))
        .into();
    assert!(steps.windows(2).all(|two| two[0].nanos.1 <= two[1].nanos.0) && steps[2].nanos.1 <= refit.nanos.1);

    let back = server.as_admin("POST", "/admin/v1/rollback", &json!({ "when": "now" })).good();
    let rollback = collector.named("patchhost.rollback");
    assert_eq!(
        (rollback.text("patchhost.swap.state"), rollback.text("patchhost.patch_set")),
        ("landed", start.as_str())
    );
    assert_eq!(back["landed"]["to"], start);

    // What is refused is an error, with why.
    let short = step(1).into_iter().skip(1).collect::<Vec<_>>();
    assert!(server.bytes("/update_weights", &file(&short, &[])).status >= 400);
    let refused = collector.span(|span| span.name == "patchhost.refit" && span.status.0 == 2);
    assert!(refused.status.1.contains("missing") || refused.status.1.contains("why:"), "{refused:#?}");
    let evil = server.as_admin("POST", "/admin/v1/swap", &json!({ "to": "0".repeat(64) }));
    assert_ne!(evil.status, 200);
    let refused = collector.span(|span| span.name == "patchhost.swap" && span.status.0 == 2);
    assert_eq!(refused.text("patchhost.patch_set"), start);
}

/// A collector that is gone costs a warning, and the end of the server no more than its moment.
#[test]
fn a_collector_that_is_gone_costs_nothing() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let (gone_at, silent_at) = (address(&gone), address(&silent));
    drop(gone);
    for url in [gone_at, silent_at] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"))
            .args(["serve", "--format", "json", "--listen", "127.0.0.1:0", "--otlp-endpoint", &url])
            .env("OTEL_BSP_SCHEDULE_DELAY", "50")
            .env("OTEL_EXPORTER_OTLP_TIMEOUT", "20000")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let at = format!("{}/v1/completions", ready["listen"][0].as_str().unwrap());
        for _ in 0..20 {
            let body = json!({ "prompt": "a", "max_tokens": 2 });
            assert_eq!(ureq::post(&at).send_json(body).unwrap().status(), 200);
            std::thread::sleep(Duration::from_millis(20));
        }
        let began = Instant::now();
        assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
        assert!(child.wait().unwrap().success());
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let warnings = said.lines().filter(|line| line.contains("traces")).count();
        assert!((1..=3).contains(&warnings), "{said}");
    }
    drop(silent);
}

#[test]
fn the_last_spans_are_sent_at_the_end() {
    let collector = Collector::start();
    let server = serve(&["--otlp-endpoint", &collector.url], &[("OTEL_BSP_SCHEDULE_DELAY", "600000")]);
    server.json("/v1/completions", &json!({ "prompt": "a", "max_tokens": 1 })).good();
    assert!(collector.spans().is_empty());
    assert!(Command::new("kill").arg(server.pid().to_string()).status().unwrap().success());
    collector.named("llm_request");
}

#[test]
fn a_collector_that_cannot_be_spoken_to_stops_the_start() {
    for (flag, url, next) in [
        ("--otlp-endpoint", "grpc://localhost:4317", "http://localhost:4318"),
        ("--otlp-traces-endpoint", "grpc://localhost:4317", "http://localhost:4318"),
        ("--otlp-endpoint", "https://collector.example", "http://localhost:4318"),
        ("--otlp-endpoint", "localhost:4318", "http://localhost:4318"),
    ] {
        let Err(error) = Server::try_start(&[flag, url]) else { panic!("it started") };
        assert!(error.contains(flag) && error.contains(next) && error.contains("why"), "{error}");
    }
}
