//! Files that no host wrote, or that lost something on the way.

use super::super::format::{Event, FRAME_HEAD, HEAD, MAGIC, VERSION, encode, seal};
use super::super::{Question, Recorder, Recording, RecordingError, Replay, ReplayReport};
use super::{SANDBOX, everything, recorder, replay};
use crate::patch::{Patch, Reviewing, Terms, bundled};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

#[test]
fn every_prefix_is_a_recording_or_too_short_to_be_one() {
    let (tmp, path) = everything();
    let bytes = std::fs::read(&path).expect("the file");
    let cut = tmp.path().join("cut");
    let whole = Recording::open(&path).expect("a recording").overview().clone();
    let head = {
        // The first frame is whole from here on.
        let length = u32::from_le_bytes(bytes[HEAD as usize..][..4].try_into().expect("four bytes"));
        HEAD as usize + FRAME_HEAD + length as usize
    };
    let mut calls = 0;
    let small = (0..3_000).chain((3_000..bytes.len()).step_by(997)).chain(bytes.len() - 100..bytes.len());
    for length in small {
        std::fs::write(&cut, &bytes[..length]).expect("written");
        match Recording::open(&cut) {
            Ok(recording) => {
                let o = recording.overview();
                assert!(length >= head);
                assert_eq!(o.bytes + o.torn, length as u64);
                assert!(o.calls >= calls && o.calls <= whole.calls);
                assert!(o.end.is_none(), "{length}");
                calls = o.calls;
            }
            Err(error) => assert!(length < head, "{length}: {error}"),
        }
    }
    assert_eq!(calls, whole.calls);
    std::fs::write(&cut, &bytes[..bytes.len() - 1]).expect("written");
    assert_eq!(replay(&cut).expect("a recording").total.identical, whole.calls);
}

#[test]
fn damage_is_found_before_anything_is_asked() {
    let (tmp, path) = everything();
    let good = std::fs::read(&path).expect("the file");
    let bad = tmp.path().join("bad");
    let mut rng = StdRng::seed_from_u64(1);
    let (mut damaged, mut torn) = (0, 0);
    for _ in 0..1_000 {
        let mut bytes = good.clone();
        let at = rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << rng.random_range(0..8);
        std::fs::write(&bad, &bytes).expect("written");
        match Recording::open(&bad) {
            Err(error) => {
                damaged += 1;
                assert!(error.to_string().contains("\n  why: "), "{error}");
            }
            // A length that reaches beyond the end: what is before it is whole.
            Ok(recording) => {
                torn += 1;
                assert!(recording.overview().torn > 0, "byte {at}");
            }
        }
    }
    assert!(damaged > 950, "{damaged} damaged, {torn} torn");
}

/// What somebody writes on purpose has right checksums.
#[test]
fn a_forged_recording_is_input_like_any_other() {
    let (tmp, path) = everything();
    let mut frames: Vec<Vec<u8>> = Recording::open(&path)
        .and_then(|recording| recording.events()?.collect::<Result<Vec<_>, _>>())
        .expect("a recording")
        .iter()
        .map(|event| encode(event).expect("it was written before"))
        .collect();
    let forged = tmp.path().join("forged");
    let write = |frames: &[Vec<u8>]| {
        let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
        for (number, frame) in frames.iter().enumerate() {
            let mut frame = frame.clone();
            seal(&mut frame, number as u64);
            bytes.append(&mut frame);
        }
        std::fs::write(&forged, bytes).expect("written");
    };
    write(&frames);
    assert_eq!(std::fs::read(&forged).expect("the file"), std::fs::read(&path).expect("the file"));
    // Panels are most of the bytes, and their bytes mean nothing.
    let small: Vec<usize> = (1..frames.len()).filter(|i| frames[*i].len() < 20_000).collect();
    let mut rng = StdRng::seed_from_u64(2);
    let (mut opened, mut replayed, mut known) = (0, 0, HashMap::new());
    for round in 0..1_000 {
        let at = small[rng.random_range(0..small.len())];
        let before = frames[at].clone();
        let place = rng.random_range(FRAME_HEAD..frames[at].len());
        match round % 8 {
            0 => frames[at][place] = 0xff,
            1 => frames[at][place] = rng.random(),
            2 => frames[at].truncate(place),
            _ => frames[at][place] ^= 1 << rng.random_range(0..8),
        }
        write(&frames);
        opened += u32::from(Recording::open(&forged).is_ok());
        // Starting patches takes a while: some are also asked.
        if round % 8 >= 6 && matches!(catch(&forged, &mut known), Ok(report) if report.total.calls > 0) {
            replayed += 1;
        }
        frames[at] = before;
    }
    assert!(opened > 250 && replayed > 40, "{opened} opened, {replayed} replayed");
}

type Known = HashMap<(String, String), Arc<Patch>>;

