//! Files of weights that others change in place while a server reads them, or keeps them for later.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::{expected, file, step};
use crate::http_client::{Server, TOKEN, token_file};

/// Writes over a file without replacing it; with `back`, its modification time stays as it was.
fn rewrite(path: &Path, bytes: &[u8], back: bool) {
    let time = std::fs::metadata(path).unwrap().modified().unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
    if back {
        file.set_modified(time).unwrap();
    }
}

fn truncate(path: &Path, bytes: u64) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

fn server(folder: &Path) -> Server {
    let token = token_file(folder, TOKEN);
    let args = ["--root", folder.to_str().unwrap(), "--admin-token-file", token.to_str().unwrap()];
    Server::start(&args)
}

fn from_disk(server: &Server) -> crate::http_client::Answer {
    server.json("/update_weights_from_disk", &json!({ "model_path": "x.safetensors" }))
}

fn swap_now(server: &Server, to: &Value) -> crate::http_client::Answer {
    server.as_admin("POST", "/admin/v1/swap", &json!({ "to": to, "when": "now" }))
}

fn staged(server: &Server) -> Value {
    server.as_admin("POST", "/admin/v1/stage", &json!({ "bundled": "fp8_block" })).good()["generation"].clone()
}

/// Truncated, grown, and written over by another set, with and without a modification time that tells.
#[test]
fn a_file_that_changes_under_refits_costs_refits_and_nothing_else() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("x.safetensors");
    let [a, b] = [1, 2].map(|n| file(&step(n), &[]));
    std::fs::write(&path, &a).unwrap();
    let server = server(tmp.path());
    let mut sets: Vec<BTreeMap<String, String>> = vec![server.checksums()];
    sets.extend([1, 2].map(|n| expected(&step(n), &["moe_loader"])));
    let stop = AtomicBool::new(false);
    let (mut taken, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let bytes = if round.is_multiple_of(2) { &b } else { &a };
                match round % 3 {
                    0 => rewrite(&path, bytes, true),
                    1 => rewrite(&path, bytes, false),
                    _ => {
                        truncate(&path, round * 4097 % bytes.len() as u64);
                        std::thread::sleep(Duration::from_millis(5));
                        rewrite(&path, bytes, round.is_multiple_of(5));
                    }
                }
                round += 1;
                std::thread::sleep(Duration::from_millis(round * 7 % 60));
            }
        });
        for i in 0..24 {
            let answer = match i % 2 {
                0 => from_disk(&server),
                _ => server.json("/update_weights", &json!({ "update_info": { "path": "x.safetensors" } })),
            };
            match answer.status {
                200 => taken += 1,
                status => {
                    assert!((400..500).contains(&status), "{}", answer.text);
                    assert!(!answer.refused(status).contains("patchhost-view"), "{}", answer.text);
                    refused += 1;
                }
            }
            assert!(sets.contains(&server.checksums()), "a mixture is live after {i}: {}", answer.text);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(taken + refused, 24);
    // When nobody writes any more it is a file like others.
    std::fs::write(&path, &a).unwrap();
    from_disk(&server).good();
    assert_eq!(server.checksums(), sets[1]);
}

#[test]
fn weights_are_loaded_again_only_from_the_bytes_that_serve() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("x.safetensors");
    let [a, b] = [1, 2].map(|n| file(&step(n), &[]));
    assert_eq!(a.len(), b.len());
    for change in ["bytes", "size", "time"] {
        std::fs::write(&path, &a).unwrap();
        let server = server(tmp.path());
        from_disk(&server).good();
        let before = server.checksums();
        let to = staged(&server);
        let why = match change {
            "bytes" => {
                rewrite(&path, &b, true);
                "digest"
            }
            "size" => {
                truncate(&path, 5000);
                "when it was opened"
            }
            _ => {
                rewrite(&path, &a, false);
                "modification time"
            }
        };
        let answer = swap_now(&server, &to);
        let text = answer.refused(answer.status);
        assert!(
            (400..500).contains(&answer.status) && text.contains(why) && text.contains("`x.safetensors`"),
            "{text}"
        );
        assert_eq!(server.checksums(), before, "{change}");
        // Weights that are sent anew are a way out.
        server.bytes("/update_weights", &b).good();
        assert_ne!(server.checksums(), before);
    }
}

#[test]
fn a_file_that_was_replaced_or_removed_still_serves_for_a_swap() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("x.safetensors");
    let [a, b] = [1, 2].map(|n| file(&step(n), &[]));
    for remove in [false, true] {
        std::fs::write(&path, &a).unwrap();
        let server = server(tmp.path());
        from_disk(&server).good();
        let to = staged(&server);
        if remove {
            std::fs::remove_file(&path).unwrap();
        } else {
            std::fs::write(tmp.path().join("new"), &b).unwrap();
            std::fs::rename(tmp.path().join("new"), &path).unwrap();
        }
        swap_now(&server, &to).good();
        assert_eq!(server.checksums(), expected(&step(1), &["moe_loader", "fp8_block"]));
    }
}
