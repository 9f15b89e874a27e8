//! Who may ask the model, and by which name: API keys, and the `Host` of a request.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::http_client::{Answer, Server, TOKEN, over_socket, token_file};

const KEY: &str = "a-key-of-the-tests";

/// Routes that ask for a key where the server has some.
const KEYED: [(&str, &str); 9] = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/shakespeare"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/status"),
    ("POST", "/generate"),
    ("POST", "/inference/v1/generate"),
];
/// Routes for trainers: a token of theirs does too.
const TRAINERS: [(&str, &str); 6] = [
    ("GET", "/weight_info"),
    ("GET", "/server_info"),
    ("GET", "/get_model_info"),
    ("GET", "/is_paused"),
    ("POST", "/resume"),
    ("GET", "/flush_cache"),
];
/// Routes that anybody may ask.
const OPEN: [&str; 11] = [
    "/health",
    "/health/",
    "/healthz",
    "/livez",
    "/ready",
    "/readyz",
    "/ping",
    "/health_generate",
    "/version",
    "/metrics",
    "/openapi.json",
];

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn bearer(server: &Server, method: &str, path: &str, key: &str) -> Answer {
    let value = format!("Bearer {key}");
    server.send(method, path, &[("Authorization", &value), ("Content-Type", "application/json")], b"{}")
}

/// A request as it is, with a head of its own.
fn raw(server: &Server, head: &str) -> Answer {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = if head.to_ascii_lowercase().contains("www-authenticate: bearer") {
        format!("{body}\n(asks)")
    } else {
        body.into()
    };
    Answer { status, text: body }
}

fn named(server: &Server, path: &str, host: &str) -> Answer {
    raw(server, &format!("GET {path} HTTP/1.1\r\nHost: {host}"))
}

#[test]
fn only_who_has_a_key_may_ask() {
    let server = Server::start(&["--api-key", KEY, "--api-key", "another-key-of-the-tests"]);
    for (method, path) in KEYED.into_iter().chain(TRAINERS) {
        let refusal = server.send(method, path, &[("Content-Type", "application/json")], b"{}").refused(401);
        assert!(refusal.contains("Authorization: Bearer"), "{path}: {refusal}");
        for wrong in ["", "another", &KEY[1..], "A-KEY-OF-THE-TESTS"] {
            let refusal = bearer(&server, method, path, wrong).refused(401);
            assert!(!refusal.contains("of-the-tests"), "{path}: {refusal}");
        }
        let query = format!("{path}?api_key={KEY}");
        assert_eq!(server.send(method, &query, &[("X-Api-Key", KEY)], b"{}").status, 401, "{path}");
        assert_ne!(bearer(&server, method, path, KEY).status, 401, "{path}");
        assert_ne!(bearer(&server, method, path, "another-key-of-the-tests").status, 401, "{path}");
    }
    for path in OPEN {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    // In the form of OpenAI, with what it asks for.
    let answer = raw(&server, "GET /v1/models HTTP/1.1\r\nHost: localhost");
    assert!(answer.status == 401 && answer.text.ends_with("(asks)"), "{}", answer.text);
    let body: Value = serde_json::from_str(answer.text.trim_end_matches("(asks)")).unwrap();
    assert_eq!(
        (&body["error"]["code"], &body["error"]["type"]),
        (&json!("invalid_api_key"), &json!("authentication_error"))
    );
    // What is no route is said to everybody, and so is what browsers ask first.
    assert_eq!(server.get("/v1/nothing").status, 404);
    assert_eq!(raw(&server, "OPTIONS /v1/models HTTP/1.1\r\nHost: localhost").status, 405);
    let model = bearer(&server, "GET", "/v1/models", KEY).good()["data"][0]["id"].clone();
    let asked = json!({ "model": model, "prompt": "To be", "max_tokens": 4 }).to_string();
    let value = format!("Bearer {KEY}");
    let headers = [("Authorization", value.as_str()), ("Content-Type", "application/json")];
    assert!(
        server.send("POST", "/v1/completions", &headers, asked.as_bytes()).good()["choices"][0]["text"].is_string()
    );
}

/// Every route of the document asks for something, but for those that are listed here.
#[test]
fn no_route_is_forgotten() {
    let tmp = tempfile::tempdir().unwrap();
    let token = token_file(tmp.path(), TOKEN);
    let server = Server::start(&[
        "--api-key",
        KEY,
        "--rl",
        "token",
        "--rl-token-file",
        &text(&token),
        "--admin-token-file",
        &text(&token),
    ]);
    let document = server.get("/openapi.json").good();
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let url = path.replace("{model}", "x");
        for method in item.as_object().unwrap().keys().map(|m| m.to_uppercase()) {
            let status = server.send(&method, &url, &[("Content-Type", "application/json")], b"{}").status;
            let probe = ["/livez", "/ping"].contains(&path.as_str());
            assert_eq!(status == 401, !(OPEN.contains(&path.as_str()) || probe), "{method} {path}: {status}");
            asked += usize::from(status == 401);
        }
    }
    assert!(asked > 50, "{asked}");
}

