use super::*;
use crate::base::Digest;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

fn options() -> LedgerOptions {
    LedgerOptions { sync: Sync::Never, ..LedgerOptions::default() }
}

fn open(path: &Path) -> (Ledger, Opened) {
    Ledger::open(path, options()).unwrap_or_else(|error| panic!("{error}"))
}

fn append(ledger: &Ledger, n: u64) -> Entry {
    ledger.append("test.event", &Actor::cli(), fields(json!({ "n": n, "text": "größe\n\u{7f}" }))).expect("appended")
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let tmp = tempfile::tempdir().expect("a folder");
    let path = tmp.path().join("ledger.jsonl");
    (tmp, path)
}

#[test]
fn the_hash_follows_the_rule_in_the_documentation() {
    let (_tmp, path) = folder();
    let (ledger, opened) = open(&path);
    assert!(opened.genesis && opened.records == 1 && opened.torn.is_none(), "{opened:?}");
    let entry = ledger
        .append(
            "patch.staged",
            &Actor::new("unix:uid=1000"),
            fields(json!({ "z": [1.0, 0.5, null], "a": { "y": "ü\t", "b": true } })),
        )
        .expect("appended");
    let text = std::fs::read_to_string(&path).expect("readable");
    let line = text.lines().nth(1).expect("two lines");
    let genesis: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    assert_eq!(genesis["event"], "ledger.genesis");
    assert_eq!(genesis["host"].as_str().map(str::len), Some(32));
    let body = format!(
        r#"{{"a":{{"b":true,"y":"ü\t"}},"actor":"unix:uid=1000","event":"patch.staged","prev":{},"seq":1,"ts":"{}","z":[1,0.5,null]}}"#,
        genesis["hash"], entry.ts
    );
    let hash = Digest::of(body.as_bytes());
    assert_eq!(line, format!("{},\"hash\":\"{hash}\"}}", &body[..body.len() - 1]));
    assert_eq!((entry.hash, ledger.head().seq, ledger.head().hash), (hash, 1, hash));
    assert_eq!(ledger.recent(1), std::slice::from_ref(&entry));
    // What is read back is what was given, in the names of the record.
    let shown = show(&path, Some("patch"), None).expect("readable");
    assert_eq!(shown.records, [entry]);
    assert!(shown.notes.is_empty(), "{:?}", shown.notes);
}

#[test]
fn floats_of_any_size_survive() {
    let (_tmp, path) = folder();
    let (ledger, _) = open(&path);
    for x in [1e-320, 5e-324, 0.1, 1e16, 1.7976931348623157e308, -0.0, 9007199254740993.0, 2.5e-6, f64::MAX / 3.0] {
        ledger
            .append("test.float", &Actor::policy(), fields(json!({ "x": x, "u": u64::MAX, "i": i64::MIN })))
            .expect("appended");
    }
    verify(&path, None).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_reopened_ledger_goes_on() {
    let (_tmp, path) = folder();
    let (ledger, _) = open(&path);
    (0..4).for_each(|n| drop(append(&ledger, n)));
    let last = append(&ledger, 4);
    drop(ledger);
    let (ledger, opened) = open(&path);
    assert_eq!(opened, Opened { records: 6, genesis: false, torn: None });
    assert_eq!(ledger.recent(2).last(), Some(&last));
    let next = append(&ledger, 5);
    assert_eq!((next.seq, next.prev), (6, last.hash));
    let verified = verify(&path, Some(&last.hash)).expect("good");
    assert_eq!((verified.records, verified.first_seq, verified.notes.len()), (7, Some(0), 0));
    assert!(matches!(verify(&path, Some(&Digest::of(b"x"))), Err(LedgerError::Head { .. })));
}

#[test]
fn reserved_deep_and_long_fields_are_refused_and_the_chain_goes_on() {
    let ledger = Ledger::in_memory();
    for name in RESERVED {
        let error = ledger.append("e", &Actor::cli(), fields(json!({ name: 1 }))).expect_err("reserved");
        assert!(matches!(&error, LedgerError::Reserved { name: n, .. } if n == name), "{error}");
        assert!(error.to_string().contains("\n  next: "), "{error}");
    }
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    assert!(matches!(
        ledger.append("e", &Actor::cli(), fields(json!({ "d": deep }))),
        Err(LedgerError::TooDeep { .. })
    ));
    let long = "x".repeat(1 << 20);
    assert!(matches!(
        ledger.append("e", &Actor::cli(), fields(json!({ "l": long }))),
        Err(LedgerError::TooLarge { .. })
    ));
    assert_eq!(append(&ledger, 1).seq, 1);
    assert_eq!(Actor::new("a\x1b[31m\n").as_str(), "a\\u{1b}[31m\\n");
}

#[test]
fn memory_keeps_the_newest() {
    let ledger = Ledger::in_memory();
    (0..3_000).for_each(|n| drop(append(&ledger, n)));
    let recent = ledger.recent(usize::MAX);
    assert_eq!((recent.len(), recent.last().map(|e| e.seq)), (1_024, Some(3_000)));
    assert!(recent.windows(2).all(|pair| pair[1].prev == pair[0].hash));
}

#[test]
fn many_threads_write_one_chain() {
    let (_tmp, path) = folder();
    let small = LedgerOptions { rotate_bytes: 4_000, ..options() };
    let (ledger, _) = Ledger::open(&path, small).expect("opened");
    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| (0..100).for_each(|n| drop(append(&ledger, n))))));
    });
    let verified = verify(&path, None).unwrap_or_else(|error| panic!("{error}"));
    assert!(verified.files > 10 && verified.notes.is_empty(), "{verified:?}");
    assert_eq!(verified.records, 400 + verified.files as u64);
}

