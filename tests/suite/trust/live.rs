//! Candidates that come while a model runs.

use std::os::unix::fs::PermissionsExt;

use patchhost::live::{LiveOptions, Watcher};
use patchhost::patch::When;
use patchhost::trust::{Gate, Places, Policy, Revoked};
use serde_json::json;
use std::sync::Arc;

use super::{Desk, guest};
use crate::http_client::{Server, TOKEN, token_file};
use crate::live::{Rig, candidate, me};

fn gate(desk: &Desk) -> Arc<Gate> {
    let policy = Policy::default();
    Arc::new(Gate::new(&policy, Places::of(&policy.trust, Some(&desk.path("patchhost.toml")), None)))
}

fn rig(desk: &Desk) -> (Rig, Arc<Gate>) {
    let gate = gate(desk);
    let options = LiveOptions { gate: gate.clone(), ..LiveOptions::default() };
    (Rig::with("qwen3_moe", &[("fp8_block", &[])], Policy::default(), options), gate)
}

#[test]
fn a_watched_file_that_is_not_in_the_lock_is_refused_and_written_down() {
    let desk = Desk::new(&[]);
    std::fs::create_dir(desk.path("watched")).unwrap();
    std::fs::copy(guest("fp8_block_mse"), desk.path("watched/quant.wasm")).unwrap();
    std::fs::copy(guest("fp8_block"), desk.path("fp8_block.wasm")).unwrap();
    desk.run("lock fp8_block.wasm").good();
    let (rig, _) = rig(&desk);
    let (before, active) = (rig.bits(), rig.active());
    let watched = [desk.path("watched")];
    let watcher = Watcher::start(&rig.live, &watched, Arc::new(|_| Vec::new()), When::Refit).unwrap();
    let seen = watcher.sync();
    let why = seen[0].outcome.as_ref().unwrap_err();
    assert!(why.contains("PH709 not-in-lock") && why.contains("patchhost lock "), "{why}");
    rig.refit();
    assert_eq!((rig.bits(), rig.active()), (before, active));
    let refused = rig.last("patch.refused");
    assert_eq!(refused["stage"], "verify");
    assert!(refused["why"].as_str().unwrap().contains("PH709"), "{refused}");
    // A decision holds at once, for the same running model.
    desk.run("lock watched/quant.wasm").good();
    assert!(watcher.reload(&me())[0].outcome.is_ok());
    assert!(rig.refit().swap.is_some());
    let staged = rig.last("patch.staged");
    assert_eq!(staged["trust"]["entry"], "quant");
    assert!(staged["trust"]["lock"].as_str().unwrap().starts_with("sha256:"), "{staged}");
}

#[test]
fn what_is_revoked_meanwhile_is_neither_swapped_nor_rolled_back_to() {
    let desk = Desk::new(&[]);
    let (rig, gate) = rig(&desk);
    let to = rig.stage("fp8_block_mse", &[]);
    rig.swap(to, When::Now);
    let old = Revoked::Digest(*candidate("fp8_block").digest());
    gate.revoke(&[old], "wrong scales").unwrap();
    let error = rig.live.rollback(When::Refit, None, &me()).unwrap_err().to_string();
    assert!(error.contains("PH714 revoked: wrong scales"), "{error}");
    assert!(rig.live.stage(candidate("fp8_block"), None, &[], &me()).is_err());
    assert_eq!(rig.last("patch.quarantined")["reason"], "PH714 revoked: wrong scales");
    // These settings only: the component itself is not revoked.
    let hf = rig.stage("fp8_block_mse", &[("candidates", "8")]);
    gate.revoke(&[Revoked::Digest(hf)], "with these settings").unwrap();
    let request = patchhost::patch::SwapRequest::to(hf);
    assert!(rig.live.swap(&request, &me()).unwrap_err().to_string().contains("with these settings"));
    rig.refit();
    // The patch that is active: the next refit does not ask it, and the weights that serve serve on.
    let before = rig.bits();
    gate.revoke(&[Revoked::Digest(*candidate("fp8_block_mse").digest())], "these too").unwrap();
    let refit = rig.live.refit(rig.checkpoint.clone(), Default::default(), &me(), &|_, _, _| {});
    let error = refit.err().unwrap().to_string();
    assert!(error.contains("PH714 revoked: these too"), "{error}");
    assert_eq!(rig.bits(), before);
}

#[test]
fn the_admin_api_asks_the_same_gate() {
    let desk = Desk::new(&["fp8_block"]);
    desk.run("lock fp8_block.wasm").good();
    let token = token_file(desk.folder(), TOKEN).display().to_string();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let lock = desk.path("patchhost.lock").display().to_string();
    let server = Server::start(&["--admin-token-file", &token, "--lock", &lock]);
    let stage = |name: &str| {
        let bytes = std::fs::read(guest(name)).unwrap();
        let bearer = format!("Bearer {TOKEN}");
        let headers = [("Content-Type", "application/wasm"), ("Authorization", bearer.as_str())];
        server.send("POST", &format!("/admin/v1/stage?name={name}.wasm"), &headers, &bytes)
    };
    let why = stage("gpu_layout").refused(422);
    assert!(why.contains("PH709") && why.contains(&format!("patchhost lock gpu_layout.wasm --lock {lock}")), "{why}");
    stage("fp8_block").good();
    let bundled = json!({ "bundled": "gpu_layout", "settings": { "backend": "flashinfer" } });
    assert!(server.as_admin("POST", "/admin/v1/stage", &bundled).refused(422).contains("PH709"));
    server.as_admin("POST", "/admin/v1/stage", &json!({ "bundled": "gpu_layout" })).good();
}

#[test]
fn a_training_run_goes_on_without_what_is_not_locked() {
    let desk = Desk::new(&["fp8_block"]);
    desk.run("lock fp8_block.wasm").good();
    std::fs::create_dir(desk.path("watched")).unwrap();
    std::fs::copy(guest("fp8_block_mse"), desk.path("watched/quant.wasm")).unwrap();
    let ran = desk
        .run(
            "train --component fp8_block.wasm --watch watched --steps 2 --prompts-per-step 2 --samples 2 --max-tokens 4 \
             --metrics-out m --ledger ledger.jsonl",
        )
        .good();
    assert!(ran.stderr.contains("quant.wasm is not used") && ran.stderr.contains("PH709"), "{}", ran.stderr);
    let ledger = desk.text("ledger.jsonl");
    assert!(ledger.contains("\"event\":\"patch.refused\"") && ledger.contains("PH709"), "{ledger}");
    desk.run("log verify ledger.jsonl").good();
}
