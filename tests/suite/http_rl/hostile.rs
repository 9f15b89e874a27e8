//! What must not come in: pickles, paths outside of the roots, weights that are wrong, two updates at once.

use std::os::unix::fs::symlink;

use serde_json::json;

use super::{expected, file, save, step};
use crate::http_client::{Server, base64};

/// What `pickle.dumps` and `torch.save` begin with.
const PICKLES: [&[u8]; 3] = [
    b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94.",
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
    b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0archive/data.pkl",
];

#[test]
fn pickles_are_refused_in_every_endpoint() {
    let server = Server::start(&[]);
    let before = server.checksums();
    let mut refusals = Vec::new();
    for pickle in PICKLES {
        for path in [
            "/update_weights",
            "/update_weights_from_tensor",
            "/load_lora_adapter_from_tensors?lora_name=a&config_dict={}",
            "/update_named_param/",
        ] {
            refusals.push(server.bytes(path, pickle));
        }
        let text = base64(pickle);
        refusals.push(server.json("/update_weights_from_tensor", &json!({ "serialized_named_tensors": [text] })));
        let lora = json!({ "lora_name": "a", "config_dict": {}, "serialized_tensors": text });
        refusals.push(server.json("/load_lora_adapter_from_tensors", &lora));
        refusals.push(server.json("/update_weights", &json!({ "update_info": { "safetensors": text } })));
        let packed = json!({ "names": ["w"], "dtype_names": ["uint8"], "shapes": [[pickle.len()]], "data": text });
        refusals.push(server.json("/update_weights", &json!({ "update_info": packed })));
        let frame = server.send("POST", "/update_weights", &[("Content-Type", "application/x-bucket")], pickle);
        refusals.push(frame);
    }
    for field in ["ipc_handles", "ipc_handles_pickled", "zmq_handles"] {
        refusals.push(server.json("/update_weights", &json!({ "update_info": { field: "gASV" } })));
        refusals.push(server.json("/update_weights_from_tensor", &json!({ field: "gASV" })));
    }
    refusals.push(server.json("/update_weights_from_ipc", &json!({ "zmq_handles": {} })));
    for refusal in refusals {
        let text = refusal.refused(400);
        assert!(text.contains("pickle") || text.contains("memory or sockets"), "{text}");
        assert!(text.contains("safetensors"), "it must say what to do: {text}");
    }
    assert_eq!(server.checksums(), before);
}

#[test]
fn paths_stay_inside_the_roots() {
    let tmp = tempfile::tempdir().unwrap();
    let (root, outside) = (tmp.path().join("root"), tmp.path().join("outside"));
    for dir in [root.join("ok"), root.join("mixed"), outside.clone()] {
        std::fs::create_dir_all(dir).unwrap();
    }
    save(&root.join("ok/model.safetensors"), &step(1), &[]);
    save(&outside.join("model.safetensors"), &step(2), &[]);
    symlink(outside.join("model.safetensors"), root.join("mixed/model.safetensors")).unwrap();
    symlink("../outside", root.join("link")).unwrap();
    symlink("../../outside/model.safetensors", root.join("ok/other")).unwrap();
    // A link that stays inside is as good as the file.
    symlink("ok", root.join("alias")).unwrap();

    let server = Server::start(&["--root", root.to_str().unwrap()]);
    let before = server.checksums();
    let out = outside.display().to_string();
    let dots = format!("{}/../outside", root.display());
    let paths = [
        "../outside",
        "ok/../../outside",
        "link",
        "link/model.safetensors",
        "mixed",
        "mixed/model.safetensors",
        "ok/other",
        &out,
        &dots,
        "/etc/passwd",
        "/proc/self/environ",
        "/",
    ];
    for path in paths {
        let tries = [
            ("/update_weights_from_disk", json!({ "model_path": path })),
            ("/update_weights", json!({ "update_info": { "path": path } })),
            ("/v1/load_lora_adapter", json!({ "lora_name": "a", "lora_path": path })),
        ];
        for (endpoint, body) in tries {
            let text = server.json(endpoint, &body).refused(403);
            assert!(text.contains("leads out of the allowed folder"), "{endpoint} {path}: {text}");
        }
        let bucket =
            json!({ "update_info": { "names": ["w"], "dtype_names": ["uint8"], "shapes": [[4]], "path": path } });
        server.json("/update_weights", &bucket).refused(403);
    }
    server.json("/update_weights_from_disk", &json!({ "model_path": "nothing" })).refused(404);
    assert_eq!(server.checksums(), before);
    server.json("/update_weights_from_disk", &json!({ "model_path": "alias" })).good();
    assert_eq!(server.checksums(), expected(&step(1), &["moe_loader"]));

    let none = Server::start(&[]);
    let text = none.json("/update_weights_from_disk", &json!({ "model_path": root.join("ok") })).refused(403);
    assert!(text.contains("--root"), "{text}");
}

