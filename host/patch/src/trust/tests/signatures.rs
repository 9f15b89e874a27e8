use super::*;
use crate::audit::Severity;

/// A policy with the signers a, b and c.
fn policy(keys: &[SecretKey; 3], more: &str, signer: &str) -> String {
    let signers = keys.iter().zip(["a", "b", "c"]).map(|(key, name)| {
        format!(
            "[[trust.signers]]\nname = \"{name}\"\nkey = \"{}\"\n{}",
            key.public(),
            if name == "a" { signer } else { "" }
        )
    });
    format!("[trust]\nrequire_signature = true\n{more}\n{}", signers.collect::<String>())
}

fn keys() -> [SecretKey; 3] {
    [0; 3].map(|_| SecretKey::generate(None))
}

#[test]
fn a_signature_is_asked_for_and_counts() {
    let keys = keys();
    let rig = Rig::new(&policy(&keys, "", ""));
    let why = error(rig.admit("fp8_block", &[]));
    assert!(why.contains("PH705 unsigned: nobody signed it; the policy asks for 1 of a, b, c"), "{why}");
    rig.sign("fp8_block", &keys[0], None);
    rig.admit("fp8_block", &[]).unwrap();
    assert_eq!(rig.gate().judge(&rig.candidate("fp8_block"), None).unwrap().summary.line(), "signed: a ✓  no lock");
    // The signature of another file.
    std::fs::copy(rig.path("fp8_block.wasm.sig"), rig.path("gpu_layout.wasm.sig")).unwrap();
    let why = error(rig.admit("gpu_layout", &[]));
    assert!(why.contains("PH706 bad-signature: the signature of `a` is not good: it is for sha256:"), "{why}");
    // The host vouches for its own.
    crate::patch::resolve("fp8_block").unwrap().admit(&rig.gate(), &Terms::default()).unwrap();
}

#[test]
fn one_signer_counts_once() {
    let keys = keys();
    let rig = Rig::new(&policy(&keys, "threshold = 2", ""));
    let path = rig.path("fp8_block.wasm");
    let bytes = std::fs::read(&path).unwrap();
    // The same signer twice, in a file that no verb would write.
    let mut file = Signatures::default();
    for comment in ["once", "twice"] {
        file.all.push(Signature::make(&bytes, &keys[0], None, Some(comment), then()));
    }
    std::fs::write(Signatures::path_of(&path), file.to_text().unwrap()).unwrap();
    let why = error(rig.admit("fp8_block", &[]));
    assert!(why.contains("PH708 partial-signature: 1 of 2 signers signed it; signers are a, b, c"), "{why}");
    rig.sign("fp8_block", &keys[2], None);
    rig.admit("fp8_block", &[]).unwrap();
}

#[test]
fn strangers_and_those_for_other_hooks_do_not_count() {
    let keys = keys();
    let rig = Rig::new(&policy(&keys, "", "hooks = [\"layout\"]\n"));
    rig.sign("fp8_block", &SecretKey::generate(None), None);
    let why = error(rig.admit("fp8_block", &[]));
    assert!(why.contains("PH707 signer-not-allowed") && why.contains("none of the policy's signers"), "{why}");
    rig.sign("fp8_block", &keys[0], None);
    let why = error(rig.admit("fp8_block", &[]));
    assert!(why.contains("who is a signer for layout, not for block-quant"), "{why}");
    rig.sign("gpu_layout", &keys[0], None);
    rig.admit("gpu_layout", &[]).unwrap();
    // With enough others they do no harm, and are told.
    rig.sign("fp8_block", &keys[1], None);
    rig.admit("fp8_block", &[]).unwrap();
    let judged = rig.gate().judge(&rig.candidate("fp8_block"), None).unwrap();
    let told: Vec<_> = judged.findings.iter().map(|f| (f.id, f.severity)).collect();
    assert_eq!(told, [("PH707", Severity::Warn); 2], "{:?}", judged.findings);
}

#[test]
fn signatures_and_signers_end() {
    let keys = keys();
    let day = |text: &str| Some(text.parse().unwrap());
    let rig = Rig::new(&policy(&keys, "", "not_after = 2026-11-27\n"));
    rig.sign("fp8_block", &keys[0], None);
    assert!(error(rig.admit("fp8_block", &[])).contains("who is a signer until 2026-11-27 only"));
    let rig = Rig::new(&policy(&keys, "", "not_after = 2026-11-28\n"));
    rig.sign("fp8_block", &keys[0], day("2026-11-27"));
    let why = error(rig.admit("fp8_block", &[]));
    assert!(why.contains("PH706") && why.contains("the signature of `a` ended on 2026-11-27"), "{why}");
    rig.sign("fp8_block", &keys[0], day("2026-11-28"));
    rig.admit("fp8_block", &[]).unwrap();
    // The day after, with the same files.
    let later = rig.gate().at(|| humantime::parse_rfc3339("2026-11-29T00:00:00Z").unwrap());
    assert!(rig.candidate("fp8_block").admit(&later, &Terms::default()).is_err());
}

