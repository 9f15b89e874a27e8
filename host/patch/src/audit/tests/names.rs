//! Names are the author's word: they explain findings, and change nothing about what is found or how bad it is.

#![allow(clippy::unwrap_used)]

use super::module;
use super::rules::{component, hook};
use crate::audit::{Finding, Severity, diff, inspect};

/// Names that a reader believes.
const TRUSTED: [&str; 9] = [
    "core::fmt::write",
    "<core::fmt::Formatter>::pad",
    "<T as core::fmt::Display>::fmt",
    "alloc::raw_vec::finish_grow",
    "std::panicking::rust_panic_with_hook",
    "__rustc::rust_begin_unwind",
    "__rust_alloc",
    "dlmalloc::dlmalloc::Dlmalloc<A>::malloc",
    "cabi_realloc",
];

/// What a function does, and the rule that says so.
const SHAPES: [(&str, &str, Severity); 5] = [
    ("(call $F (local.get 0))", "PH504", Severity::Warn),
    ("(if (result i32) (local.get 0) (then (call $F (local.get 0))) (else (i32.const 1)))", "PH504", Severity::Info),
    ("(i32.eq (local.get 0) (i32.const 0xC0FFEE11))", "PH510", Severity::Info),
    ("(i32.store (i32.const 2000) (local.get 0)) (i32.const 0)", "PH511", Severity::Info),
    ("(global.set $n (local.get 0)) (i32.const 0)", "PH511", Severity::Warn),
];

fn findings(body: &str, name: &str) -> Vec<Finding> {
    let function = format!("(func $\"{name}\" (param i32) (result i32) {body})").replace("$F", &format!("$\"{name}\""));
    let more = format!("(global $n (mut i32) (i32.const 0)) {function}");
    inspect(&hook(&format!("(call $\"{name}\" (local.get 0))"), &more, "")).findings
}

/// Without what the name itself adds to a text.
fn plain(findings: &[Finding], name: &str) -> Vec<(&'static str, Severity, String, String)> {
    let without = |text: &str| {
        let mut text = text.replace(name, "NAME");
        for (from, to) in [(" (named like", "word)"), ("; 1 of 1 are named like", "word)")] {
            if let Some((head, rest)) = text.clone().split_once(from) {
                text = format!("{head}{}", rest.split_once(to).unwrap().1);
            }
        }
        // Offsets move with the length of names; here they end each text.
        text.split(" at 0x").next().unwrap_or_default().to_owned()
    };
    findings.iter().map(|f| (f.id, f.severity, without(&f.message), without(&f.where_))).collect()
}

#[test]
fn a_name_neither_removes_a_finding_nor_lowers_it() {
    for (body, id, severity) in SHAPES {
        let own = findings(body, "sabotage");
        assert!(own.iter().any(|f| (f.id, f.severity) == (id, severity)), "{body}: {own:#?}");
        for name in TRUSTED {
            let named = findings(body, name);
            assert_eq!(plain(&named, name), plain(&own, "sabotage"), "{body} as `{name}`");
            let explained = named.iter().any(|f| f.id == id && f.message.contains("author's word"));
            assert!(explained || (id, severity) == ("PH511", Severity::Warn), "{body} as `{name}`: {named:#?}");
        }
    }
}

#[test]
fn decoys_hide_no_recursion_without_an_end() {
    let decoys: String = (0..40)
        .map(|i| format!("(func $d{i} (param i32) (if (local.get 0) (then (call $d{i} (i32.const 0)))))"))
        .collect();
    let calls: String = (0..40).map(|i| format!("(call $d{i} (local.get 0))")).collect();
    let more = format!("{decoys} (func $\"core::fmt::last\" (call $\"core::fmt::last\"))");
    let report = inspect(&hook(&format!("{calls} (call $\"core::fmt::last\") unreachable"), &more, ""));
    let warned: Vec<_> = report.findings.iter().filter(|f| f.id == "PH504" && f.severity == Severity::Warn).collect();
    assert!(matches!(&warned[..], [one] if one.message.contains("core::fmt::last")), "{warned:#?}");
    assert!(report.findings.iter().any(|f| f.message == "24 more groups of functions that call each other"));
}

