//! What must be refused, and what must not.

mod names;
mod rules;

use super::{Report, Severity, inspect};
use std::time::Instant;

fn audit(text: &str) -> Report {
    inspect(&wat::parse_str(text).expect("the fixture is valid text"))
}

fn errors(report: &Report) -> Vec<&'static str> {
    let errors = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
    let mut ids: Vec<_> = errors.map(|finding| finding.id).collect();
    ids.dedup();
    ids
}

#[track_caller]
fn refused(bytes: &[u8], id: &str) -> Report {
    let report = inspect(bytes);
    assert!(errors(&report).contains(&id), "wanted {id}: {:#?}", report.findings);
    report
}

/// Nested components, each level instantiating the one inside it `width` times.
fn nested_bomb(levels: usize, width: usize) -> Vec<u8> {
    let mut text = String::from("(core module $m)").to_owned() + &"(core instance (instantiate $m))".repeat(width);
    for _ in 0..levels {
        text = format!("(component $c {text}){}", "(instance (instantiate $c))".repeat(width));
    }
    wat::parse_str(format!("(component {text})")).expect("the bomb is valid text")
}

#[test]
fn the_bomb_of_587_bytes_is_refused_at_once() {
    let bomb = nested_bomb(7, 10);
    assert!(bomb.len() < 1_000, "{} bytes", bomb.len());
    let report = refused(&bomb, "PH802");
    assert_eq!(errors(&report), ["PH802", "PH803"]);
    assert!(report.facts.expanded_instances >= 100_000_000, "{}", report.facts.expanded_instances);
    assert!(!report.validated);
}

#[test]
fn instances_saturate() {
    let bomb = nested_bomb(14, 40);
    let report = refused(&bomb, "PH803");
    assert_eq!(report.facts.expanded_instances, u64::MAX);
}

#[test]
fn deep_nesting_is_refused() {
    refused(&nested_bomb(60, 1), "PH802");
}

fn module(inner: &str) -> Vec<u8> {
    wat::parse_str(format!("(component (core module {inner}))")).expect("valid text")
}

#[test]
fn fifty_thousand_functions_are_refused() {
    refused(&module(&"(func)".repeat(50_000)), "PH506");
}

#[test]
fn branch_tables_are_refused() {
    let table = format!("(func (param i32) (block (br_table {} (local.get 0))))", "0 ".repeat(100_000));
    refused(&module(&table), "PH506");
    // Spread over many functions as well.
    let small = format!("(func (param i32) (block (br_table {} (local.get 0))))", "0 ".repeat(100));
    refused(&module(&small.repeat(500)), "PH506");
}

#[test]
fn locals_times_blocks_are_refused() {
    let locals = "i32 ".repeat(1_200);
    let bomb = format!("(func (local {locals}) {})", "(loop)".repeat(1_200));
    refused(&module(&bomb), "PH506");
    let many = format!("(func (local {}) {})", "i32 ".repeat(400), "(loop)".repeat(400));
    refused(&module(&many.repeat(50)), "PH506");
    refused(&module(&format!("(func (local {}))", "i32 ".repeat(3_000))), "PH506");
}

#[test]
fn deep_blocks_are_refused() {
    let bomb = format!("(func {}{})", "(block ".repeat(1_000), ")".repeat(1_000));
    refused(&module(&bomb), "PH506");
}

#[test]
fn a_large_body_is_refused() {
    let bomb = format!("(func {})", "(drop (i32.const 1000000))".repeat(60_000));
    refused(&module(&bomb), "PH506");
}

#[test]
fn other_files_are_refused() {
    assert_eq!(errors(&audit("(module)")), ["PH001"]);
    assert_eq!(errors(&inspect(b"")), ["PH001"]);
    assert_eq!(errors(&inspect(b"hello")), ["PH001"]);
    assert_eq!(errors(&inspect(b"\x7fELF\x02\x01\x01")), ["PH005"]);
    assert_eq!(errors(&inspect(&vec![0; 2 << 20])), ["PH001", "PH003"]);
}

#[test]
fn damaged_files_are_refused() {
    let good = wat::parse_str("(component (core module (func)))").expect("valid text");
    let mut trailing = good.clone();
    trailing.extend_from_slice(b"polyglot.zip");
    assert!(errors(&inspect(&trailing)).contains(&"PH004"), "{:?}", inspect(&trailing).findings);
    let cut = &good[..good.len() - 1];
    assert!(!errors(&inspect(cut)).is_empty());
    // The section size 0x11 as 0x91 0x00.
    let mut overlong = good.clone();
    let size = overlong[9];
    overlong.splice(9..10, [size | 0x80, 0]);
    assert!(errors(&inspect(&overlong)).contains(&"PH004"));
    // Whatever the bytes, an answer and no panic.
    let real = crate::patch::bundled::BUNDLED[0].1;
    for at in (0..real.len()).step_by(97) {
        let mut damaged = real.to_vec();
        damaged[at] ^= 0x55;
        inspect(&damaged);
    }
}