/// A replay whose patches may refuse to start with what the file says. Those that remember nothing start once.
fn catch(path: &Path, known: &mut Known) -> Result<ReplayReport, RecordingError> {
    let recording = Recording::open(path)?;
    let mut replay = Replay::new(&recording);
    for entry in &recording.overview().patches {
        let Some(candidate) = bundled::bundled(&entry.name) else { continue };
        let key = (entry.name.clone(), format!("{:?} {:?}", entry.settings, entry.bounded_limits()));
        let patch = match known.get(&key) {
            Some(patch) => Arc::clone(patch),
            None => {
                let terms = Terms::settings(entry.settings.clone()).with_limits(entry.bounded_limits().0);
                Reviewing::default().start(candidate, &terms, &*SANDBOX)?
            }
        };
        replay.answer_with(entry, &patch)?;
        if !patch.has_state() {
            known.insert(key, patch);
        }
    }
    replay.run(&|_| {})
}

#[test]
fn lengths_allocate_nothing() {
    let tmp = tempfile::tempdir().expect("a folder");
    let path = tmp.path().join("a.rec");
    drop(recorder(&path, Recorder::MAX_BYTES));
    let head = std::fs::read(&path).expect("the file");
    let grown = |tail: &[u8]| {
        std::fs::write(&path, [&head[..], tail].concat()).expect("written");
        Recording::open(&path)
    };
    // After the end.
    assert!(matches!(grown(&[0; 40]), Err(RecordingError::Damaged { .. })));
    let claims = [&u32::MAX.to_le_bytes()[..], &[7; 100]].concat();
    assert_eq!(grown(&claims).expect("torn").overview().torn, 104);
    // Frames that say that they hold four billion of something.
    for variant in 0..=5u8 {
        for kind in 0..=16u8 {
            let huge = [0xff, 0xff, 0xff, 0xff, 0x0f];
            let payload = [&[variant, 0, kind][..], &huge, &huge, &huge].concat();
            let mut frame = [&[0; FRAME_HEAD][..], &payload].concat();
            let host = &head[HEAD as usize..];
            let first = FRAME_HEAD + u32::from_le_bytes(host[..4].try_into().expect("four")) as usize;
            seal(&mut frame, 1);
            std::fs::write(&path, [&head[..HEAD as usize + first], &frame].concat()).expect("written");
            Recording::open(&path).expect_err("nothing like it was written");
        }
    }
    for text in ["", "PHREC", "PHRECORD", "PHRECORD\u{2}\0\0\0", "{}"] {
        std::fs::write(&path, text).expect("written");
        let error = Recording::open(&path).expect_err("no recording");
        assert!(matches!(error, RecordingError::NotARecording { .. }), "{error}");
    }
    Recording::open(tmp.path()).expect_err("a folder");
}

#[test]
fn what_no_host_asks_is_refused() {
    let (tmp, path) = everything();
    let events = Recording::open(&path).and_then(|r| r.events()?.collect::<Result<Vec<_>, _>>()).expect("a recording");
    let write = |events: &[Event]| {
        let forged = tmp.path().join("forged");
        let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
        for (number, event) in events.iter().enumerate() {
            let mut frame = encode(event).expect("small");
            seal(&mut frame, number as u64);
            bytes.append(&mut frame);
        }
        std::fs::write(&forged, bytes).expect("written");
        forged
    };
    let changed = |change: &dyn Fn(&mut Question)| {
        let mut events = events.clone();
        for event in &mut events {
            if let Event::Call(call) = event {
                change(&mut call.question);
            }
        }
        replay(&write(&events))
    };
    let error = changed(&|question| {
        if let Question::PanelScales { rows, .. } = question {
            rows.cols = usize::MAX;
        }
    });
    assert!(matches!(error, Err(RecordingError::Damaged { .. })), "{error:?}");
    let huge = changed(&|question| {
        if let Question::Scales { blocks, .. } = question {
            (blocks.rows, blocks.cols, blocks.first_block) = (usize::MAX, usize::MAX, usize::MAX);
        }
    });
    let failed = huge.expect("asked").failed.expect("a limit");
    assert!(failed.got.starts_with("Limit"), "{failed:?}");
    // A refit that never began, and one that never ends.
    let lost = changed(&|question| {
        if let Question::Tensors { watch, .. } | Question::Finish { watch, .. } = question {
            *watch = 99;
        }
    });
    assert!(lost.expect("asked").failed.is_some_and(|f| f.got.contains("did not begin")));
    let twice: Vec<Event> = events.iter().chain(&events).cloned().collect();
    assert!(matches!(replay(&write(&twice)), Err(RecordingError::Damaged { .. })));
    let stranger: Vec<Event> = events.iter().filter(|e| !matches!(e, Event::Patch(_))).cloned().collect();
    assert!(matches!(replay(&write(&stranger)), Err(RecordingError::Damaged { .. })));
}
