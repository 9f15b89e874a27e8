//! Names that nearly are the names of the interface, or that stand twice.

use patchhost::audit::inspect;

use super::{inside, wat};

/// The honest component with one name changed everywhere, to another of the same length.
fn renamed(from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = wat::honest("quant-patch");
    let mut at = 0;
    while at + from.len() <= bytes.len() {
        if bytes[at..].starts_with(from.as_bytes()) {
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        }
        at += 1;
    }
    bytes
}

#[test]
fn no_other_name_is_taken_for_ours() {
    let names = [
        ("patchhost:patch/identity@0.1.0", "patchhost:patch/identity@0.1.1"),
        ("patchhost:patch/identity@0.1.0", "patchhost:patch/identity@0.2.0"),
        ("patchhost:patch/identity@0.1.0", "patchhost:patch/identity@1.1.0"),
        ("patchhost:patch/identity@0.1.0", "patchhost:patch/identity@0.1-0"),
        ("patchhost:patch/identity@0.1.0", "patchhost:patch/IDENTITY@0.1.0"),
        ("patchhost:patch/identity@0.1.0", "Patchhost:patch/identity@0.1.0"),
        ("patchhost:patch/identity@0.1.0", "patchhost:patch/identitz@0.1.0"),
        ("patchhost:patch/identity@0.1.0", "patchhost:patch/identit\u{443}0.1.0"),
        ("patchhost:patch/block-quant@0.1.0", "patchhost:patch/block-quant@0.1.9"),
        ("patchhost:patch/block-quant@0.1.0", "patchhost:patch/block_quant@0.1.0"),
        ("patchhost:patch/block-quant@0.1.0", "patchhost:patch/BLOCK-quant@0.1.0"),
        ("patchhost:patch/block-quant@0.1.0", "patchhost:patch/block-quant@0.1.\u{7}"),
    ];
    for (from, to) in names {
        let report = inspect(&renamed(from, to));
        assert!(report.errors() > 0, "{to:?} is taken for {from}: {:?}", report.exports);
        for finding in &report.findings {
            super::child::plain(to, &finding.line());
        }
    }
    assert_eq!(inspect(&wat::honest("quant-patch")).errors(), 0);
    inside::host_lives();
}

#[test]
fn a_name_stands_once() {
    let text = r#"(component
        (core module $m (func (export "f")))
        (core instance $i (instantiate $m))
        (func $f (canon lift (core func $i "f")))
        (instance $a (export "describe" (func $f)))
        (export "patchhost:patch/identity@0.1.0" (instance $a))
        (export "patchhost:patch/identity@0.1.0" (instance $a)))"#;
    let report = inspect(&::wat::parse_str(text).unwrap());
    assert!(report.findings.iter().any(|f| f.id == "PH002"), "{:?}", report.findings);
}

/// Two versions of an interface in one component: the host calls the one that it speaks, or neither.
#[test]
fn a_second_version_beside_ours_is_refused() {
    let text = r#"(component
        (core module $m (func (export "f")))
        (core instance $i (instantiate $m))
        (func $f (canon lift (core func $i "f")))
        (instance $a (export "describe" (func $f)))
        (export "patchhost:patch/identity@0.1.0" (instance $a))
        (export "patchhost:patch/identity@0.1.1" (instance $a)))"#;
    let report = inspect(&::wat::parse_str(text).unwrap());
    assert!(report.errors() > 0, "{:?}", report.findings);
}
