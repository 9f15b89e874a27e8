//! The ledger from outside: every edit is found, a torn end is not fatal, kill -9 at any moment leaves a chain.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use patchhost::patch::ledger::{self, LedgerError, Sync};
use patchhost::patch::{Actor, Ledger, LedgerOptions};
use serde_json::{Map, Value, json};

use crate::support::{Ran, patchhost, repo, tmp};

/// Set in the child that [`kill_9_at_any_moment_leaves_a_chain`] starts: the ledger to write.
const CHILD: &str = "PATCHHOST_TEST_LEDGER_CHILD";

fn fields(n: u64) -> Map<String, Value> {
    let Value::Object(fields) = json!({ "n": n, "digest": "sha256:00", "why": "a \"quoted\" reason\n" }) else {
        unreachable!("an object")
    };
    fields
}

/// A ledger with `n` events after its genesis.
fn written(folder: &Path, n: u64, rotate_bytes: u64) -> PathBuf {
    let path = folder.join("ledger.jsonl");
    let options = LedgerOptions { rotate_bytes, sync: Sync::Never, ..LedgerOptions::default() };
    let (ledger, _) = Ledger::open(&path, options).unwrap();
    (0..n).for_each(|i| drop(ledger.append("patch.staged", &Actor::cli(), fields(i)).unwrap()));
    path
}

fn log<'a>(args: impl IntoIterator<Item = &'a str>) -> Ran {
    patchhost(["log"].into_iter().chain(args))
}

