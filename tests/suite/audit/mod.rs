//! `patchhost audit`: bundled patches are clean, each evil guest shows what can be seen without running it, a diff names what
//! changed and nothing else.

use std::collections::BTreeSet;

use patchhost::audit::{Severity, catalogue, diff, inspect};
use patchhost::patch::bundled::BUNDLED;

use crate::support::{data, evil, patchhost, repo, tmp};

#[test]
fn bundled_patches_have_notes_only() {
    for (name, bytes) in BUNDLED {
        let report = inspect(bytes);
        let worse: Vec<_> = report.findings.iter().filter(|f| f.severity != Severity::Info).collect();
        assert!(worse.is_empty(), "{name}: {worse:#?}");
        let imports: &[&str] = if name == "fp8_block_mse" { &["patchhost:patch/row-source@0.1.0"] } else { &[] };
        assert_eq!(report.imports, imports, "{name}");
        patchhost(["audit", name]).good();
    }
}

/// (guest, the rule that its evil fires). Those that lie in numbers only have none: a scale that is wrong looks like one that
/// is right, and is found by the probe and by the cast (`tests/suite/probe`, `tests/suite/hostile`).
const EVIL: &[(&str, Result<&str, &str>)] = &[
    ("activation_rule", Err("a wrong number")),
    ("activation_saturating", Err("a wrong number")),
    ("activation_short", Err("a wrong count")),
    ("activation_spin", Ok("PH502")),
    ("any_hook", Ok("PH502")),
    ("any_state", Ok("PH502")),
    ("any_wasi", Ok("PH102")),
    ("bad_scheme", Err("a wrong number")),
    ("big_floor", Err("a wrong number")),
    ("crushing", Err("a wrong number")),
    ("error_spam", Err("a long text, made at run time")),
    ("grow", Ok("PH307")),
    ("huge_length", Err("a wrong length")),
    ("huge_list", Err("a wrong length")),
    ("inf_scales", Err("a wrong number")),
    ("loader_overlap", Err("a wrong name")),
    ("loader_short", Err("a wrong count")),
    ("loader_spin", Ok("PH502")),
    ("loader_wrong_target", Err("a wrong name")),
    ("long_name", Err("a long text, made at run time")),
    ("nan_scales", Err("a wrong number")),
    ("negative", Err("a wrong number")),
    ("not_pow2", Err("a wrong number")),
    ("recurse", Ok("PH504")),
    ("saturating", Err("a wrong number")),
    ("spin", Ok("PH502")),
    ("spin_describe", Ok("PH502")),
    ("subtle", Err("a wrong number")),
    ("too_few", Err("a wrong count")),
    ("too_many", Err("a wrong count")),
    ("trap_configure", Ok("PH512")),
    ("trap_nth", Ok("PH511")),
    ("wrong_decisions", Err("a wrong count")),
    ("zero", Err("a wrong number")),
];

#[test]
fn each_evil_guest_fires_its_rule() {
    let known: BTreeSet<&str> = EVIL.iter().map(|(name, _)| *name).collect();
    for entry in std::fs::read_dir(repo().join("guests/evil")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "wasm") {
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            assert!(known.contains(stem.as_str()), "{stem} is not in the table");
        }
    }
    for (name, rule) in EVIL {
        let report = inspect(&std::fs::read(evil(name)).unwrap());
        let Ok(rule) = rule else { continue };
        assert!(report.findings.iter().any(|f| f.id == *rule), "{name}: no {rule}: {:#?}", report.findings);
    }
    // What a rule is worth: none of these fires on an honest patch as more than a note.
    for rule in ["PH102", "PH502"] {
        for (name, bytes) in BUNDLED {
            assert!(!inspect(bytes).findings.iter().any(|f| f.id == rule), "{name} fires {rule}");
        }
    }
}