#[test]
fn keys_and_tokens_open_their_own_doors() {
    let tmp = tempfile::tempdir().unwrap();
    let (rl, admin) = (tmp.path().join("rl"), tmp.path().join("admin"));
    for (path, token) in [(&rl, "a-token-of-the-trainer"), (&admin, "a-token-of-the-admin")] {
        std::fs::write(path, token).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let socket = tmp.path().join("admin.sock");
    let (rl, admin, at) = (text(&rl), text(&admin), format!("unix:{}", text(&socket)));
    let common = ["--api-key", KEY, "--rl-token-file", &rl, "--admin-token-file", &admin, "--admin", &at];
    for mode in ["on", "token"] {
        let server = Server::start(&[&common[..], &["--rl", mode]].concat());
        for token in ["a-token-of-the-trainer", "a-token-of-the-admin"] {
            for (method, path) in KEYED.iter().filter(|(_, path)| !path.ends_with("/generate")) {
                bearer(&server, method, path, token).refused(401);
            }
            for (method, path) in TRAINERS {
                assert_eq!(bearer(&server, method, path, token).status, 200, "{mode} {path}");
            }
            assert_ne!(bearer(&server, "POST", "/generate", token).status, 401, "a trainer has one header for all");
        }
        bearer(&server, "GET", "/admin/v1/status", KEY).refused(401);
        bearer(&server, "GET", "/admin/v1/status", "a-token-of-the-trainer").refused(401);
        assert_eq!(bearer(&server, "GET", "/admin/v1/status", "a-token-of-the-admin").status, 200);
        assert_eq!(bearer(&server, "GET", "/weight_info", KEY).status, 200);
        // Where trainers have a token, a key does not control.
        let status = bearer(&server, "POST", "/resume", KEY).status;
        assert_eq!(status, if mode == "token" { 401 } else { 200 });
        // Who may open the admin socket needs no key.
        over_socket(&socket, "GET", "/v1/models", &json!({})).good();
    }
}

#[test]
fn a_file_of_keys_is_private_and_read_again_at_sighup() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("keys");
    let write = |text: &str, mode: u32| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for (keys, mode, why) in [("some-key", 0o644, "0644"), ("# none\n", 0o600, "no key"), ("a key", 0o600, "line 1")] {
        write(keys, mode);
        let Err(error) = Server::try_start(&["--api-key-file", &text(&path)]) else { panic!("it started") };
        assert!(error.contains(why) && error.contains("--api-key-file") && !error.contains("some-key"), "{error}");
    }
    for given in ["", "a key"] {
        let Err(error) = Server::try_start(&["--api-key", given]) else { panic!("it started") };
        assert!(error.contains("refused: --api-key") && !error.contains("a key\n"), "{error}");
    }
    write("# of the team\nfirst-key-of-the-file\n", 0o600);
    let server = Server::start(&["--api-key-file", &text(&path)]);
    let status = |key: &str| bearer(&server, "GET", "/v1/models", key).status;
    assert_eq!((status("first-key-of-the-file"), status("second-key-of-the-file")), (200, 401));
    write("second-key-of-the-file\n", 0o600);
    let hangup = || assert!(Command::new("kill").args(["-HUP", &server.pid().to_string()]).status().unwrap().success());
    hangup();
    let turned = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        status("second-key-of-the-file") == 200
    });
    assert!(turned && status("first-key-of-the-file") == 401);
    // What cannot be read changes nothing: nobody is let in, and nobody is locked out.
    write("third-key-of-the-file\n", 0o644);
    hangup();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((status("second-key-of-the-file"), status("third-key-of-the-file")), (200, 401));
}

