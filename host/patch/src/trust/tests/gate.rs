use super::*;
use crate::base::Grants;
use crate::patch::resolve;

#[test]
fn without_policy_and_lock_everything_is_admitted() {
    let rig = Rig::new("");
    rig.admit("fp8_block", &[]).unwrap();
    rig.admit("fp8_block", &[("profile", "hf")]).unwrap();
    assert!(!exists(&rig.path(LOCK_FILE)));
    let judged = rig.gate().judge(&rig.candidate("fp8_block"), None).unwrap();
    assert_eq!(judged.summary.line(), "unsigned  no lock");
    assert!(Gate::default().judge(&rig.candidate("fp8_block"), None).is_ok());
}

#[test]
fn a_lock_admits_what_it_has_and_nothing_else() {
    let rig = Rig::new("");
    let deepseek: &[(&str, &str)] = &[("profile", "deepseek")];
    let recorded = rig.lock("fp8_block", &with(deepseek)).unwrap();
    assert!(recorded.began);
    assert_eq!(recorded.changes[0].part, "new");
    assert_eq!(rig.admit("fp8_block", deepseek).unwrap(), recorded.entry.generation);
    // Under another name they are the same bytes.
    std::fs::copy(rig.path("fp8_block.wasm"), rig.path("other.wasm")).unwrap();
    rig.admit("other", deepseek).unwrap();

    let why = error(rig.admit("fp8_block", &[("profile", "hf")]));
    assert!(why.contains("PH710") && why.ends_with("--set profile=hf"), "{why}");
    let why = error(rig.admit("fp8_block", &[]));
    assert!(why.contains("the settings are none"), "{why}");
    let why = error(rig.admit("gpu_layout", &[]));
    assert!(why.contains("PH709 not-in-lock") && why.contains("gpu_layout.wasm"), "{why}");
    // Other bytes under the name of an entry.
    std::fs::copy(rig.path("fp8_block_mse.wasm"), rig.path("fp8_block.wasm")).unwrap();
    let why = error(rig.admit("fp8_block", deepseek));
    assert!(why.contains("PH710 digest-mismatch: the lock has `fp8_block` with sha256:"), "{why}");
}

#[test]
fn what_comes_with_the_host_needs_no_entry_until_something_is_set() {
    let rig = Rig::new("");
    rig.lock("gpu_layout", &with(&[])).unwrap();
    let gate = rig.gate();
    let bundled =
        |set: &[(&str, &str)]| resolve("fp8_block").unwrap().admit(&gate, &Terms::settings(set.iter().copied()));
    bundled(&[]).unwrap();
    let judged = gate.judge(&resolve("fp8_block").unwrap(), Some(&[])).unwrap();
    assert_eq!(judged.summary.lock, LockState::Bundled);
    let why = bundled(&[("profile", "hf")]).unwrap_err().to_string();
    assert!(why.ends_with("patchhost lock fp8_block --set profile=hf"), "{why}");
}

#[test]
fn limits_and_grants_of_the_lock_are_what_runs() {
    let rig = Rig::new("[limits]\nfuel_base = 40_000_000\n");
    let decision = Decision {
        limits: vec!["memory_bytes=32MiB".into()],
        grants: GrantChange { inert: true, ..GrantChange::default() },
        ..with(&[])
    };
    rig.lock("fp8_block", &decision).unwrap();
    let passed = rig.candidate("fp8_block").admit(&rig.gate(), &Terms::default()).unwrap();
    let passed = passed.audit().unwrap();
    assert_eq!(passed.generation(), rig.admit("fp8_block", &[]).unwrap());
    assert_eq!((passed.limits().memory_bytes, passed.limits().fuel_base), (32 << 20, 40_000_000));
    assert_eq!(passed.grants(), &Grants::inert());
    // A second decision about the same bytes keeps what it does not mention; new bytes start from nothing.
    let kept = rig.lock("fp8_block", &with(&[("profile", "hf")])).unwrap().entry;
    assert_eq!((kept.grants, kept.limits.memory_bytes), (Grants::inert(), 32 << 20));
    std::fs::copy(rig.path("fp8_block_mse.wasm"), rig.path("fp8_block.wasm")).unwrap();
    let fresh = rig.lock("fp8_block", &with(&[])).unwrap();
    assert!(fresh.entry.grants.is_none() && fresh.entry.limits_set.is_empty());
    assert_eq!(fresh.entry.limits.memory_bytes, 64 << 20);
    let parts: Vec<_> = fresh.changes.iter().map(|change| change.part).collect();
    assert_eq!(parts, ["wasm", "size", "hooks", "imports", "config", "limits", "grants"]);
}