#[test]
fn a_failed_write_leaves_a_whole_chain() {
    let (_tmp, path) = folder();
    let (ledger, _) = open(&path);
    append(&ledger, 0);
    let whole = std::fs::read(&path).expect("readable");
    // Someone else writes into the file: the next record is refused, loudly, and again as long as it is so.
    let mut other = std::fs::OpenOptions::new().append(true).open(&path).expect("opened");
    std::io::Write::write_all(&mut other, b"{\"half").expect("written");
    for _ in 0..2 {
        let error = ledger.append("e", &Actor::cli(), Map::new()).expect_err("not ours");
        assert!(matches!(error, LedgerError::Changed { .. }), "{error}");
    }
    other.set_len(whole.len() as u64).expect("cut");
    append(&ledger, 1);
    verify(&path, None).unwrap_or_else(|error| panic!("{error}"));
    // The file is moved away: events must not go where nobody looks.
    std::fs::rename(&path, path.with_extension("moved")).expect("moved");
    assert!(matches!(ledger.append("e", &Actor::cli(), Map::new()), Err(LedgerError::Changed { .. })));
}

#[test]
fn rotation_that_died_between_two_files_goes_on() {
    let (_tmp, path) = folder();
    let (ledger, _) = open(&path);
    let last = append(&ledger, 0);
    drop(ledger);
    let closed = path.with_file_name("ledger.jsonl.000001");
    std::fs::rename(&path, &closed).expect("renamed");
    assert_eq!(verify(&path, None).expect("good").records, 2);
    // Then: the new file is there and empty but for a torn line.
    std::fs::write(&path, b"{\"actor\":\"led").expect("written");
    let (ledger, opened) = open(&path);
    assert!(!opened.genesis && opened.torn.as_ref().is_some_and(|torn| torn.bytes == 13), "{opened:?}");
    let continued = &ledger.recent(1)[0];
    assert_eq!((continued.event.as_str(), continued.seq, continued.prev), ("ledger.continued", 2, last.hash));
    assert_eq!(continued.fields["previous"], "ledger.jsonl.000001");
    assert_eq!(verify(&path, None).expect("good").records, 3);
}

#[test]
fn a_folder_is_searched_for_its_one_ledger() {
    let (tmp, path) = folder();
    std::fs::write(tmp.path().join("metrics.jsonl"), "{\"step\":1}\n").expect("written");
    assert!(matches!(verify(tmp.path(), None), Err(LedgerError::NotALedger { .. })));
    drop(open(&path));
    assert_eq!(verify(tmp.path(), None).expect("good").records, 1);
    drop(open(&tmp.path().join("second.jsonl")));
    let error = verify(tmp.path(), None).expect_err("two").to_string();
    assert!(error.contains("2 ledgers: ledger.jsonl, second.jsonl"), "{error}");
}

#[test]
fn keep_removes_the_oldest() {
    let (tmp, path) = folder();
    let small = LedgerOptions { rotate_bytes: 1, keep: Some(2), ..options() };
    let (ledger, _) = Ledger::open(&path, small).expect("opened");
    (0..6).for_each(|n| drop(append(&ledger, n)));
    let names = |folder: &Path| {
        let mut names: Vec<_> =
            std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        names
    };
    let expected = ["ledger.jsonl", "ledger.jsonl.000005", "ledger.jsonl.000006", "ledger.jsonl.lock"];
    assert_eq!(names(tmp.path()), expected);
    let verified = verify(&path, None).expect("good");
    assert_eq!(verified.notes, ["starts at seq 7, older segments are not here"]);
    let single = verify(&path.with_file_name("ledger.jsonl.000005"), None).expect("good");
    assert_eq!((single.files, single.records, single.first_seq), (1, 2, Some(7)));
}

