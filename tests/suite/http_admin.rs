//! The admin API: who may, over which door, and what its verbs do; and the verbs of the command line that use it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::http_client::{Server, TOKEN, over_socket, token_file};
use crate::http_rl::{expected, file, step};
use crate::support::{evil, patchhost, repo};

const VERBS: [(&str, &str); 10] = [
    ("GET", "/admin/v1/patches"),
    ("GET", "/admin/v1/status"),
    ("GET", "/admin/v1/ledger"),
    ("POST", "/admin/v1/stage"),
    ("POST", "/admin/v1/swap"),
    ("POST", "/admin/v1/rollback"),
    ("POST", "/admin/v1/mode"),
    ("POST", "/admin/v1/cancel"),
    ("POST", "/admin/v1/quarantine"),
    ("POST", "/admin/v1/unquarantine"),
];

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn bundled(name: &str) -> Vec<u8> {
    std::fs::read(repo().join("guests").join(format!("{name}.wasm"))).unwrap()
}

fn active(server: &Server) -> String {
    server.as_admin("GET", "/admin/v1/status", &json!({})).good()["board"]["active"].as_str().unwrap().to_string()
}

#[test]
fn without_a_door_there_is_no_admin() {
    let server = Server::start(&[]);
    for (method, path) in VERBS {
        let bearer = format!("Bearer {TOKEN}");
        let answer =
            server.send(method, path, &[("Authorization", &bearer), ("Content-Type", "application/json")], b"{}");
        let refusal = answer.refused(403);
        assert!(refusal.contains("--admin unix:PATH") && refusal.contains("--admin-token-file"), "{refusal}");
    }
}

#[test]
fn the_token_is_asked_for_and_comes_in_the_header_only() {
    let tmp = tempfile::tempdir().unwrap();
    let file = token_file(tmp.path(), TOKEN);
    let server = Server::start(&["--admin-token-file", &text(&file)]);
    let before = active(&server);
    for (method, path) in VERBS {
        let json = ("Content-Type", "application/json");
        server.send(method, path, &[json], b"{}").refused(401);
        let query = format!("{path}?token={TOKEN}&access_token={TOKEN}&authorization=Bearer%20{TOKEN}");
        server.send(method, &query, &[json], b"{}").refused(401);
        for wrong in [
            format!("Bearer {}", &TOKEN[1..]),
            format!("Bearer {TOKEN}x"),
            TOKEN.to_string(),
            format!("Basic {TOKEN}"),
            "Bearer".to_string(),
            "Bearer ".to_string(),
        ] {
            server.send(method, path, &[json, ("Authorization", &wrong)], b"{}").refused(401);
        }
        server.send(method, path, &[json, ("X-Api-Key", TOKEN), ("Cookie", TOKEN)], b"{}").refused(401);
    }
    // Endpoints for trainers and users do not open the door either.
    server.json("/collective_rpc", &json!({ "method": "swap" })).refused(403);
    assert_eq!(active(&server), before);
    let patches = server.as_admin("GET", "/admin/v1/patches", &json!({})).good();
    assert!(patches["patches"].as_array().unwrap().iter().any(|p| p["name"] == "moe_loader"), "{patches}");
}

#[test]
fn bad_token_files_stop_the_start() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("token");
    for (token, mode, why) in [(TOKEN, 0o644, "0644"), ("short", 0o600, "5 characters")] {
        std::fs::write(&path, token).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        for flag in ["--admin-token-file", "--rl-token-file"] {
            let Err(error) = Server::try_start(&[flag, &text(&path)]) else { panic!("it started") };
            assert!(error.contains(why), "{error}");
        }
    }
}

#[test]
fn the_socket_is_private_and_names_its_user() {
    let tmp = tempfile::tempdir().unwrap();
    let socket = tmp.path().join("admin.sock");
    let server = Server::start(&["--admin", &format!("unix:{}", text(&socket))]);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let staged = over_socket(&socket, "POST", "/admin/v1/stage", &json!({ "bundled": "fp8_block" })).good();
    assert_eq!(staged["name"], "fp8_block");
    let ledger = over_socket(&socket, "GET", "/admin/v1/ledger?last=1", &json!({})).good();
    let entry = &ledger["entries"][0];
    assert_eq!(entry["event"], "patch.staged");
    assert!(entry["actor"].as_str().unwrap().starts_with("unix:uid="), "{entry}");
    // The same verb over TCP: no.
    server.json("/admin/v1/stage", &json!({ "bundled": "fp8_block" })).refused(403);
}