/// The sequence number at which the file is refused, if it is.
fn first_bad(path: &Path) -> Option<u64> {
    match ledger::verify(path, None) {
        Ok(_) => None,
        Err(LedgerError::Broken { at, .. }) => Some(at.seq),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_changed_byte_is_found_and_named() {
    let tmp = tmp();
    let path = written(tmp.path(), 4, u64::MAX);
    let good = std::fs::read(&path).unwrap();
    assert_eq!(first_bad(&path), None);
    let mut line = 0;
    for at in 0..good.len() {
        for change in [0x01, 0x20, 0x80] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            std::fs::write(&path, &bytes).unwrap();
            // A line feed that is gone joins two lines: the first of them is the bad one.
            assert_eq!(first_bad(&path), Some(line), "byte {at} of line {line}");
        }
        line += u64::from(good[at] == b'\n');
    }
    assert_eq!(line, 5);
}

#[test]
fn removed_moved_and_inserted_lines_are_found() {
    let tmp = tmp();
    let path = written(tmp.path(), 6, u64::MAX);
    let good = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.split_inclusive('\n').collect();
    let broken_at = |lines: Vec<&str>| {
        std::fs::write(&path, lines.concat()).unwrap();
        first_bad(&path)
    };
    for at in 0..lines.len() {
        let mut removed = lines.clone();
        removed.remove(at);
        // The end of a file can be cut off at a line without a trace in it: this is what `--head` is for.
        let expected = (at + 1 < lines.len()).then_some(at as u64);
        assert_eq!(broken_at(removed), expected, "line {at} removed");
        let mut twice = lines.clone();
        twice.insert(at, lines[at]);
        assert_eq!(broken_at(twice), Some(at as u64 + 1), "line {at} twice");
        for other in at + 1..lines.len() {
            let mut swapped = lines.clone();
            swapped.swap(at, other);
            assert_eq!(broken_at(swapped), Some(at as u64), "lines {at} and {other} swapped");
        }
        let mut foreign = lines.clone();
        foreign.insert(at, "{}\n");
        assert_eq!(broken_at(foreign), Some(at as u64), "a line before {at}");
    }
    // A line of another ledger with the right number does not fit either.
    let other = tmp.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let other = std::fs::read_to_string(written(&other, 6, u64::MAX)).unwrap();
    let mut mixed = lines.clone();
    mixed[3] = other.split_inclusive('\n').nth(3).unwrap();
    assert_eq!(broken_at(mixed), Some(3));
}

#[test]
fn verify_names_the_first_bad_record_and_exits_1() {
    let tmp = tmp();
    let path = written(tmp.path(), 4, u64::MAX);
    let file = path.to_str().unwrap();
    let ran = log(["verify", file]).good();
    assert!(ran.stdout.starts_with("good: 5 records, seq 0 to 4, in 1 file\nhead: sha256:"), "{}", ran.stdout);
    let ran = log(["verify", tmp.path().to_str().unwrap(), "--format", "json"]).good().json();
    assert_eq!((&ran["good"], &ran["ledger"]["records"]), (&json!(true), &json!(5)));
    let head = ran["ledger"]["head"]["hash"].as_str().unwrap().to_owned();
    log(["verify", file, "--head", &head]).good();

    let good = std::fs::read_to_string(&path).unwrap();
    let cut: String = good.split_inclusive('\n').take(4).collect();
    std::fs::write(&path, cut).unwrap();
    log(["verify", file]).good();
    let text = log(["verify", file, "--head", &head]).refused(1, tmp.path());
    assert!(text.contains("the end of the ledger") && text.contains("no record has the hash"), "{text}");

    std::fs::write(&path, good.replace("\"n\":1", "\"n\":7")).unwrap();
    let text = log(["verify", file]).refused(1, tmp.path());
    insta::assert_snapshot!(text);
    let ran = log(["verify", file, "--format", "json"]);
    assert_eq!((ran.code, &ran.json()["first_bad_seq"]), (1, &json!(2)));
    // What is broken can still be read, with a warning.
    let ran = log(["show", file]).good();
    assert_eq!(ran.stdout.lines().count(), 5);
    assert!(ran.stderr.contains("the chain is broken") && ran.stderr.contains("seq 2"), "{}", ran.stderr);
}

#[test]
fn a_ledger_from_before_receipts_is_read() {
    let old = repo().join("tests/data/ledger/before-receipts.jsonl");
    let ran = log(["verify", old.to_str().unwrap()]).good();
    assert!(ran.stdout.starts_with("good: 4 records, seq 0 to 3, in 1 file\n"), "{}", ran.stdout);
    let ran = log(["show", old.to_str().unwrap(), "--event", "refit"]).good();
    assert_eq!((ran.stdout.lines().count(), ran.stdout.contains("receipt=")), (2, false), "{}", ran.stdout);
}

#[test]
fn what_is_no_ledger_is_refused() {
    let tmp = tmp();
    let folder = tmp.path().to_str().unwrap();
    let text = log(["verify", folder]).refused(2, tmp.path());
    insta::assert_snapshot!(text);
    let missing = tmp.path().join("none.jsonl");
    log(["show", missing.to_str().unwrap()]).refused(2, tmp.path());
    let other = tmp.path().join("metrics.jsonl");
    std::fs::write(&other, "{\"step\":1}\n").unwrap();
    let text = log(["verify", other.to_str().unwrap()]).refused(1, tmp.path());
    assert!(text.contains("seq 0"), "{text}");
    std::fs::write(&other, vec![b'x'; 3 << 20]).unwrap();
    let text = log(["verify", other.to_str().unwrap()]).refused(1, tmp.path());
    assert!(text.contains("more than 1048576 bytes"), "{text}");
}

#[test]
fn a_torn_last_line_is_a_note_and_never_lost() {
    let tmp = tmp();
    let path = written(tmp.path(), 3, u64::MAX);
    let file = path.to_str().unwrap();
    let good = std::fs::read(&path).unwrap();
    let last = good[..good.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    for end in [last + 1, last + 40, good.len() - 2, good.len() - 1] {
        std::fs::write(&path, &good[..end]).unwrap();
        let ran = log(["verify", file]).good();
        assert!(ran.stdout.contains("note: torn last line after seq 2"), "{}", ran.stdout);
        let ran = log(["show", file]).good();
        assert_eq!(ran.stdout.lines().count(), 3);
        assert!(ran.stderr.contains("torn"), "{}", ran.stderr);
        let (ledger, opened) = Ledger::open(&path, LedgerOptions::default()).unwrap();
        let torn = opened.torn.unwrap();
        assert_eq!(torn.bytes, (end - last) as u64);
        assert_eq!(std::fs::read(&torn.moved_to).unwrap(), &good[last..end]);
        let entry = ledger.append("patch.staged", &Actor::cli(), fields(9)).unwrap();
        assert_eq!(entry.seq, 3);
        drop(ledger);
        assert_eq!(first_bad(&path), None);
    }
    assert!(tmp.path().join("ledger.jsonl.torn.4").is_file());
    // The end of a power failure: zeros.
    std::fs::write(&path, [&good[..], &[0; 4096]].concat()).unwrap();
    assert_eq!(Ledger::open(&path, LedgerOptions::default()).unwrap().1.torn.unwrap().bytes, 4096);
    assert_eq!(first_bad(&path), None);
}

#[test]
fn a_broken_ledger_is_not_continued() {
    let tmp = tmp();
    let path = written(tmp.path(), 3, u64::MAX);
    let good = std::fs::read_to_string(&path).unwrap();
    let bad = good.replace("\"n\":0", "\"n\":5");
    std::fs::write(&path, &bad).unwrap();
    let error = Ledger::open(&path, LedgerOptions::default()).map(drop).unwrap_err();
    assert!(matches!(&error, LedgerError::Broken { at, .. } if at.seq == 1), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), bad, "left as it was");
}

#[test]
fn the_chain_goes_through_all_segments() {
    let tmp = tmp();
    let path = written(tmp.path(), 30, 2_000);
    let verified = ledger::verify(&path, None).unwrap();
    assert!(verified.files >= 5 && verified.notes.is_empty(), "{verified:?}");
    assert_eq!(verified.records, 30 + verified.files as u64);
    let segment = |n: u64| tmp.path().join(format!("ledger.jsonl.{n:06}"));
    let first_of = |n: u64| ledger::verify(&segment(n), None).unwrap().first_seq.unwrap();
    let (second, third) = (first_of(2), first_of(3));

    // The oldest may be gone, and it is said; one in the middle may not.
    let elsewhere = tmp.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let aside = elsewhere.join("aside");
    std::fs::rename(segment(1), &aside).unwrap();
    let ran = log(["verify", tmp.path().to_str().unwrap()]).good();
    let note = format!("note: starts at seq {second}, older segments are not here");
    assert!(ran.stdout.contains(&note), "{}", ran.stdout);
    std::fs::rename(&aside, segment(1)).unwrap();
    std::fs::rename(segment(2), &aside).unwrap();
    assert_eq!(first_bad(&path), Some(second));
    std::fs::rename(&aside, segment(2)).unwrap();

    // An edit in an old segment, and a torn end in one.
    let good = std::fs::read_to_string(segment(2)).unwrap();
    std::fs::write(segment(2), good.replacen("\"cli\"", "\"clj\"", 1)).unwrap();
    assert_eq!(first_bad(&path), Some(second + 1));
    std::fs::write(segment(2), &good[..good.len() - 1]).unwrap();
    assert_eq!(first_bad(&path), Some(third - 1));
    std::fs::write(segment(2), good).unwrap();
    assert_eq!(first_bad(&path), None);
    let shown = log(["show", tmp.path().to_str().unwrap(), "--last", "3", "--event", "patch", "--format", "json"]);
    let shown = shown.good().json();
    let numbers: Vec<_> = shown["records"].as_array().unwrap().iter().map(|r| r["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [27, 28, 29]);
}

#[test]
fn a_second_writer_is_refused() {
    let tmp = tmp();
    let path = tmp.path().join("ledger.jsonl");
    let (ledger, _) = Ledger::open(&path, LedgerOptions::default()).unwrap();
    let error = Ledger::open(&path, LedgerOptions::default()).map(drop).unwrap_err();
    assert!(matches!(&error, LedgerError::Busy { holder, .. } if holder.starts_with("process ")), "{error}");
    assert!(error.to_string().contains("\n  why: ") && error.to_string().contains("\n  next: "), "{error}");
    // A clone holds it as well; the last one gives it back.
    let clone = ledger.clone();
    drop(ledger);
    assert!(matches!(Ledger::open(&path, LedgerOptions::default()), Err(LedgerError::Busy { .. })));
    drop(clone);
    assert!(!Ledger::open(&path, LedgerOptions::default()).unwrap().1.genesis);
}

/// The disk ends in the middle of a record (here: the largest file that the process may write). The event is an error,
/// nothing of it stays, and the next writer goes on.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error_and_not_a_torn_chain() {
    let tmp = tmp();
    let path = written(tmp.path(), 3, u64::MAX);
    let script = "trap '' XFSZ; ulimit -S -f 4; exec \"$0\" --exact ledger::child_that_fills_its_disk --ignored";
    let status = Command::new("bash")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, &path)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let verified = ledger::verify(&path, None).unwrap();
    assert!(verified.records > 5 && verified.notes.is_empty(), "{verified:?}");
    let (ledger, opened) = Ledger::open(&path, LedgerOptions::default()).unwrap();
    assert_eq!((opened.torn, opened.records), (None, verified.records));
    ledger.append("patch.staged", &Actor::cli(), fields(0)).unwrap();
    drop(ledger);
    assert_eq!(first_bad(&path), None);
}

/// Not a test by itself: the process whose files may have 4 KiB.
#[test]
#[ignore = "the child of another test"]
fn child_that_fills_its_disk() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let (ledger, _) = Ledger::open(Path::new(&path), LedgerOptions::default()).unwrap();
    let append = |n| ledger.append("patch.swapped", &Actor::policy(), fields(n));
    let error = (0..1_000).find_map(|n| append(n).err()).expect("it must end");
    assert!(matches!(error, LedgerError::Io { .. }), "{error}");
    let head = ledger.head();
    // Again and again: still an error, still the same head.
    (0..5).for_each(|n| drop(append(n).unwrap_err()));
    assert_eq!(ledger.head(), head);
}

