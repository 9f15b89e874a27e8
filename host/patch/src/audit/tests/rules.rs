//! Every rule fires on something, and is silent on something.

#![allow(clippy::unwrap_used)]

use super::module;
use crate::audit::{AuditOptions, catalogue, inspect_with};
use crate::base::Grants;

/// Rules without a fixture here, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    ("PH409", "every proposal that is not tier 1 is refused by name before"),
    ("PH705", "needs signatures: the tests of `trust`"),
    ("PH706", "needs signatures: the tests of `trust`"),
    ("PH707", "needs signatures: the tests of `trust`"),
    ("PH708", "needs signatures: the tests of `trust`"),
    ("PH709", "needs a lock: the tests of `trust`"),
    ("PH710", "needs a lock: the tests of `trust`"),
    ("PH711", "needs a lock: the tests of `trust`"),
    ("PH712", "needs a lock: the tests of `trust`"),
    ("PH713", "needs a compiler: `patchhost rebuild`"),
    ("PH714", "needs revocations: the tests of `trust`"),
    ("PH715", "depends on the engine that is linked; the comparison of versions has its own test"),
    ("PH717", "needs a policy: the tests of `levels`"),
    ("PH950", "needs an answer: the tests of the probe"),
    ("PH951", "needs an answer: the tests of the probe"),
    ("PH952", "needs an answer: the tests of the probe"),
    ("PH953", "needs an answer: the tests of the probe"),
    ("PH954", "needs an answer: the tests of the probe"),
    ("PH955", "needs an answer: the tests of the probe"),
    ("PH956", "needs an answer: the tests of the probe"),
    ("PH957", "needs an answer: the tests of the probe"),
    ("PH958", "needs an answer: the tests of the probe"),
    ("PH901", "needs two versions: the tests of `diff`"),
    ("PH902", "needs two versions: the tests of `diff`"),
    ("PH903", "needs two versions: the tests of `diff`"),
    ("PH904", "needs two versions: the tests of `diff`"),
    ("PH905", "needs two versions: the tests of `diff`"),
    ("PH906", "needs two versions: the tests of `diff`"),
    ("PH907", "needs two versions: the tests of `diff`"),
    ("PH909", "needs two versions: the tests of `diff`"),
    ("PH910", "needs two versions: the tests of `diff`"),
    ("PH911", "needs two versions: the tests of `diff`"),
];

pub(super) fn component(inner: &str) -> Vec<u8> {
    wat::parse_str(format!("(component {inner})")).unwrap()
}

/// A hook whose core function has this body; `more` stands beside it in the module.
pub(super) fn hook(body: &str, more: &str, options: &str) -> Vec<u8> {
    component(&hook_text(body, more, options))
}

pub(super) fn hook_text(body: &str, more: &str, options: &str) -> String {
    format!(
        r#"(core module $m
            (memory (export "memory") 1 1) {more}
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func $scales (export "scales") (param i32 i32) (result i32) {body}))
          (core instance $i (instantiate $m))
          (func $scales (param "amax" (list f32)) (result (list f32)) (canon lift (core func $i "scales")
            (memory $i "memory") (realloc (func $i "realloc")) {options}))
          (instance $hook (export "activation-scales" (func $scales)))
          (export "patchhost:patch/block-quant@0.1.0" (instance $hook))"#
    )
}

fn data(text: &[u8]) -> Vec<u8> {
    let escaped: String = text.iter().map(|byte| format!("\\{byte:02x}")).collect();
    module(&format!("(memory 1 1) (data (i32.const 0) \"{escaped}\")"))
}

fn noise(length: u32) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ (i.wrapping_mul(40_503) >> 7) as u8).collect()
}

