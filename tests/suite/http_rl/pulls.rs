//! What slime's engine class sends: versions over a shared disk, pulled and then loaded, and the calls around them.

use std::path::Path;

use patchhost::checkpoint::versions::{Beside, Checksum, Encoding, Version, WriteOptions, write_delta, write_full};
use patchhost_runtime::checkpoint::Checkpoint;
use serde_json::{Value, json};

use super::{expected, save, step};
use crate::http_client::Server;

const PLAIN: [&str; 1] = ["moe_loader"];

fn tensors(folder: &Path, n: u32) -> Checkpoint {
    let path = folder.join(format!("{n}.safetensors"));
    save(&path, &step(n), &[]);
    Checkpoint::open(&path).unwrap()
}

/// One round of `update_weight_from_disk_delta.py`.
fn sync(server: &Server, local: &str, source: &str, version: u64) -> Value {
    let pull = json!({ "local_checkpoint_dir": local, "source_dir": source, "target_version": version });
    server.json("/pull_weights", &pull).good();
    server.json("/pause_generation", &json!({})).good();
    assert_eq!(server.get("/flush_cache").status, 200);
    let load = json!({ "model_path": local, "weight_version": version.to_string() });
    let answer = server.json("/update_weights_from_disk", &load).good();
    server.json("/continue_generation", &json!({})).good();
    assert_eq!(server.get("/get_weight_version").good()["weight_version"], version.to_string());
    answer
}

#[test]
fn disk_deltas_are_pulled_and_loaded_as_slime_does_it() {
    let tmp = tempfile::tempdir().unwrap();
    let source = tmp.path().join("versions");
    std::fs::create_dir(&source).unwrap();
    let all: Vec<Checkpoint> = (0..5).map(|n| tensors(tmp.path(), n)).collect();
    let publish = |n: u64, checksum: Checksum, encoding: Encoding| {
        let options = WriteOptions { checksum, ..WriteOptions::default() };
        let (old, new) = (&all[n as usize - 1], &all[n as usize]);
        write_delta(old, new, &source, Version(n), Version(n - 1), encoding, &options).unwrap();
    };
    let server = Server::start(&["--root", source.to_str().unwrap()]);
    let from = source.display().to_string();
    // The folder that upstream would write to is not there, and is not made.
    let local = tmp.path().join("local").display().to_string();
    let pull = |target: i64| json!({ "local_checkpoint_dir": local, "source_dir": from, "target_version": target });
    server.json("/pull_weights", &pull(0)).good();
    publish(1, Checksum::Blake3, Encoding::Xor);
    let before = server.checksums();
    let done = server.json("/pull_weights", &pull(1)).good();
    assert!(done["message"].as_str().unwrap().contains("000001"), "{done}");
    assert_eq!(server.checksums(), before, "a pull changes nothing that serves");
    sync(&server, &local, &from, 1);
    assert_eq!(server.checksums(), expected(&step(1), &PLAIN));
    // Two at once, in the other form; the trainer has removed the one that was pulled.
    publish(2, Checksum::Xxh3, Encoding::Overwrite);
    publish(3, Checksum::Adler32, Encoding::Xor);
    std::fs::remove_dir_all(source.join("weight_v000001")).unwrap();
    sync(&server, &local, &from, 3);
    assert_eq!(server.checksums(), expected(&step(3), &PLAIN));
    // A full version begins anew, and what was pulled already is not read again.
    write_full(&all[4], &Beside::default(), &source, Version(4), &WriteOptions::default()).unwrap();
    sync(&server, &local, &from, 4);
    std::fs::remove_dir_all(&source).unwrap();
    std::fs::create_dir(&source).unwrap();
    sync(&server, &local, &from, 4);
    assert_eq!(server.checksums(), expected(&step(4), &PLAIN));
    // A trainer that begins again.
    sync(&server, &local, &from, 0);
    assert_eq!(server.checksums(), expected(&step(0), &PLAIN));
    assert!(!Path::new(&local).exists());
}