/// Not a test by itself: the process that [`kill_9_at_any_moment_leaves_a_chain`] kills.
#[test]
#[ignore = "the child of another test"]
fn child_that_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let options = LedgerOptions { rotate_bytes: 20_000, sync: Sync::StateChanges, ..LedgerOptions::default() };
    let (ledger, _) = Ledger::open(Path::new(&path), options).unwrap();
    for n in 0.. {
        let event = if n % 5 == 0 { "patch.swapped" } else { "refit.counts" };
        ledger.append(event, &Actor::policy(), fields(n)).unwrap();
        // What the parent reads is what the ledger promised to have.
        println!("acknowledged {}", ledger.head().hash);
    }
}

#[test]
fn kill_9_at_any_moment_leaves_a_chain() {
    const ROUNDS: u64 = 30;
    let tmp = tmp();
    let path = tmp.path().join("ledger.jsonl");
    let mut records = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ledger::child_that_writes_until_it_is_killed", "--ignored", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // From the first acknowledgment on, a little longer each round: the kill falls into every part of the loop.
        let mut reader = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut acknowledged = None;
        let mut line = String::new();
        while acknowledged.is_none() && std::io::BufRead::read_line(&mut reader, &mut line).unwrap() > 0 {
            acknowledged = line.trim_end().rsplit_once("acknowledged ").map(|(_, hash)| hash.to_owned());
            line.clear();
        }
        let drain = std::thread::spawn(move || {
            let mut rest = String::new();
            // Killed in the middle of a line: the bytes read until then count.
            let _ = std::io::Read::read_to_string(&mut reader, &mut rest);
            rest
        });
        std::thread::sleep(Duration::from_micros(700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let rest = drain.join().unwrap();
        let whole = rest.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let last = whole.rsplit("acknowledged ").next().filter(|hash| hash.starts_with("sha256:"));
        let last = last.map(|hash| hash.trim().to_owned()).or(acknowledged).expect("something was acknowledged");
        let verified = ledger::verify(&path, Some(&last.parse().unwrap()));
        let verified = verified.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(verified.records > records, "round {round}: {verified:?}");
        records = verified.records;
    }
    let ran = log(["verify", tmp.path().to_str().unwrap()]).good();
    println!("{}", ran.stdout);
    let (_, opened) = Ledger::open(&path, LedgerOptions::default()).unwrap();
    assert!(!opened.genesis);
    log(["verify", tmp.path().to_str().unwrap()]).good();
}