/// What each rule fires on.
fn positive(id: &str) -> (Vec<u8>, AuditOptions) {
    let mut options = AuditOptions::default();
    let empty = || component("");
    let bytes = match id {
        "PH001" => b"hello".to_vec(),
        "PH002" => module("(func (drop (i32.add (i32.const 1) (i64.const 1))))"),
        "PH003" => vec![0; 2 << 20],
        "PH004" => [component("(core module (func))"), b"polyglot.zip".to_vec()].concat(),
        "PH005" => b"\x7fELF\x02\x01\x01".to_vec(),
        "PH006" => module("(@custom \"x-cfg\" \"hidden\")"),
        "PH007" => module("(func (export \"a\\u{202e}b\"))"),
        "PH101" => component("(import \"acme:gpu/direct@1.0.0\" (instance))"),
        "PH102" => component("(import \"wasi:filesystem/types@0.2.6\" (instance))"),
        "PH103" => component("(import \"wasi:sockets/tcp@0.2.6\" (instance))"),
        "PH104" => component("(import \"wasi:random/random@0.2.6\" (instance))"),
        "PH105" => component("(import \"wasi:cli/environment@0.2.6\" (instance))"),
        "PH107" => {
            options.grants = Grants::inert();
            empty()
        }
        "PH109" => module("(import \"wasi_snapshot_preview1\" \"fd_write\" (func))"),
        "PH201" => empty(),
        "PH202" => component("(instance $i) (export \"acme:x/y@1.0.0\" (instance $i))"),
        "PH203" => of_version_0_2(&hook("unreachable", "", "")),
        "PH204" => hook("unreachable", "", "string-encoding=utf16"),
        "PH205" => component("(type (stream u8))"),
        "PH206" => component("(type (resource (rep i32)))"),
        "PH207" => hook("unreachable", "", ""),
        "PH208" => {
            let lists: String = (0..20).map(|i| format!("(type $t{} (list $t{i}))", i + 1)).collect();
            component(&format!("(type $t0 (list u8)) {lists} (type (func (param \"x\" $t20)))"))
        }
        "PH301" => module("(memory 1)"),
        "PH302" => module("(memory 1 1025)"),
        "PH303" => module("(memory 1 1 shared)"),
        "PH304" => module("(memory 1 1) (memory 1 1)"),
        "PH305" => module("(memory i64 1 1)"),
        "PH306" => module("(table 1 funcref)"),
        "PH307" => module("(memory 1 1) (func (drop (memory.grow (i32.const 1))))"),
        "PH308" => module("(memory 1 1) (global (export \"g\") (mut i32) (i32.const 0))"),
        "PH401" => module(
            "(func (param i64 i64 i64 i64) (result i64 i64)
                (i64.add128 (local.get 0) (local.get 1) (local.get 2) (local.get 3)))",
        ),
        "PH402" => module(
            "(func (param v128 v128 v128) (result v128)
                (f32x4.relaxed_madd (local.get 0) (local.get 1) (local.get 2)))",
        ),
        "PH403" => module("(memory 1 1) (func (drop (i32.atomic.load (i32.const 0))))"),
        "PH404" => module("(tag) (func (throw 0))"),
        "PH405" => module("(type (struct)) (func (drop (struct.new 0)))"),
        "PH406" => module("(func $f (return_call $f))"),
        "PH407" => {
            module("(type $f (func)) (type $c (cont $f)) (func (param (ref null $c)) (resume $c (local.get 0)))")
        }
        "PH408" => module("(func (result v128) (v128.const i32x4 0 0 0 0))"),
        "PH501" => module("(func $f) (start $f)"),
        "PH502" => module("(func (export \"f\") (loop (br 0)))"),
        "PH503" => module("(func (param i32) (loop (br_if 0 (local.get 0))))"),
        "PH504" => hook("(call $scales (local.get 0) (local.get 1))", "", ""),
        "PH505" => module("(type $t (func)) (table 1 1 funcref) (func (call_indirect (type $t) (i32.const 0)))"),
        "PH506" => module(&"(func)".repeat(50_000)),
        "PH507" => module("(func (param f32) (result i32) (i32.reinterpret_f32 (local.get 0)))"),
        "PH508" => module("(func)"),
        "PH509" => module("(memory 1 1) (func (param i32) (memory.fill (i32.const 0) (i32.const 0) (local.get 0)))"),
        "PH510" => hook("(i32.eq (local.get 0) (i32.const 0xC0FFEE11))", "", ""),
        "PH511" => hook("(global.set $n (i32.const 1)) (i32.const 0)", "(global $n (mut i32) (i32.const 0))", ""),
        "PH512" => module("(func unreachable)"),
        "PH601" => data(&noise(2048)),
        "PH602" => data(b"see https://evil.example/x"),
        "PH603" => data(b"-----BEGIN PRIVATE KEY-----"),
        "PH604" => data(b"\x7fELF\x02\x01\x01\0"),
        "PH605" => data(b"at /home/somebody/.cargo/registry/x.rs"),
        "PH606" => data(&[7; 4000]),
        "PH701" => empty(),
        "PH702" => {
            options.policy.toolchains = vec!["another compiler".to_owned()];
            bundled()
        }
        "PH703" => module("(func)"),
        "PH704" => module(&format!("(@custom \".debug_info\" \"{}\")", "x".repeat(1000))),
        "PH716" => module("(func)"),
        "PH801" => component(&"(core module)".repeat(5)),
        "PH802" => component("(component (core module $m) (core instance (instantiate $m)))"),
        "PH803" => super::nested_bomb(3, 10),
        "PH804" => component("(core module)"),
        other => panic!("rule {other} has no fixture, and no reason why"),
    };
    (bytes, options)
}

/// The hook with another version in its name: the same bytes but for one digit.
fn of_version_0_2(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let name = b"block-quant@0.1.0";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at + name.len() - 3] = b'2';
    bytes
}

fn bundled() -> Vec<u8> {
    crate::patch::bundled::BUNDLED.iter().find(|(name, _)| *name == "vocab_mask").unwrap().1.to_vec()
}

fn fires(id: &str, bytes: &[u8], options: &AuditOptions) -> bool {
    inspect_with(bytes, options).findings.iter().any(|finding| finding.id == id)
}

#[test]
fn every_rule_fires_and_is_silent() {
    let quiet = [component(""), bundled(), module("(memory 1 1)")];
    for rule in catalogue() {
        if ELSEWHERE.iter().any(|(id, _)| *id == rule.id) {
            continue;
        }
        let (bytes, options) = positive(rule.id);
        let report = inspect_with(&bytes, &options);
        let found = report.findings.iter().any(|finding| finding.id == rule.id);
        assert!(found, "{} {} does not fire: {:#?}", rule.id, rule.slug, report.findings);
        let silent = quiet.iter().any(|bytes| !fires(rule.id, bytes, &AuditOptions::default()));
        assert!(silent, "{} {} fires on everything", rule.id, rule.slug);
        assert!(!rule.about.is_empty() && !rule.precision().is_empty());
    }
}

#[test]
fn every_finding_says_what_where_why_and_what_to_do() {
    for rule in catalogue().iter().filter(|rule| !ELSEWHERE.iter().any(|(id, _)| *id == rule.id)) {
        let (bytes, options) = positive(rule.id);
        for finding in inspect_with(&bytes, &options).findings {
            assert!(!finding.message.is_empty() && !finding.fix.is_empty(), "{finding:?}");
            assert!(finding.message.chars().all(|c| !c.is_control()), "{finding:?}");
            assert!(finding.message.len() < 1500, "{finding:?}");
        }
    }
}