#[test]
fn what_cannot_be_pulled_is_refused_and_changes_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let source = tmp.path().join("versions");
    std::fs::create_dir(&source).unwrap();
    let (zero, one) = (tensors(tmp.path(), 0), tensors(tmp.path(), 1));
    let options = WriteOptions { checksum: Checksum::Blake3, ..WriteOptions::default() };
    write_delta(&zero, &one, &source, Version(1), Version(0), Encoding::Xor, &options).unwrap();
    // Damaged after it was published.
    write_delta(&one, &zero, &source, Version(2), Version(1), Encoding::Xor, &options).unwrap();
    let two = source.join("weight_v000002");
    let mut shards = std::fs::read_dir(&two).unwrap().map(|e| e.unwrap().path());
    let shard = shards.find(|p| p.extension().is_some_and(|x| x == "safetensors")).unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 9;
    bytes[last] ^= 1;
    std::fs::write(&shard, bytes).unwrap();

    let server = Server::start(&["--root", source.to_str().unwrap()]);
    let from = source.display().to_string();
    let pull = |local: &str, source: &str, target: i64| {
        let body = json!({ "local_checkpoint_dir": local, "source_dir": source, "target_version": target });
        server.json("/pull_weights", &body)
    };
    pull("/local", &from, 1).good();
    for (answer, status, word) in [
        (pull("/local", &from, 2), 400, "blake3"),
        (pull("/local", &from, 9), 400, "weight_v000009"),
        (pull("/local", &from, -1), 400, "target_version"),
        (pull("", &from, 1), 400, "local_checkpoint_dir"),
        (pull("/other", "/etc", 1), 403, "--root"),
        (server.json("/pull_weights", &json!({ "source_dir": from })), 400, "local_checkpoint_dir"),
    ] {
        let text = answer.refused(status);
        assert!(text.contains(word) || word == "blake3" && text.contains("difference"), "{text}");
    }
    // What was pulled before is still there.
    let answer = server.json("/update_weights_from_disk", &json!({ "model_path": "/local/" })).good();
    assert_eq!(answer["weight_version"], "000001");
    assert_eq!(server.checksums(), expected(&step(1), &PLAIN));
    server.json("/update_weights_from_disk", &json!({ "model_path": "/never" })).refused(403);
    // Nothing can be pulled where no folder is allowed, but for what the server started with.
    let closed = Server::start(&[]);
    let body = |n: u64| json!({ "local_checkpoint_dir": "/l", "source_dir": from, "target_version": n });
    assert!(closed.json("/pull_weights", &body(1)).refused(403).contains("--root"));
    closed.json("/pull_weights", &body(0)).good();
    let off = Server::start(&["--rl", "off"]);
    off.json("/pull_weights", &body(0)).refused(403);
}

#[test]
fn the_other_calls_of_slimes_engines_are_answered() {
    let server = Server::start(&[]);
    let sampling = json!({ "temperature": 1.0, "top_p": 0.9, "top_k": -1, "max_new_tokens": 3, "stop": null,
        "stop_token_ids": null, "skip_special_tokens": true, "no_stop_trim": true, "spaces_between_special_tokens": false,
        "sampling_seed": 7, "custom_params": { "return_top_p_token_ids": true } });
    let answer = ureq::post(format!("{}/generate", server.url))
        .send_json(json!({ "input_ids": [1, 2, 3], "sampling_params": sampling, "return_logprob": true }))
        .unwrap();
    let ignored = answer.headers()["x-patchhost-ignored-fields"].to_str().unwrap().to_string();
    assert!(ignored.contains("sampling_params.custom_params"), "{ignored}");
    let meta: Value = answer.into_body().read_json().unwrap();
    let logprobs = meta["meta_info"]["output_token_logprobs"].as_array().unwrap();
    assert!(!logprobs.is_empty() && logprobs.iter().all(|l| l[0].is_f64() && l[1].is_u64() && l[2].is_null()));
    let process = json!({ "restore_weights_before_load": true, "post_process_quantization": false });
    server.json("/post_process_weights", &process).good();
    for path in ["/start_profile", "/stop_profile"] {
        assert!(server.json(path, &json!({})).refused(400).contains("profiler"));
    }
    server.json("/abort_request", &json!({ "abort_all": true })).good();
    server.json("/release_memory_occupation", &json!({})).good();
    server.json("/resume_memory_occupation", &json!({ "tags": ["weights"] })).good();
    server.json("/resume_memory_occupation", &json!({ "tags": ["kv_cache"] })).good();
    server.json("/weights_checker", &json!({ "action": "snapshot" })).good();
    server.json("/weights_checker", &json!({ "action": "compare" })).good();
    assert_eq!(server.get("/health_generate").status, 200);
    for path in ["/init_weights_update_group", "/destroy_weights_update_group", "/update_weights_from_distributed"] {
        assert!(server.json(path, &json!({ "group_name": "slime" })).refused(400).contains("NCCL"), "{path}");
    }
}