#[test]
fn what_a_full_disk_loses_is_said() {
    let (_tmp, path) = folder();
    let (ledger, _) = open(&path);
    append(&ledger, 0);
    let whole = std::fs::read(&path).expect("readable");
    // The disk takes a part of a line: nothing of it stays, whoever asks is told, and what could be stopped is no gap.
    ledger.disk_takes(Some(10));
    for _ in 0..2 {
        let error = ledger.append("refit", &Actor::cli(), Map::new()).expect_err("a full disk");
        assert!(matches!(error, LedgerError::Io { .. }), "{error}");
    }
    assert_eq!(std::fs::read(&path).expect("readable"), whole);
    let health = ledger.health();
    assert!(
        !health.ok && health.lost == 0 && health.why.as_ref().is_some_and(|why| why.contains("storage")),
        "{health:?}"
    );
    // What happened all the same is counted, and said beside the ledger while it cannot be said in it.
    for _ in 0..3 {
        ledger.note("refit.refused", &Actor::cli(), Map::new()).expect_err("a full disk");
    }
    ledger.note("swap.refused", &Actor::cli(), Map::new()).expect_err("a full disk");
    assert_eq!(ledger.health().lost, 4);
    let verified = verify(&path, None).expect("whole");
    assert_eq!((verified.records, verified.lost), (2, 4), "{verified:?}");
    assert!(verified.notes[0].starts_with("gap at the end: 4 events"), "{verified:?}");
    // The disk has room: one write holds the gap and the event.
    ledger.disk_takes(None);
    let next = append(&ledger, 1);
    assert_eq!((next.seq, next.event.as_str()), (3, "test.event"));
    assert_eq!(ledger.health(), Health { ok: true, why: None, lost: 4 });
    let gap = &ledger.recent(2)[0];
    assert_eq!((gap.event.as_str(), &gap.fields["lost"]), ("ledger.gap", &json!(4)));
    assert_eq!(gap.fields["events"], json!({ "refit.refused": 3, "swap.refused": 1 }));
    append(&ledger, 2);
    let verified = verify(&path, None).expect("whole");
    assert_eq!((verified.records, verified.lost, verified.notes.len()), (5, 4, 1), "{verified:?}");
    assert!(verified.notes[0].contains("gap at seq 2: 4 events could not be written"), "{verified:?}");
}

#[test]
fn a_gap_outlives_the_process_that_could_not_say_it() {
    let (_tmp, path) = folder();
    let (ledger, _) = open(&path);
    ledger.disk_takes(Some(0));
    for _ in 0..2 {
        ledger.note("refit.refused", &Actor::cli(), Map::new()).expect_err("a full disk");
    }
    // It ends while the disk is full; nothing of a record could be written at its end either.
    drop(ledger);
    assert_eq!(verify(&path, None).expect("whole").lost, 2);
    let (ledger, opened) = open(&path);
    assert_eq!(opened.records, 1);
    append(&ledger, 0);
    let verified = verify(&path, None).expect("whole");
    assert_eq!((verified.records, verified.lost), (3, 2), "{verified:?}");
    drop(ledger);
    let (ledger, _) = open(&path);
    append(&ledger, 1);
    assert_eq!(verify(&path, None).expect("whole").lost, 2, "it is said once");
}

#[test]
fn several_records_are_written_together_or_not_at_all() {
    let (_tmp, path) = folder();
    let (ledger, _) = open(&path);
    let event = |name| Event { name, actor: Actor::cli(), fields: Map::new() };
    let whole = std::fs::read(&path).expect("readable");
    // Room for the first line and a part of the second.
    ledger.disk_takes(Some(300));
    ledger.append_all(&[event("swap.landed"), event("refit")]).expect_err("a full disk");
    assert_eq!(std::fs::read(&path).expect("readable"), whole);
    ledger.disk_takes(None);
    let added = ledger.append_all(&[event("swap.landed"), event("refit")]).expect("appended");
    assert_eq!(
        added.iter().map(|entry| (entry.seq, entry.event.as_str())).collect::<Vec<_>>(),
        [(1, "swap.landed"), (2, "refit")]
    );
    assert_eq!(verify(&path, None).expect("whole").records, 3);
}