fn fixture(name: &str) -> String {
    data("audit").join(format!("{name}.wasm")).display().to_string()
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

#[test]
fn a_diff_names_the_function_that_changed_and_nothing_else() {
    let before = bytes("fp8_block_before");
    for (name, function, data_changed) in [
        ("fp8_block_sabotaged", "<kit::numeric::Recipe>::scales", false),
        ("fp8_block_longer_text", "kit::settings::globs", true),
    ] {
        let diff = diff::diff(&before, &bytes(name));
        let changed: Vec<_> = diff.functions.changed.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(changed, [function], "{name}");
        assert!(diff.functions.added.is_empty() && diff.functions.removed.is_empty(), "{name}");
        assert_eq!(diff.data_changed, data_changed, "{name}");
        assert!(diff.wit.is_empty() && diff.imports_added.is_empty());
        let ids: Vec<_> = diff.findings().iter().map(|f| f.id).collect();
        assert!(ids.contains(&"PH903") && !ids.contains(&"PH904") && !ids.contains(&"PH901"), "{ids:?}");
        // The other way round, and against itself.
        let back = diff::diff(&bytes(name), &before);
        assert_eq!(back.functions.changed.len(), 1);
        assert!(diff::diff(&before, &before).is_empty());
    }
    let out = patchhost(["audit", &fixture("fp8_block_sabotaged"), "--diff", &fixture("fp8_block_before")]).good();
    assert!(out.stdout.contains("~ <kit::numeric::Recipe>::scales"), "{}", out.stdout);
    assert!(out.stdout.contains("1 changed, 0 added, 0 removed"), "{}", out.stdout);
    assert!(out.stdout.contains("+1 f32.mul"), "{}", out.stdout);
}

fn module(text: &str) -> Vec<u8> {
    wat::parse_str(format!("(component (core module {text}))")).unwrap()
}

/// Indexes of types, functions, tables and addresses of data move; nothing changed.
#[test]
fn what_only_moved_did_not_change() {
    let texts = r#"(memory 17 17)
        (data (i32.const 1048576) "hello wide world\10\00\10\00")
        (func $a (export "a") (result i32) (i32.const 1048576))
        (func $b (export "b") (result i32) (call $a))"#;
    let moved = r#"(type (func (param f64)))
        (memory 17 17)
        (data (i32.const 1048576) "a new text in front.hello wide world\24\00\10\00")
        (func $new (export "new"))
        (func $b (export "b") (result i32) (call $a))
        (func $a (export "a") (result i32) (i32.const 1048596))"#;
    let diff = diff::diff(&module(texts), &module(moved));
    assert!(diff.functions.changed.is_empty(), "{:#?}", diff.functions);
    assert_eq!((diff.functions.same, diff.functions.added.clone()), (2, vec!["new".to_owned()]));
    // The same address, and another text there: the function that says it changed.
    let other = texts.replace("hello wide world", "hello dark world");
    let diff = diff::diff(&module(texts), &module(&other));
    let names: Vec<_> = diff.functions.changed.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["a"], "{:#?}", diff.functions);
    // The same texts, and a function that points at the other one.
    let two = |at: u32| {
        format!(
            "(memory 17 17) (data (i32.const 1048576) \"first thing 1234second thing 567\")
             (func (export \"x\") (result i32) (i32.const 1048576)) (func (export \"y\") (result i32) (i32.const 1048592))
             (func (export \"z\") (result i32) (i32.const {at}))"
        )
    };
    let diff = diff::diff(&module(&two(1_048_576)), &module(&two(1_048_592)));
    let names: Vec<_> = diff.functions.changed.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["z"], "{:#?}", diff.functions);
}

/// Without names, what did not change is still found.
#[test]
fn stripped_files_are_compared_by_body() {
    let functions = |factor: i32| {
        let one = |i: i32| format!("(func (param i32) (result i32) (i32.add (local.get 0) (i32.const {i})))");
        (0..20).map(|i| one(if i == 7 { factor } else { i })).collect::<String>()
    };
    let diff = diff::diff(&module(&functions(7)), &module(&functions(1000)));
    assert_eq!((diff.functions.same, diff.functions.changed.len()), (19, 1));
    assert!(diff.functions.changed[0].name.contains("function 7"), "{:?}", diff.functions.changed[0]);
}

#[test]
fn garbage_is_compared_without_a_panic() {
    let honest = BUNDLED[0].1;
    for at in (8..honest.len()).step_by(997) {
        let mut damaged = honest.to_vec();
        damaged[at] ^= 0x5a;
        let _ = diff::diff(honest, &damaged);
        let _ = diff::diff(&damaged, honest);
    }
    assert!(!diff::diff(b"", honest).is_empty());
}

#[test]
fn exit_codes_and_formats() {
    let tmp = tmp();
    let any_wasi = evil("any_wasi");
    let refused = patchhost(["audit", &any_wasi]);
    let text = refused.refused(1, tmp.path());
    assert!(text.contains("1 of 1 files") && refused.stdout.contains("PH102 filesystem"), "{text}");
    assert!(refused.stdout.contains("patchhost grant"), "{}", refused.stdout);
    let json = patchhost(["audit", &any_wasi, "fp8_block", "--format", "json"]);
    assert_eq!(json.code, 1);
    let json = json.json();
    assert_eq!((json["refused"].as_u64(), json["files"].as_array().unwrap().len()), (Some(1), 2));
    assert_eq!(json["files"][1]["verdict"], "accepted");
    assert!(json["files"][1]["interface"].as_str().unwrap().contains("block-quant"));
    patchhost(["audit", "/no/such/file.wasm"]).refused(2, tmp.path());
    patchhost(["run", "--format", "sarif"]).refused(2, tmp.path());
    patchhost(["audit", "--explain", "PH999"]).refused(2, tmp.path());
    assert!(patchhost(["audit", "--explain", "ph802"]).good().stdout.contains("nested-components"));
    let not = tmp.path().join("not.wasm");
    std::fs::write(&not, "hello").unwrap();
    assert!(patchhost(["audit", not.to_str().unwrap()]).stdout.contains("PH001"));
}

#[test]
fn a_policy_changes_severities_and_not_what_protects_the_host() {
    let tmp = tmp();
    let policy = tmp.path().join("policy.toml");
    let audit = |text: &str, file: &str| {
        std::fs::write(&policy, text).unwrap();
        patchhost(["audit", file, "--policy", policy.to_str().unwrap()])
    };
    assert_eq!(audit("[audit.rules]\nloop-no-call = \"deny\"\n", "fp8_block").code, 1);
    audit("[audit.rules]\nPH503 = \"allow\"\n", "fp8_block").good();
    let lowered = audit("[audit.rules]\nfilesystem = \"warn\"\n", "fp8_block").refused(2, tmp.path());
    assert!(lowered.contains("cannot be lowered"), "{lowered}");
    let typo = audit("[audit.rules]\nfilesytem = \"warn\"\n", "fp8_block").refused(2, tmp.path());
    assert!(typo.contains("did you mean `filesystem`"), "{typo}");
    assert_eq!(audit("[audit.caps]\nbytes = 1000\n", "fp8_block").code, 1);
}

/// The official schema judges it in `tests/consumers/check_sarif.py`; here is what GitHub needs of it.
#[test]
fn sarif_says_what_code_scanning_needs() {
    let log = patchhost(["audit", &evil("any_wasi"), "fp8_block", "--format", "sarif"]).json();
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), catalogue().len());
    let results = run["results"].as_array().unwrap();
    assert!(results.iter().any(|r| r["ruleId"] == "PH102" && r["level"] == "error"));
    for result in results {
        assert_eq!(rules[result["ruleIndex"].as_u64().unwrap() as usize]["id"], result["ruleId"]);
        assert!(result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].is_string());
        assert!(result["partialFingerprints"]["patchhost/v1"].as_str().unwrap().len() == 32);
    }
}

