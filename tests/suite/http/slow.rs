//! Clients that are slow, hang up or send nonsense, more of them than there are places: they cost others nothing.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::json;

use super::server::{Server, chunks};

/// Much longer than an answer takes, and shorter than a slow client is waited for by itself.
const SOON: Duration = Duration::from_secs(20);

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// The status of `GET /health` over a connection of its own.
fn health(server: &Server) -> String {
    let mut stream = connect(server);
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer of /health");
    answer.lines().next().unwrap_or_default().to_string()
}

/// A client that sends this and then nothing more, and reads nothing.
fn stuck(server: &Server, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(server);
    // A server that has already hung up is right too.
    let _ = stream.write_all(bytes);
    stream
}

#[test]
fn slow_clients_give_their_places_up() {
    let server = Server::start(&["--max-connections", "6", "--max-num-seqs", "2"]);
    let post = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{\"pro";
    let unread = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(400);
    // It is computed all the time, and keeps its place.
    let stream = server.open("/v1/completions", json!({ "prompt": "a", "max_tokens": 500, "ignore_eos": true }));
    let mut slow = Vec::new();
    for _ in 0..4 {
        for bytes in [
            "GET /hea",
            post,
            &unread,
            "",
            "POST /update_weights_from_tensor HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nx",
        ] {
            slow.push(stuck(&server, bytes.as_bytes()));
        }
        assert_eq!(health(&server), "HTTP/1.1 200 OK");
    }
    let text = std::io::read_to_string(stream).unwrap();
    assert_eq!(chunks(&text).last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(health(&server), "HTTP/1.1 200 OK");
    let metrics = server.get("/metrics").text;
    assert!(!metrics.contains("status=\"5"), "{metrics}");
    drop(slow);
}

/// Requests that are given up at any moment: before the first byte of an answer, in the middle of a stream, by a reset.
#[test]
fn requests_that_are_given_up_leave_nothing_behind() {
    let server = Server::start(&["--max-num-seqs", "4"]);
    let request = |i: usize| {
        let body = json!({ "prompt": format!("KING HENRY {i}.\n"), "max_tokens": 300, "ignore_eos": true,
            "stream": !i.is_multiple_of(3), "n": 1 + i % 2 });
        let body = body.to_string();
        let head =
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length:";
        format!("{head} {}\r\n\r\n{body}", body.len())
    };
    for i in 0..120 {
        let mut stream = connect(&server);
        let text = request(i);
        let sent = if i % 7 == 0 { text.len() / 2 } else { text.len() };
        stream.write_all(&text.as_bytes()[..sent]).unwrap();
        match i % 4 {
            0 => {}
            1 => stream.shutdown(Shutdown::Write).unwrap(),
            // What is left unread makes it a reset.
            _ if i % 3 > 0 && i % 7 > 0 => drop(stream.read(&mut [0; 300]).unwrap()),
            _ => {}
        }
    }
    let status = server.until("idle", |s| s["load"]["running"] == 0 && s["load"]["waiting"] == 0);
    assert_eq!(status["load"]["failed"], 0, "{status}");
    assert_eq!(status["load"]["kv_bytes"], 0, "{status}");
    assert!(status["load"]["aborted"].as_u64().unwrap() > 0, "{status}");
    // All ids are free again, and the answer is what it was.
    let body = json!({ "prompt": "KING HENRY.\n", "max_tokens": 4, "temperature": 0, "request_id": "mine" });
    let first = server.post("/v1/completions", &body).good();
    assert_eq!(server.post("/v1/completions", &body).good()["choices"], first["choices"]);
}