#[test]
fn rl_control_over_a_network_needs_a_token() {
    let tmp = tempfile::tempdir().unwrap();
    let Err(error) = Server::try_start(&["--listen", "0.0.0.0:0"]) else { panic!("it started") };
    assert!(error.contains("--rl-token-file"), "{error}");
    let Err(error) = Server::try_start(&["--rl", "token"]) else { panic!("it started") };
    assert!(error.contains("no token is configured"), "{error}");

    let token = token_file(tmp.path(), TOKEN);
    let bearer = format!("Bearer {TOKEN}");
    let control = [
        ("POST", "/pause"),
        ("POST", "/update_weights"),
        ("POST", "/flush_cache"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/sleep"),
        ("POST", "/weight_checker"),
        ("POST", "/reset_prefix_cache/"),
        ("POST", "/get_weights_by_name"),
        ("POST", "/abort_request"),
        ("POST", "/update_named_param/"),
    ];
    let server = Server::start(&["--rl", "token", "--rl-token-file", &text(&token)]);
    for (method, path) in control {
        server.send(method, path, &[("Content-Type", "application/json")], b"{}").refused(401);
    }
    assert_eq!(server.send("POST", "/pause", &[("Authorization", &bearer)], b"").status, 200);
    // Who may control weights may not change patches.
    server.send("GET", "/admin/v1/status", &[("Authorization", &bearer)], b"").refused(403);

    let off = Server::start(&["--rl", "off"]);
    for (method, path) in control {
        let refusal = off.send(method, path, &[("Content-Type", "application/json")], b"{}").refused(403);
        assert!(refusal.contains("--rl off"), "{refusal}");
    }
    let open = Server::start(&[]);
    for (name, value) in [("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")] {
        assert!(open.send("POST", "/pause", &[(name, value)], b"").refused(403).contains("browser"));
    }
    open.post("/pause").good();
    open.post("/resume").good();
}

/// Stage by bytes, swap, refit, look, roll back: and every bit is as it was.
#[test]
fn a_swap_lands_at_the_next_refit_and_can_be_taken_back() {
    let tmp = tempfile::tempdir().unwrap();
    let token = token_file(tmp.path(), TOKEN);
    let server = Server::start(&["--admin-token-file", &text(&token)]);
    let (plain, quantized) = (expected(&step(0), &["moe_loader"]), expected(&step(0), &["moe_loader", "fp8_block"]));
    let start = active(&server);
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/wasm")];
    let url = "/admin/v1/stage?name=mine&set=profile%3Dverl-torch";
    let staged = server.send("POST", url, &headers, &bundled("fp8_block")).good();
    assert_eq!(server.checksums(), plain, "staging changes nothing");
    let again = server.send("POST", url, &headers, &bundled("fp8_block")).good();
    assert_eq!((&again["already"], &again["generation"]), (&json!(true), &staged["generation"]));

    let wrong = json!({ "to": staged["generation"], "expect": staged["sha256"] });
    assert!(server.as_admin("POST", "/admin/v1/swap", &wrong).refused(409).contains("was expected to be active"));
    let pending = server
        .as_admin("POST", "/admin/v1/swap", &json!({ "to": staged["generation"], "expect": start, "reason": "a test" }))
        .good();
    assert_eq!((&pending["state"], &pending["from"]), (&json!("pending"), &json!(start)));
    assert_eq!(server.checksums(), plain, "it waits for the refit");
    let published = server.bytes("/update_weights", &file(&step(0), &[])).good();
    assert_eq!(published["swapped"], json!([start, active(&server)]), "{published}");
    assert_eq!(server.checksums(), quantized);

    let back = server.as_admin("POST", "/admin/v1/rollback", &json!({ "when": "now", "reason": "a test" })).good();
    assert_eq!(back["landed"]["to"], json!(start), "{back}");
    assert_eq!(server.checksums(), plain);
    let now = server.as_admin("POST", "/admin/v1/swap", &json!({ "to": staged["sha256"], "when": "now" })).good();
    assert!(now["landed"].is_object(), "{now}");
    assert_eq!(server.checksums(), quantized);

    let ledger = server.as_admin("GET", "/admin/v1/ledger?last=100", &json!({})).good();
    let events: Vec<&str> =
        ledger["entries"].as_array().unwrap().iter().map(|e| e["event"].as_str().unwrap()).collect();
    for event in ["patch.staged", "swap.refused", "swap.requested", "swap.rollback"] {
        assert!(events.contains(&event), "{event}: {events:?}");
    }
    let by: Vec<&Value> = ledger["entries"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["event"] == "swap.requested")
        .map(|e| &e["actor"])
        .collect();
    assert!(by.iter().all(|actor| **actor == "token"), "{by:?}");
}

#[test]
fn cancel_mode_and_quarantine() {
    let tmp = tempfile::tempdir().unwrap();
    let token = token_file(tmp.path(), TOKEN);
    let server = Server::start(&["--admin-token-file", &text(&token)]);
    let staged = server.as_admin("POST", "/admin/v1/stage", &json!({ "bundled": "fp8_block" })).good();
    server.as_admin("POST", "/admin/v1/mode", &json!({ "mode": "live" })).refused(404);
    server.as_admin("POST", "/admin/v1/rollback", &json!({})).refused(404);
    assert_eq!(server.as_admin("POST", "/admin/v1/cancel", &json!({})).good()["done"], false);
    let swap = |body: Value| server.as_admin("POST", "/admin/v1/swap", &body);
    swap(json!({ "to": staged["generation"], "mode": "shadow" })).good();
    server.as_admin("POST", "/admin/v1/mode", &json!({ "mode": "canary=10%" })).good();
    let status = server.as_admin("GET", "/admin/v1/status", &json!({})).good();
    assert_eq!(status["board"]["transition"]["mode"], "canary=10%");
    assert_eq!(server.as_admin("POST", "/admin/v1/cancel", &json!({ "reason": "enough" })).good()["done"], true);
    let quarantine = json!({ "digest": staged["sha256"], "reason": "a test" });
    server.as_admin("POST", "/admin/v1/quarantine", &quarantine).good();
    assert!(swap(json!({ "to": staged["generation"] })).refused(403).contains("quarantine"));
    assert_eq!(server.as_admin("POST", "/admin/v1/unquarantine", &quarantine).good()["done"], true);
    assert_eq!(server.as_admin("POST", "/admin/v1/unquarantine", &quarantine).good()["done"], false);
    swap(json!({ "to": staged["generation"], "when": "step:99" })).good();
    for (body, status) in [
        (json!({ "to": "sha256:12" }), 400),
        (json!({ "to": "0".repeat(64) }), 404),
        (json!({ "to": staged["generation"], "when": "later" }), 400),
        (json!({ "to": staged["generation"], "mode": "canary=100%" }), 400),
        (json!({ "to": staged["generation"], "force": true }), 400),
        (json!({}), 400),
    ] {
        swap(body).refused(status);
    }
    server.as_admin("POST", "/admin/v1/quarantine", &json!({ "digest": staged["sha256"], "reason": " " })).refused(400);
}

/// A candidate that does not pass never becomes live, and the reason is in the ledger.
#[test]
fn broken_candidates_are_refused_at_their_stage() {
    let tmp = tempfile::tempdir().unwrap();
    let token = token_file(tmp.path(), TOKEN);
    let root = tmp.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::copy(repo().join("guests/fp8_block.wasm"), root.join("ok.wasm")).unwrap();
    let server = Server::start(&["--admin-token-file", &text(&token), "--root", &text(&root)]);
    let before = (active(&server), server.checksums());
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/wasm")];
    let evils = std::fs::read_dir(repo().join("guests/evil")).unwrap();
    let mut refused = 0;
    for name in evils.filter_map(|e| Some(e.unwrap().file_name().to_str()?.strip_suffix(".wasm")?.to_string())) {
        let answer = server.send("POST", "/admin/v1/stage", &headers, &std::fs::read(evil(&name)).unwrap());
        assert!(matches!(answer.status, 200 | 422), "{name}: {} {}", answer.status, answer.text);
        refused += usize::from(answer.status == 422);
        if answer.status == 422 {
            answer.refused(422);
        }
    }
    assert!(refused > 3, "{refused}");
    for junk in [&b""[..], b"junk", b"\0asm\x01\0\0\0"] {
        server.send("POST", "/admin/v1/stage", &headers, junk).refused(422);
    }
    server.send("POST", "/admin/v1/stage?sha256=00", &headers, &bundled("fp8_block")).refused(400);
    let other = format!("/admin/v1/stage?sha256={}", "0".repeat(64));
    server.send("POST", &other, &headers, &bundled("fp8_block")).refused(422);
    server.send("POST", "/admin/v1/stage?set=nothing%3D1", &headers, &bundled("fp8_block")).refused(422);
    let stage = |body: Value| server.as_admin("POST", "/admin/v1/stage", &body);
    stage(json!({ "bundled": "none" })).refused(404);
    stage(json!({ "path": "../token" })).refused(403);
    stage(json!({ "path": "/etc/passwd" })).refused(403);
    stage(json!({})).refused(400);
    stage(json!({ "path": "ok.wasm" })).good();
    assert_eq!((active(&server), server.checksums()), before);
    let ledger = server.as_admin("GET", "/admin/v1/ledger?last=1000", &json!({})).good();
    let noted = ledger["entries"].as_array().unwrap().iter().filter(|e| e["event"] == "patch.refused").count();
    assert!(noted >= refused, "{noted} of {refused}");
}

#[test]
fn the_command_line_speaks_to_both_doors() {
    let tmp = tempfile::tempdir().unwrap();
    let token = token_file(tmp.path(), TOKEN);
    let socket = format!("unix:{}", text(&tmp.path().join("admin.sock")));
    let server = Server::start(&["--admin", &socket, "--admin-token-file", &text(&token)]);
    let plain = server.checksums();
    let status = patchhost(["status", "--admin", &socket, "--ledger", "5", "--format", "json"]).good().json();
    assert_eq!(status["status"]["weight_version"], server.get("/weight_info").good()["weight_version"]);
    let wasm = text(&repo().join("guests/fp8_block.wasm"));
    let swapped = patchhost(["swap", &wasm, "--when", "now", "--admin", &socket, "--reason", "cli"]).good();
    assert!(swapped.stdout.contains("staged fp8_block") && swapped.stdout.contains("landed: "), "{}", swapped.stdout);
    assert_eq!(server.checksums(), expected(&step(0), &["moe_loader", "fp8_block"]));
    let door = ["--server", server.url.as_str(), "--admin-token-file"];
    let over_tcp = |verb: &[&str]| patchhost(verb.iter().copied().chain(door).chain([text(&token).as_str()]));
    let back = over_tcp(&["rollback", "--when", "now"]).good();
    assert!(back.stdout.contains("landed: "), "{}", back.stdout);
    assert_eq!(server.checksums(), plain);
    assert!(over_tcp(&["status"]).good().stdout.contains("patch set sha256:"));
    let digest = over_tcp(&["status", "--format", "json"]).good().json()["status"]["board"]["retained"][0].clone();
    assert!(digest.is_string());
    over_tcp(&["swap", "--cancel"]).good();
    let refused = over_tcp(&["swap", &"0".repeat(64)]).refused(2, tmp.path());
    assert!(refused.contains("no staged or retained patch"), "{refused}");
    // The server's text, taken apart again.
    let refused = over_tcp(&["swap", &"0".repeat(64), "--format", "json"]).json();
    let [what, why, next] = ["what", "why", "next"].map(|name| refused[name].as_str().unwrap());
    assert!(why.contains("no staged or retained patch"), "{refused}");
    assert_eq!(refused["error"], format!("refused: {what}\n  why: {why}\n  next: {next}"));
    patchhost(["status"]).refused(2, tmp.path());
    let nobody = format!("unix:{}", text(&tmp.path().join("none.sock")));
    patchhost(["status", "--admin", &nobody]).refused(2, tmp.path());
    std::fs::write(tmp.path().join("other"), "another token of the tests").unwrap();
    let other = text(&tmp.path().join("other"));
    patchhost(["status", "--server", server.url.as_str(), "--admin-token-file", &other]).refused(2, tmp.path());
}