/// `docs/audit.md` lists every rule, as the code has it. `UPDATE_DOCS=1` writes it.
#[test]
fn the_documented_rules_are_the_rules() {
    let path = repo().join("docs/audit.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (begins, ends) = ("<!-- rules begin -->\n", "<!-- rules end -->");
    let (head, rest) = text.split_once(begins).unwrap();
    let (table, tail) = rest.split_once(ends).unwrap();
    let mut made = String::from("| id | name | severity | what it is for |\n|---|---|---|---|\n");
    for rule in catalogue() {
        let severity = match rule.severity {
            Severity::Error => "error",
            Severity::Warn => "warning",
            Severity::Info => "note",
        };
        made += &format!("| {} | {} | {severity} | {} |\n", rule.id, rule.slug, rule.about);
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{head}{begins}{made}{ends}{tail}")).unwrap();
        return;
    }
    assert_eq!(table, made, "run this test with UPDATE_DOCS=1");
}

/// What makes a reader of components panic is a finding, and nothing about it is on standard error.
#[test]
fn a_panic_of_a_reader_is_a_finding() {
    let tmp = tmp();
    for name in ["patchhost:patch/identity@0.1.0", "patchhost:patch/block-quant@0.1.0", "a:b/c@1.0.0"] {
        let text = format!(
            "(component (core module $m (func (export \"f\"))) (core instance $i (instantiate $m)) \
             (func $f (canon lift (core func $i \"f\"))) (export \"{name}\" (func $f)))"
        );
        let path = tmp.path().join("odd.wasm");
        std::fs::write(&path, wat::parse_str(&text).unwrap()).unwrap();
        for args in
            [vec!["audit", path.to_str().unwrap()], vec!["audit", "fp8_block", "--diff", path.to_str().unwrap()]]
        {
            let ran = patchhost(&args);
            assert!(!ran.stderr.contains("panicked") && !ran.stderr.contains("backtrace"), "{args:?}: {}", ran.stderr);
            assert!(args.len() > 2 || (ran.code == 1 && ran.stdout.contains("PH201")), "{args:?}: {}", ran.stdout);
        }
    }
}
