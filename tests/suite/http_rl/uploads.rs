//! Bodies that nobody asked for: refused before they are read, or cut off where the model's own weights would end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use super::{file, step};
use crate::http_client::{Server, TOKEN, base64, token_file};

const MIB: usize = 1 << 20;

/// What a request is answered of which `head` is sent and then `body` until somebody has enough, and how many bytes of the
/// body the system took.
fn send(server: &Server, head: &str, body: impl Iterator<Item = Vec<u8>>) -> (String, usize) {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut sent = 0;
    for chunk in body {
        if stream.write_all(&chunk).is_err() {
            break;
        }
        sent += chunk.len();
    }
    let mut answer = Vec::new();
    // A reset comes after the answer, or in its place where the sender did not stop.
    let _ = stream.read_to_end(&mut answer);
    (String::from_utf8_lossy(&answer).into_owned(), sent)
}

fn head(path: &str, kind: &str, more: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\n{more}\r\n")
}

/// Chunks as HTTP has them.
fn chunked(bytes: Vec<u8>) -> Vec<u8> {
    let mut out = format!("{:x}\r\n", bytes.len()).into_bytes();
    out.extend(bytes);
    out.extend(b"\r\n");
    out
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

/// Every path that takes a POST.
fn paths(server: &Server) -> Vec<String> {
    let document = server.get("/openapi.json").good();
    let paths = document["paths"].as_object().unwrap().iter().filter(|(_, verbs)| verbs.get("post").is_some());
    paths.map(|(path, _)| path.clone()).collect()
}

/// Kilobytes of memory that the server has now, and that it had at most.
#[cfg(target_os = "linux")]
fn memory(server: &Server) -> [u64; 2] {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    ["VmRSS:", "VmHWM:"].map(|field| {
        let line = status.lines().find(|l| l.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    })
}

#[test]
fn who_may_not_is_told_before_the_body() {
    let tmp = tempfile::tempdir().unwrap();
    let token = token_file(tmp.path(), TOKEN);
    let server = Server::start(&["--rl", "token", "--rl-token-file", token.to_str().unwrap()]);
    for path in [
        "/update_weights",
        "/update_weights_from_tensor",
        "/update_named_param/",
        "/start_weight_update",
        "/admin/v1/stage",
    ] {
        for wrong in ["", "Authorization: Bearer of-somebody-else-0000\r\n"] {
            let more = format!("{wrong}Expect: 100-continue\r\nContent-Length: 4294967296\r\n");
            let (answer, _) = send(&server, &head(path, "application/octet-stream", &more), std::iter::empty());
            let wanted = if path.starts_with("/admin") { 403 } else { 401 };
            assert_eq!(status(&answer), wanted, "{path}: {answer}");
            assert!(!answer.contains("100 Continue"), "{answer}");
        }
    }
    // Who may is asked for the body.
    let body = file(&step(1), &[]);
    let more = format!("Authorization: Bearer {TOKEN}\r\nExpect: 100-continue\r\nContent-Length: {}\r\n", body.len());
    let (answer, _) = send(&server, &head("/update_weights", "application/octet-stream", &more), [body].into_iter());
    assert!(answer.starts_with("HTTP/1.1 100 Continue") && answer.contains("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_body_ends_where_the_model_does() {
    let server = Server::start(&[]);
    let whole = file(&step(1), &[]);
    let before = server.checksums();
    let octets = "application/octet-stream";
    for (path, kind) in [
        ("/update_weights", octets),
        ("/update_weights_from_tensor", octets),
        ("/update_named_param/?name=w&dtype=uint8&shape=4294967296", octets),
        ("/load_lora_adapter_from_tensors?lora_name=a&config_dict={}", octets),
        ("/update_weights", "application/x-bucket"),
        ("/update_weights", "application/json"),
        ("/v1/completions", "application/json"),
        ("/start_weight_update", "application/json"),
    ] {
        // Declared: refused at once.
        let large = head(path, kind, "Content-Length: 4294967296\r\n");
        let (answer, _) = send(&server, &large, std::iter::empty());
        assert_eq!(status(&answer), 413, "{path}: {answer}");
        assert!(answer.contains("at most"), "{answer}");
        // Not declared: cut off.
        let first = if kind == "application/json" { b"{\"x\": \"".to_vec() } else { vec![b' '; 7] };
        let rest = (0..256).map(|_| chunked(vec![b'a'; MIB]));
        let body = std::iter::once(chunked(first)).chain(rest);
        let (answer, sent) = send(&server, &head(path, kind, "Transfer-Encoding: chunked\r\n"), body);
        assert!(answer.is_empty() || (400..500).contains(&status(&answer)), "{path}: {answer}");
        assert!(sent < 10 * whole.len() + 16 * MIB, "{path} took {sent} bytes of a body");
    }
    // What the model needs is taken, also in f32 and as base64.
    server.bytes("/update_weights", &whole).good();
    let wide: Vec<_> = step(2)
        .into_iter()
        .map(|(name, _, shape, data)| {
            let values = data.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32());
            (name, safetensors::Dtype::F32, shape, values.flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let text = base64(&file(&wide, &[]));
    let answer = server.json("/update_weights_from_tensor", &json!({ "serialized_named_tensors": text }));
    assert_ne!(answer.status, 413, "{}", answer.text);
    assert_ne!(server.checksums(), before);
    // An update in many parts is bounded as one is.
    server.post("/start_weight_update").good();
    let mut refused = None;
    for i in 0..1000 {
        let t = (format!("junk.{i}"), safetensors::Dtype::U8, vec![8 * MIB / 4], vec![0; 8 * MIB / 4]);
        let answer = server.bytes("/update_weights", &file(&[t], &[]));
        if answer.status != 200 {
            refused = Some(answer.refused(422));
            break;
        }
    }
    assert!(refused.is_some_and(|text| text.contains("fit here")), "an update without end");
    server.post("/abort_weight_update").good();
}

/// Junk is known by its first bytes.
#[test]
fn junk_is_not_read_to_its_end() {
    let server = Server::start(&[]);
    let len = file(&step(1), &[]).len();
    for (kind, first) in [
        ("application/json", &[0u8; 64][..]),
        ("application/octet-stream", &[0xff; 64]),
        ("application/octet-stream", b"\x80\x04\x95 a pickle of many tensors and more"),
        (
            "application/octet-stream",
            b"\x40\0\0\0\0\0\0\0{\"w\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}              ",
        ),
        ("application/x-bucket", b"PK\x03\x04 an archive that torch.save made"),
    ] {
        let mut head = head("/update_weights", kind, &format!("Content-Length: {len}\r\n")).into_bytes();
        head.extend(first);
        // The rest never comes, and is not waited for.
        let (answer, _) = send(&server, "", [head].into_iter());
        assert_eq!(status(&answer), 400, "{kind}: {answer}");
    }
}

/// Many at once, on every path that takes a body, declared and not.
#[test]
#[cfg(target_os = "linux")]
fn uploads_that_nobody_asked_for_take_no_memory() {
    let tmp = tempfile::tempdir().unwrap();
    let token = token_file(tmp.path(), TOKEN);
    let each = if std::env::var_os("PATCHHOST_CAMPAIGN").is_some() { 64 } else { 4 };
    for args in [&["--rl-token-file", token.to_str().unwrap(), "--rl", "token"][..], &[]] {
        let server = Server::start(args);
        let mut paths = paths(&server);
        assert!(paths.len() > 40, "{paths:?}");
        if each < 64 {
            paths = paths.into_iter().skip(1).step_by(7).chain(["/update_weights".to_string()]).collect();
        }
        let flood = |rounds: usize| {
            std::thread::scope(|scope| {
                for thread in 0..8 {
                    let (server, paths) = (&server, &paths);
                    scope.spawn(move || {
                        for path in paths.iter().skip(thread).step_by(8) {
                            for kind in ["application/json", "application/octet-stream"] {
                                let begin = b"{\"x\": \"".to_vec();
                                let length = begin.len() + rounds * MIB;
                                let body =
                                    || std::iter::once(begin.clone()).chain((0..rounds).map(|_| vec![b'a'; MIB]));
                                let large = head(path, kind, &format!("Content-Length: {length}\r\n"));
                                send(server, &large, body());
                                let endless = head(path, kind, "Transfer-Encoding: chunked\r\n");
                                send(server, &endless, body().map(chunked));
                            }
                        }
                    });
                }
            });
        };
        flood(1);
        let [before, _] = memory(&server);
        flood(each);
        assert_eq!(server.get("/health").status, 200);
        let [after, most] = memory(&server);
        // The bundled model's weights in base64 of f32 are 50 MB; nothing but one such body may be there beside what was.
        assert!(after < before + 64 * 1024, "{before} KiB before, {after} after");
        assert!(most < before + 96 * 1024, "{before} KiB before, {most} at most");
    }
}