#[test]
fn wrong_weights_are_refused_and_the_old_ones_serve() {
    let server = Server::start(&["--component", "fp8_block"]);
    let before = server.checksums();
    let good = step(1);
    let put = |tensors: &[crate::support::Tensor]| server.bytes("/update_weights", &file(tensors, &[]));
    let mut missing = good.clone();
    missing.retain(|t| t.0 != "model.norm.weight");
    assert!(put(&missing).refused(422).contains("model.norm.weight"));
    let mut unknown = good.clone();
    unknown.push(("model.norm.wieght".into(), safetensors::Dtype::BF16, vec![1], vec![0, 0]));
    assert!(put(&unknown).refused(422).contains("model.norm.wieght"));
    let mut nan = good.clone();
    let k = nan.iter_mut().find(|t| t.0.ends_with("layers.1.self_attn.k_proj.weight")).unwrap();
    k.3[10..12].copy_from_slice(&0x7fc0u16.to_le_bytes());
    assert!(put(&nan).refused(422).contains("k_proj"));
    let mut shape = good.clone();
    shape[0].2.swap(0, 1);
    put(&shape).refused(422);
    for junk in [&b"junk"[..], b"", &[0xff; 64], &file(&good, &[])[..1000]] {
        server.bytes("/update_weights", junk).refused(400);
    }
    assert!(
        server
            .send("POST", "/update_weights", &[("Content-Type", "text/plain")], b"x")
            .refused(415)
            .contains("octet-stream")
    );
    // In an update that was begun, all is decided at its end; and then it is over.
    server.json("/start_weight_update", &json!({})).good();
    server.bytes("/update_weights", &file(&missing, &[])).good();
    server.post("/finish_weight_update").refused(422);
    server.post("/finish_weight_update").refused(409);
    // A manifest refuses what was not promised, and what was promised and did not come.
    let manifest = json!({ "tensors": { "model.norm.weight": { "dtype": "BF16", "sha256": "00" } } });
    server.json("/start_weight_update", &json!({ "manifest": manifest })).good();
    assert!(put(&good[..1]).refused(422).contains("manifest"));
    server.post("/abort_weight_update").good();
    server.json("/start_weight_update", &json!({ "manifest": { "tensor": 1 } })).refused(400);
    assert_eq!(server.checksums(), before);
    put(&good).good();
    assert_eq!(server.checksums(), expected(&good, &["moe_loader", "fp8_block"]));
}

#[test]
fn one_update_at_a_time() {
    let tmp = tempfile::tempdir().unwrap();
    save(&tmp.path().join("model.safetensors"), &step(3), &[]);
    let server = Server::start(&["--root", tmp.path().to_str().unwrap()]);
    server.bytes("/update_weights_from_tensor", &file(&step(1), &[])).good();
    assert!(server.post("/finish_weight_update").refused(409).contains("no update is open"));
    assert!(server.post("/end_weight_update").refused(409).contains("no update is open"));
    server.post("/start_weight_update").good();
    let tensors = step(2);
    server.bytes("/update_weights", &file(&tensors[..9], &[])).good();
    assert!(server.post("/start_weight_update").refused(409).contains("9 tensors came"));
    server.post("/begin_weight_update").refused(409);
    server.json("/update_weights_from_disk", &json!({ "model_path": "model.safetensors" })).refused(409);
    // A byte that comes twice is refused, and the update goes on.
    assert!(server.bytes("/update_weights", &file(&tensors[..1], &[])).refused(422).contains("given twice"));
    server.bytes("/update_weights", &file(&tensors[9..], &[])).good();
    server.post("/finish_weight_update").good();
    assert_eq!(server.checksums(), expected(&tensors, &["moe_loader"]));
    server.post("/abort_weight_update").good();
}

#[test]
fn what_cannot_be_here_says_so() {
    let server = Server::start(&[]);
    for (path, status) in [
        ("/collective_rpc", 403),
        ("/start_draft_weight_update", 400),
        ("/update_weights_from_distributed", 400),
        ("/init_weights_update_group", 400),
        ("/destroy_weights_update_group", 400),
        ("/update_weights_from_ipc", 400),
        ("/init_communicator/", 400),
    ] {
        server.json(path, &json!({ "method": "x" })).refused(status);
    }
    let nccl = json!({ "init_info": { "master_address": "10.0.0.1", "master_port": 1, "world_size": 2 } });
    assert!(server.json("/init_weight_transfer_engine", &nccl).refused(400).contains("CPUs only"));
    server.json("/init_weight_transfer_engine", &json!({ "init_info": { "backend": "http" } })).good();
    for path in [
        "/init_weight_transfer_engine",
        "/shutdown_weight_transfer_engine",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/close_communicator/",
    ] {
        server.post(path).good();
    }
}