/// One byte of each part of the identity, changed by hand in the lock or in the policy.
#[test]
fn every_part_of_the_identity_is_compared() {
    let changes: [(&str, &str, &str, &str); 7] = [
        ("profile=deepseek", "profile=deepseex", "", "the settings are"),
        ("memory_bytes = 33554432", "memory_bytes = 33554431", "--limit memory_bytes=33554431", "not as it was locked"),
        ("fuel_base = 50000000", "fuel_base = 50000001", "--limit fuel_base=50000001", "limit fuel_base is 50000001"),
        ("wasi = \"inert\"", "wasi = { clocks = true }", "--clocks", "grants (wasi, clocks)"),
        ("[patch.grants]\nwasi = \"inert\"\n", "", "", "grants (none)"),
        ("imports = []", "imports = [\"patchhost:patch/row-source@0.1.0\"]", "", "imports give"),
        ("config = \"sha256:", "config = \"sha256:0000", "", ""),
    ];
    for (from, to, flag, why) in changes {
        let rig = Rig::new("");
        let decision = Decision {
            limits: vec!["memory_bytes=32MiB".into()],
            grants: GrantChange { inert: true, ..GrantChange::default() },
            ..with(&[("profile", "deepseek")])
        };
        rig.lock("fp8_block", &decision).unwrap();
        rig.admit("fp8_block", &[("profile", "deepseek")]).unwrap();
        rig.edit(LOCK_FILE, from, to);
        let error = error(rig.admit("fp8_block", &[("profile", "deepseek")]));
        assert!(error.contains(why), "{to}: {error}");
        if !why.is_empty() {
            assert!(
                error.contains("PH710") && error.contains("patchhost lock") && error.contains(flag),
                "{to}: {error}"
            );
        }
    }
    let mut rig = Rig::new("");
    rig.lock("fp8_block", &with(&[])).unwrap();
    rig.policy = Policy::parse("[limits]\nmemory_bytes = 67108863\n").unwrap();
    let error = error(rig.admit("fp8_block", &[]));
    assert!(error.contains("limit memory_bytes is 67108864 there, and 67108863 by the policy"), "{error}");
    rig.lock("fp8_block", &with(&[])).unwrap();
    rig.admit("fp8_block", &[]).unwrap();
}

#[test]
fn grants_are_for_the_bytes_in_the_lock() {
    let rig = Rig::new("");
    let grant = |change: GrantChange| Decision { grants: change, same_bytes: true, ..Decision::default() };
    let inert = GrantChange { inert: true, ..GrantChange::default() };
    rig.lock("fp8_block", &with(&[("profile", "hf")])).unwrap();
    let entry = rig.lock("fp8_block", &grant(inert.clone())).unwrap().entry;
    assert_eq!((entry.grants.lines().len(), entry.pairs().len()), (1, 1));
    let env = GrantChange { env: vec!["A".into(), "A".into()], random: true, ..GrantChange::default() };
    let lines = rig.lock("fp8_block", &grant(env)).unwrap().entry.grants.lines();
    assert_eq!(lines, ["wasi", "env A", "random"]);
    let none = GrantChange { none: true, ..GrantChange::default() };
    assert!(rig.lock("fp8_block", &grant(none)).unwrap().entry.grants.is_none());
    std::fs::copy(rig.path("fp8_block_mse.wasm"), rig.path("fp8_block.wasm")).unwrap();
    let error = rig.lock("fp8_block", &grant(inert)).unwrap_err().to_string();
    assert!(error.contains("grants belong to the bytes") && error.contains("patchhost lock "), "{error}");
}