#[test]
fn imports_are_refused_by_name() {
    let import = |name: &str| errors(&audit(&format!("(component (import \"{name}\" (instance)))")));
    assert_eq!(import("wasi:filesystem/types@0.2.6"), ["PH102"]);
    assert_eq!(import("wasi:sockets/tcp@0.2.6"), ["PH103"]);
    assert_eq!(import("wasi:clocks/monotonic-clock@0.2.6"), ["PH104"]);
    assert_eq!(import("wasi:cli/environment@0.2.6"), ["PH105"]);
    assert_eq!(import("wasi:other/thing@0.2.6"), ["PH101"]);
    assert_eq!(import("acme:gpu/direct@1.0.0"), ["PH101"]);
    assert_eq!(import("patchhost:patch/types@0.1.0"), ["PH101"]);
    assert_eq!(import("patchhost:patch/row-source@0.2.0"), ["PH101"]);
}

#[test]
fn memories_are_refused() {
    let of = |memory: &str| errors(&inspect(&module(memory)));
    assert_eq!(of("(memory 1 1025)"), ["PH302"]);
    assert_eq!(of("(memory 2000)"), ["PH302"]);
    assert_eq!(of("(memory 1 1 shared)"), ["PH303"]);
    assert_eq!(of("(memory 1 1) (memory 1 1)"), ["PH304"]);
    assert_eq!(of("(memory i64 1 1)"), ["PH305"]);
    assert_eq!(of("(table 100000 funcref)"), ["PH302"]);
    let two = "(component (core module (memory 1 600)) (core module (memory 1 600)))";
    assert_eq!(errors(&audit(two)), ["PH302"]);
    let no_max = inspect(&module("(memory 1)"));
    assert!(no_max.findings.iter().any(|finding| finding.id == "PH301" && finding.severity == Severity::Warn));
}

#[test]
fn proposals_are_refused_by_name() {
    let of = |inner: &str| errors(&inspect(&module(inner)));
    let relaxed = "(func (param v128 v128 v128) (result v128)
        (f32x4.relaxed_madd (local.get 0) (local.get 1) (local.get 2)))";
    assert_eq!(of(relaxed), ["PH402"]);
    assert_eq!(of("(memory 1 1) (func (drop (i32.atomic.load (i32.const 0))))"), ["PH403"]);
    assert_eq!(of("(tag) (func (throw 0))"), ["PH404"]);
    assert!(of("(type (struct)) (func (drop (struct.new 0)))").contains(&"PH405"));
    assert_eq!(of("(func $f (return_call $f))"), ["PH406"]);
    assert_eq!(
        of("(func (param i64 i64 i64 i64) (result i64 i64)
        (i64.add128 (local.get 0) (local.get 1) (local.get 2) (local.get 3)))"),
        ["PH401"]
    );
    assert_eq!(of("(func (drop (i32.add (i32.const 1) (i64.const 1))))"), ["PH002"]);
}

#[test]
fn other_worlds_are_refused_in_words() {
    let report = audit(
        "(component (component $c) (instance $i (instantiate $c)) (export \"wasi:cli/run@0.2.6\" (instance $i)))",
    );
    let finding = report.findings.iter().find(|finding| finding.id == "PH201").expect("a world mismatch");
    assert!(finding.message.contains("it exports wasi:cli/run@0.2.6"), "{}", finding.message);
    assert!(finding.message.contains("block-quant"), "{}", finding.message);
}

/// A component that exports one function of block-quant, which traps.
fn with_scales(version: &str, params: &str) -> String {
    format!(
        r#"(component
          (core module $m
            (memory (export "memory") 1 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "scales") (param i32 i32) (result i32) unreachable))
          (core instance $i (instantiate $m))
          (func $scales {params} (result (list f32)) (canon lift (core func $i "scales")
            (memory $i "memory") (realloc (func $i "realloc"))))
          (instance $hook (export "activation-scales" (func $scales)))
          (export "patchhost:patch/block-quant@{version}" (instance $hook)))"#
    )
}