#[test]
fn a_key_of_the_environment_counts_where_no_flag_gives_one() {
    let start = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"));
        command.args(["serve", "--format", "json", "--listen", "127.0.0.1:0"]).args(args).env("PATCHHOST_API_KEY", KEY);
        Server::of(&mut command).unwrap()
    };
    let server = start(&[]);
    assert_eq!((bearer(&server, "GET", "/v1/models", KEY).status, server.get("/v1/models").status), (200, 401));
    let server = start(&["--api-key", "of-the-flag"]);
    let status = |key: &str| bearer(&server, "GET", "/v1/models", key).status;
    assert_eq!((status("of-the-flag"), status(KEY)), (200, 401));
}

/// A page whose name was made to mean 127.0.0.1 says its own name.
#[test]
fn a_rebound_page_is_refused_on_loopback() {
    let server = Server::start(&[]);
    let port = server.url.rsplit_once(':').unwrap().1.to_string();
    let all = [
        "/status",
        "/server_info",
        "/weight_info",
        "/flush_cache",
        "/v1/models",
        "/metrics",
        "/openapi.json",
        "/admin/v1/status",
    ];
    for path in all {
        for host in ["evil.example", "localhost.evil.example", "0.0.0.0", "192.168.1.1", "x@evil.example"] {
            let refusal = named(&server, path, &format!("{host}:{port}")).refused(403);
            assert!(refusal.contains("Host: ") && refusal.contains("--allowed-host"), "{refusal}");
        }
    }
    for host in ["localhost", "127.0.0.1", "[::1]", "app.localhost"] {
        for path in ["/status", "/flush_cache", "/v1/models"] {
            assert_eq!(named(&server, path, &format!("{host}:{port}")).status, 200, "{host} {path}");
        }
    }
    // Probes come by any name, and programs may leave it away.
    for path in ["/health", "/healthz", "/readyz", "/health/"] {
        assert_eq!(named(&server, path, "10.1.2.3:8000").status, 200, "{path}");
    }
    assert_eq!(raw(&server, "GET /status HTTP/1.0").status, 200);
    // The name can stand in the first line too, and the page's own in `Origin`.
    let first_line = "GET http://evil.example/status HTTP/1.1\r\nHost: localhost";
    raw(&server, first_line).refused(403);
    raw(&server, "GET /status HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example").refused(403);
    raw(&server, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\nContent-Length: 0").refused(403);
    assert_eq!(raw(&server, "GET /status HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost:3000").status, 200);
}

#[test]
fn names_that_are_listed_are_taken_and_other_listeners_take_all() {
    let tmp = tempfile::tempdir().unwrap();
    let socket = tmp.path().join("requests.sock");
    let at = format!("unix:{}", text(&socket));
    let server = Server::start(&["--listen", "127.0.0.1:0", "--listen", &at, "--allowed-host", "models.example"]);
    assert_eq!(named(&server, "/status", "Models.Example:443").status, 200);
    named(&server, "/status", "evil.example").refused(403);
    // No browser opens a unix socket (this client says `Host: x`).
    over_socket(&socket, "GET", "/status", &json!({})).good();
    let any = Server::start(&["--allowed-host", "*"]);
    assert_eq!(named(&any, "/status", "evil.example").status, 200);
    let token = token_file(tmp.path(), TOKEN);
    let network = ["--listen", "0.0.0.0:0", "--rl-token-file", &text(&token)];
    let open = Server::start(&network).at_loopback();
    assert_eq!(named(&open, "/status", "models.example").status, 200);
    let listed = Server::start(&[&network[..], &["--allowed-host", "models.example"]].concat()).at_loopback();
    assert_eq!(named(&listed, "/status", "models.example").status, 200);
    assert_eq!(named(&listed, "/status", "10.1.2.3:8000").status, 200);
    named(&listed, "/status", "evil.example").refused(403);
    let Err(error) = Server::try_start(&["--allowed-host", "http://a.example"]) else { panic!("it started") };
    assert!(error.contains("--allowed-host"), "{error}");
}
