use super::Desk;

fn public(desk: &Desk, key: &str) -> String {
    desk.text(&format!("{key}.pub")).split(' ').next().unwrap().trim().to_owned()
}

fn policy(desk: &Desk, keys: &[&str], more: &str) {
    let signers: String = keys
        .iter()
        .map(|key| format!("[[trust.signers]]\nname = \"{key}\"\nkey = \"{}\"\n", public(desk, key)))
        .collect();
    desk.write("patchhost.toml", &format!("[trust]\nrequire_signature = true\n{more}{signers}"));
}

#[test]
fn two_of_three_must_sign() {
    let desk = Desk::new(&["fp8_block", "gpu_layout"]);
    for key in ["a", "b", "c", "stranger"] {
        desk.run(&format!("keygen --out {key} --name {key}")).good();
    }
    policy(&desk, &["a", "b", "c"], "threshold = 2\n");
    let load = || desk.load("--component fp8_block.wasm");
    assert!(load().refused(1, desk.folder()).contains("PH705 unsigned"));
    desk.run("sign fp8_block.wasm --key a").good();
    // The same one again is still one.
    desk.run("sign fp8_block.wasm --key a --comment again").good();
    desk.run("sign fp8_block.wasm --key stranger").good();
    let why = load().refused(1, desk.folder());
    assert!(why.contains("PH707 signer-not-allowed") && why.contains("PH708 partial-signature: 1 of 2"), "{why}");
    let verify = desk.run("verify fp8_block.wasm");
    assert!(verify.stdout.contains("good: a at ") && verify.stdout.contains("1 of 2 needed, 3 signers trusted"));
    verify.refused(1, desk.folder());
    desk.run("sign fp8_block.wasm --key b --not-after 2999-12-31").good();
    load().good();
    let verified = desk.run("--format json verify fp8_block.wasm").good().json();
    assert_eq!(verified["good"], true);
    assert_eq!(verified["signed"].as_array().unwrap().len(), 2);
    let refused = desk.run("--format json verify gpu_layout.wasm");
    assert_eq!((refused.code, &refused.json()["good"]), (1, &serde_json::json!(false)));
    // The host's own patches need no signature.
    desk.load("--component fp8_block").good();
    // Locked, the lock has the signatures; a revoked key takes what hangs on it along.
    desk.run("lock fp8_block.wasm").good();
    std::fs::remove_file(desk.path("fp8_block.wasm.sig")).unwrap();
    load().good();
    let stolen = format!("revoke {} --reason stolen", public(&desk, "b"));
    desk.run(&stolen).good();
    let why = load().refused(1, desk.folder());
    assert!(why.contains("PH708"), "{why}");
}

#[test]
fn one_byte_of_file_or_signature() {
    let desk = Desk::new(&["fp8_block", "gpu_layout"]);
    desk.run("keygen --out k --name k").good();
    desk.run("sign fp8_block.wasm --key k").good();
    let verify = || desk.run("verify fp8_block.wasm --signer k.pub");
    verify().good();
    desk.run(&format!("verify fp8_block.wasm --signer {}", public(&desk, "k"))).good();
    let (good, signed) = (std::fs::read(desk.path("fp8_block.wasm")).unwrap(), desk.text("fp8_block.wasm.sig"));
    for at in [0, 1000, good.len() / 2, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        std::fs::write(desk.path("fp8_block.wasm"), bytes).unwrap();
        assert!(verify().refused(1, desk.folder()).contains("PH706 bad-signature"));
    }
    std::fs::write(desk.path("fp8_block.wasm"), &good).unwrap();
    let at = signed.find("signature = \"").unwrap() + 20;
    let other = if signed.as_bytes()[at] == b'A' { "B" } else { "A" };
    desk.write("fp8_block.wasm.sig", &format!("{}{other}{}", &signed[..at], &signed[at + 1..]));
    assert!(verify().refused(1, desk.folder()).contains("did not make it"));
    // The signature of another file.
    desk.write("gpu_layout.wasm.sig", &signed);
    let why = desk.run("verify gpu_layout.wasm --signer k.pub").refused(1, desk.folder());
    assert!(why.contains("it is for sha256:"), "{why}");
}

#[test]
fn keys_and_signatures_are_handled_with_care() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::new(&["fp8_block"]);
    let made = desk.run("--format json keygen --out k").good();
    let secret = desk.text("k").lines().find_map(|l| l.strip_prefix("secret = ")).unwrap().trim_matches('"').to_owned();
    assert_eq!(std::fs::metadata(desk.path("k")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!made.stdout.contains(&secret));
    assert!(desk.run("keygen --out k").refused(2, desk.folder()).contains("never overwritten"));
    assert!(desk.text("k").contains(&secret));
    assert!(desk.run("keygen --out no/where/k").refused(2, desk.folder()).contains("exists and can be written"));
    std::fs::set_permissions(desk.path("k"), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(desk.run("sign fp8_block.wasm --key k").refused(2, desk.folder()).contains("0644"));
    std::fs::set_permissions(desk.path("k"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(
        desk.run("sign fp8_block.wasm --key k --not-after 2020-01-01").refused(2, desk.folder()).contains("is over")
    );
    assert!(desk.run("sign fp8_block.wasm --key k.pub").refused(2, desk.folder()).contains("key file"));
    desk.write("x.wasm", "nothing");
    assert!(desk.run("sign x.wasm --key k").refused(1, desk.folder()).contains("PH001"));
    desk.run("verify fp8_block.wasm").refused(2, desk.folder());
    desk.run("verify fp8_block.wasm --signer nobody").refused(2, desk.folder());
    desk.run("verify fp8_block.wasm --signer k.pub --threshold 2").refused(2, desk.folder());
    desk.run("verify fp8_block.wasm --signer k.pub").refused(1, desk.folder());
}