/// Names of exports are what a component links by; how they look decides nothing about what is reached.
#[test]
fn an_export_with_an_odd_or_long_name_is_reached() {
    let body = "(call $scales (local.get 0) (local.get 1))";
    let long = "s".repeat(300);
    for name in ["scales", "sc\\u{1b}ales", "sc\\u{202e}ales", &long] {
        let text = hook_text(body).replace("\"scales\"", &format!("\"{name}\""));
        let report = inspect(&component(&text));
        assert!(report.findings.iter().any(|f| f.id == "PH504"), "{name}: {:#?}", report.findings);
    }
    // Through an instance that is put together from exports.
    let text = hook_text(body).replace(
        "(func $scales (param",
        "(alias core export $i \"scales\" (core func $f)) (core instance $j (export \"scales\" (func $f)))
         (func $scales (param",
    );
    let text = text.replace("(core func $i \"scales\")", "(core func $j \"scales\")");
    assert!(inspect(&component(&text)).findings.iter().any(|f| f.id == "PH504"));
}

fn hook_text(body: &str) -> String {
    super::rules::hook_text(body, "", "")
}

/// A custom section is quiet for what is in it, never for what it is called.
#[test]
fn the_name_of_a_custom_section_hides_nothing() {
    let warned = |bytes: &[u8]| {
        let findings = inspect(bytes).findings;
        findings.iter().any(|f| f.id == "PH006" && f.severity == Severity::Warn)
    };
    for name in
        ["x-cfg", ".debug_info", "build_id", "reloc.CODE", ".dep-v0", "component-type:x", "wit-component:x", "version"]
    {
        assert!(warned(&module(&format!("(@custom \"{name}\" \"hidden\")"))), "{name}");
    }
    // Those that are read: quiet when they hold what they should, to the last byte.
    for (name, good) in [
        ("producers", "\\01\\08language\\01\\04Rust\\00"),
        ("target_features", "\\01+\\07simd128"),
        ("name", "\\00\\02\\01m"),
    ] {
        let section = |content: &str| module(&format!("(@custom \"{name}\" \"{content}\")"));
        assert!(!warned(&section(good)), "{name}");
        assert!(warned(&section(&format!("{good}\\f7hidden"))), "{name}, and more");
        assert!(warned(&section("\\ffhidden")), "{name}, garbage");
    }
    // Names of a module say nothing in a component, and the other way round.
    assert!(warned(&component("(@custom \"target_features\" \"\\01+\\07simd128\")")));
    assert!(warned(&module("(@custom \"component-name\" \"\\00\\02\\01m\")")));
}

#[test]
fn a_second_version_of_an_interface_is_an_extra_export() {
    let text = hook_text("unreachable") + "(export \"patchhost:patch/block-quant@0.9.0\" (instance $hook))";
    let report = inspect(&component(&text));
    assert!(report.findings.iter().any(|f| f.id == "PH202" && f.message.contains("@0.9.0")), "{:#?}", report.findings);
}

/// Two functions with one name, or with none: a call that goes to the other one is a change.
#[test]
fn a_diff_sees_a_call_of_another_function_of_the_same_name() {
    for name in ["$\"core::fmt::write\"", ""] {
        let side = |callee: u32| {
            module(&format!(
                "(func {name} (param i32) (result i32) (i32.mul (local.get 0) (i32.const 3)))
                 (func {} (param i32) (result i32) (i32.mul (local.get 0) (i32.const 4)))
                 (func (export \"scales\") (param i32) (result i32) (call {callee} (local.get 0)))",
                if name.is_empty() { "" } else { "(@name \"core::fmt::write\")" }
            ))
        };
        let diff = diff::diff(&side(0), &side(1));
        let names: Vec<_> = diff.functions.changed.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["scales"], "{:#?}", diff.functions);
        assert!(!diff.is_empty() && !diff.findings().iter().any(|f| f.id == "PH910"));
        assert!(diff::diff(&side(0), &side(0)).is_empty());
    }
    // Two that do the same in all they call and point to are one, wherever they stand.
    let twins = |callee: u32| {
        module(
            &format!(
                "(func $a (result i32) (call $c)) (func $b (result i32) (call $c)) (func $c (result i32) (i32.const 7))
             (func (export \"x\") (result i32) (call {callee}))"
            )
            .replace("$b", "")
            .replace("$a", ""),
        )
    };
    assert!(diff::diff(&twins(0), &twins(1)).functions.changed.is_empty());
}