#[test]
fn version_skew_is_explained() {
    let report = audit(&with_scales("0.2.0", "(param \"amax\" (list f32))"));
    let skew = report.findings.iter().find(|finding| finding.id == "PH203").expect("another version");
    assert!(skew.message.contains("`patchhost:patch/block-quant@0.2.0`"), "{}", skew.message);

    let messages = |params: &str| {
        let report = audit(&with_scales("0.1.0", params));
        report.findings.iter().map(|finding| finding.message.clone()).collect::<Vec<_>>().join("\n")
    };
    let wide = messages("(param \"amax\" (list f64))");
    assert!(wide.contains("parameter 1 `amax` is list<f64>, the host has list<f32>"), "{wide}");
    assert!(wide.contains("function `decide` of patchhost:patch/block-quant@0.1.0: missing"), "{wide}");
    let renamed = messages("(param \"xs\" (list f32))");
    assert!(renamed.contains("parameter 1 is called `xs`, the host calls it `amax`"), "{renamed}");
    let result = messages("(param \"amax\" (list f32))");
    assert!(result.contains("the result is list<f32>, the host has result<list<f32>, string>"), "{result}");
}

#[test]
fn names_are_escaped() {
    let bytes = wat::parse_str("(component (import \"a\" (func)))").expect("valid text");
    let report = inspect(&bytes);
    assert_eq!(report.imports, ["a"]);
    assert!(report.findings.iter().all(|finding| !finding.message.contains('\u{1b}')));
}

#[test]
fn honest_patches_have_no_errors_and_wide_margins() {
    for (name, bytes) in crate::patch::bundled::BUNDLED {
        let started = Instant::now();
        let report = inspect(bytes);
        println!(
            "{name}: {:?}, {} bytes, hooks {:?}, imports {:?}, {} shims, {} instances, {} functions, largest {:?}, \
             locals x blocks {} (worst {}), br_table {}, types {} bytes depth {}, needs {:?}, findings {:?}",
            started.elapsed(),
            report.size,
            report.hooks,
            report.imports,
            report.facts.shims,
            report.facts.expanded_instances,
            report.facts.functions,
            report.facts.largest.as_ref().map(|cost| cost.bytes),
            report.facts.locals_x_blocks,
            report.facts.costliest.as_ref().map_or(0, super::FunctionCost::locals_x_blocks),
            report.facts.br_table_targets,
            report.facts.type_bytes,
            report.facts.type_depth,
            report.facts.needs(),
            report.findings.iter().map(super::Finding::line).collect::<Vec<_>>(),
        );
        assert_eq!(errors(&report), Vec::<&str>::new(), "{name}");
        assert!(report.facts.functions < 2_000, "{name}");
        assert!(report.facts.locals_x_blocks < 500_000, "{name}");
        assert!(report.validated, "{name}");
    }
}

/// The worst that passes the caps, one resource each, up to a file of 1 MiB: how long the compiler works on it.
#[test]
fn the_worst_that_is_allowed_compiles_in_time() {
    let sandbox = crate::sandbox::Sandbox::new(1).expect("an engine");
    let busy = "(local.set 0 (i32.add (i32.mul (local.get 0) (i32.const 77777)) (local.get 1)))";
    let functions = |count: usize, inner: &str| format!("(func (param i32 i32) {inner})").repeat(count);
    let loops = |locals: usize, loops: usize| {
        let uses: String =
            (0..locals).map(|i| format!("(local.set {i} (i32.add (local.get {i}) (i32.const 1)))")).collect();
        let body: String = (0..loops).map(|i| format!("(loop (br_if 0 (local.get {})))", i % locals)).collect();
        format!("(func (local {}) {uses} {body} {uses})", "i32 ".repeat(locals))
    };
    let table = format!("(func (param i32) (block (br_table {} (local.get 0))))", "0 ".repeat(1_000));
    let cases = [
        ("4,000 functions, 1 MiB", functions(4_000, &busy.repeat(20))),
        ("4 bodies of 250 KB", functions(4, &busy.repeat(18_000))),
        ("500 locals x 500 loops, 4 times", loops(500, 490).repeat(4)),
        ("2,000 locals x 120 loops, 4 times", loops(1_990, 120).repeat(4)),
        ("16,000 targets of br_table", table.repeat(16)),
    ];
    for (what, inner) in cases {
        let bytes = module(&inner);
        let report = inspect(&bytes);
        let over: Vec<_> =
            report.findings.iter().filter(|finding| finding.id == "PH506" || finding.id == "PH003").collect();
        let started = Instant::now();
        let compiled = wasmtime::component::Component::from_binary(sandbox.engine(), &bytes);
        println!("{what}: {} bytes, compiled {} in {:?}, {over:?}", bytes.len(), compiled.is_ok(), started.elapsed());
        assert!(over.is_empty(), "{what}: {over:?}");
    }
}