#[test]
fn what_is_revoked_is_refused_before_anything_else() {
    let rig = Rig::new("");
    rig.lock("fp8_block", &with(&[])).unwrap();
    rig.lock("gpu_layout", &with(&[])).unwrap();
    let digest = *rig.candidate("fp8_block").digest();
    let done = rig.gate().revoke(&[Revoked::Digest(digest)], "wrong scales").unwrap();
    assert_eq!((done.fresh, done.removed), (true, vec!["fp8_block".to_owned()]));
    for set in [&[][..], &[("profile", "hf")]] {
        let why = error(rig.admit("fp8_block", set));
        assert!(why.contains("PH714 revoked") && why.contains("wrong scales"), "{why}");
    }
    // The bundled one has the same bytes; and nobody can lock it again.
    assert!(resolve("fp8_block").unwrap().admit(&rig.gate(), &Terms::default()).is_err());
    assert!(rig.lock("fp8_block", &with(&[])).unwrap_err().to_string().contains("PH714"));
    rig.admit("gpu_layout", &[]).unwrap();
    assert!(!rig.gate().revoke(&[Revoked::Digest(digest)], "again").unwrap().fresh);
    // A file of revocations that cannot be read admits nothing.
    std::fs::write(rig.path(REVOKED_FILE), "version = 1\n[[revoked]]\nreason = 1\n").unwrap();
    assert!(error(rig.admit("gpu_layout", &[])).contains("revocations"));
    // A generation can be revoked too.
    let rig = Rig::new("");
    let generation = rig.admit("gpu_layout", &[("backend", "flashinfer")]).unwrap();
    rig.gate().revoke(&[Revoked::Digest(generation)], "with these settings").unwrap();
    assert!(error(rig.admit("gpu_layout", &[("backend", "flashinfer")])).contains("with these settings"));
    rig.admit("gpu_layout", &[]).unwrap();
}

#[test]
fn a_lock_that_was_there_must_stay() {
    let rig = Rig::new("");
    rig.lock("fp8_block", &with(&[])).unwrap();
    let gate = rig.gate();
    rig.candidate("fp8_block").admit(&gate, &Terms::default()).unwrap();
    // A decision that comes while a host runs holds at once.
    let refused = rig.candidate("gpu_layout").admit(&gate, &Terms::default()).unwrap_err();
    assert!(refused.to_string().contains("PH709"));
    rig.lock("gpu_layout", &with(&[])).unwrap();
    rig.candidate("gpu_layout").admit(&gate, &Terms::default()).unwrap();
    std::fs::remove_file(rig.path(LOCK_FILE)).unwrap();
    let error = rig.candidate("fp8_block").admit(&gate, &Terms::default()).unwrap_err().to_string();
    assert!(error.contains("no such file"), "{error}");
    let required = Rig::new("[trust]\nrequire_lock = true\n");
    assert!(required.gate().check().is_err());
}

#[test]
fn versions_go_up_and_reviews_are_asked_for() {
    let mut rig = Rig::new("");
    rig.lock("fp8_block", &with(&[])).unwrap();
    rig.edit(LOCK_FILE, "version = \"0.1.0\"", "version = \"9.0.0\"");
    let error = rig.lock("fp8_block", &with(&[])).unwrap_err().to_string();
    assert!(error.contains("PH711 downgrade: 0.1.0 < 9.0.0") && error.contains("--allow-downgrade"), "{error}");
    rig.lock("fp8_block", &Decision { allow_downgrade: true, ..with(&[]) }).unwrap();

    rig.policy = Policy::parse("[trust]\nrequire_review = true\nreview_days = 30\n").unwrap();
    assert!(super::error(rig.admit("fp8_block", &[])).contains("PH712 no-review"));
    let note = Decision { review: Some(("me".into(), "looked".into())), ..Decision::default() };
    let entry = rig.lock("fp8_block", &note).unwrap().entry;
    assert_eq!(entry.review.as_ref().unwrap().who, "me");
    rig.admit("fp8_block", &[]).unwrap();
    // The review is about bytes, and it grows old.
    let later = rig.gate().at(|| humantime::parse_rfc3339("2026-12-30T12:00:00Z").unwrap());
    let none: [(&str, &str); 0] = [];
    let admitted = rig.candidate("fp8_block").admit(&later, &Terms::settings(none)).and_then(Admitted::audit);
    assert!(admitted.map(drop).unwrap_err().to_string().contains("older than 30 days"));
    // Nor can it be made younger by hand.
    rig.edit(LOCK_FILE, "date = \"2026-11-28\"", "date = \"2026-12-28\"");
    assert!(super::error(rig.admit("fp8_block", &[])).contains("by hand"));
}