#[test]
fn a_revoked_key_does_not_count_and_takes_its_entries_along() {
    let keys = keys();
    let rig = Rig::new(&policy(&keys, "", ""));
    rig.sign("fp8_block", &keys[0], None);
    rig.sign("gpu_layout", &keys[0], None);
    rig.sign("gpu_layout", &keys[1], None);
    rig.lock("fp8_block", &with(&[])).unwrap();
    rig.lock("gpu_layout", &with(&[])).unwrap();
    let done = rig.gate().revoke(&[Revoked::Key(keys[0].public())], "laptop stolen").unwrap();
    assert_eq!(done.removed, ["fp8_block"]);
    let why = error(rig.admit("fp8_block", &[]));
    assert!(why.contains("PH714 revoked") && why.contains("laptop stolen"), "{why}");
    rig.admit("gpu_layout", &[]).unwrap();
    // Without a policy that asks for signatures a revoked key is refused too.
    let mut rig = rig;
    rig.policy = Policy::default();
    std::fs::remove_file(rig.path(LOCK_FILE)).unwrap();
    assert!(error(rig.admit("fp8_block", &[])).contains("laptop stolen"));
}

/// What comes over the admin API has no file beside it: its signatures lie in a folder, or in the lock.
#[test]
fn signatures_lie_in_the_lock_and_in_a_folder() {
    let keys = keys();
    let rig = Rig::new(&policy(&keys, "signatures = \"sigs\"", ""));
    rig.sign("fp8_block", &keys[0], None);
    let bytes = std::fs::read(rig.path("fp8_block.wasm")).unwrap();
    let sent = || Candidate::from_bytes("fp8_block.wasm", bytes.clone()).unwrap();
    assert!(sent().admit(&rig.gate(), &Terms::default()).is_err());
    std::fs::create_dir(rig.path("sigs")).unwrap();
    let in_folder = rig.path("sigs").join(format!("{}.sig", sent().digest().hex()));
    std::fs::copy(rig.path("fp8_block.wasm.sig"), &in_folder).unwrap();
    sent().admit(&rig.gate(), &Terms::default()).unwrap();
    std::fs::remove_file(&in_folder).unwrap();
    rig.lock("fp8_block", &with(&[])).unwrap();
    sent().admit(&rig.gate(), &Terms::default()).unwrap();
    // A forged one in the lock is no better than a forged one anywhere.
    let text = std::fs::read_to_string(rig.path(LOCK_FILE)).unwrap();
    let forged = text.replace("signed_at = \"2026-11-28", "signed_at = \"2026-11-29");
    std::fs::write(rig.path(LOCK_FILE), forged).unwrap();
    let why = sent().admit(&rig.gate(), &Terms::default()).unwrap_err().to_string();
    assert!(why.contains("did not make it for these bytes and words"), "{why}");
}

#[test]
fn garbage_beside_a_component_refuses_it() {
    let rig = Rig::new("");
    for (text, why) in [("garbage", "PH706"), ("version = 1\n[[signature]]\n", "missing field")] {
        std::fs::write(rig.path("fp8_block.wasm.sig"), text).unwrap();
        let error = error(rig.admit("fp8_block", &[]));
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn policies_that_contradict_themselves_are_refused() {
    let key = SecretKey::generate(None).public();
    let signer = |name: &str, more: &str| format!("[[trust.signers]]\nname = \"{name}\"\nkey = \"{key}\"\n{more}\n");
    for (text, why) in [
        ("[trust]\nrequire_signature = true\n".to_owned(), "nothing could ever run"),
        ("[trust]\nthreshold = 0\n".to_owned(), "must be from 1 to"),
        (signer("a", "") + &signer("b", ""), "he would count twice"),
        (signer("a", "hooks = [\"layuot\"]"), "did you mean `layout`"),
        (signer("", ""), "has no name"),
        (signer("a", "not_after = \"soon\""), "is no day"),
        ("[[trust.revoked]]\nreason = \"x\"\n".to_owned(), "exactly one of"),
        (format!("[[trust.revoked]]\nkey = \"{key}\"\nreason = \" \"\n"), "without a reason"),
        ("[trust]\nrequire_sgnature = true\n".to_owned(), "line 2, column 1: unknown field `require_sgnature`"),
        (
            "[trust]\nthreshold = \"2\"\n".to_owned(),
            "line 2, column 13: invalid type: string \"2\", expected a whole number",
        ),
        ("[hooks.block-qant]\n".to_owned(), "did you mean `block-quant`"),
        ("[limits]\nmemory_bytes = 99999999999\n".to_owned(), "limits.memory_bytes"),
        ("[limts]\n".to_owned(), "did you mean `limits`"),
    ] {
        let error = Policy::parse(&text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}
