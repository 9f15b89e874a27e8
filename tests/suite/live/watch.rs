use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use patchhost::base::Digest;
use patchhost::live::{SettingsFor, Watcher};
use patchhost::patch::{Requested, When};

use super::{Rig, me};
use crate::support::{evil, repo, tmp};

fn guest(name: &str) -> PathBuf {
    repo().join("guests").join(format!("{name}.wasm"))
}

fn none() -> SettingsFor {
    Arc::new(|_| Vec::new())
}

#[test]
fn a_replaced_file_takes_effect_at_the_next_refit_exactly() {
    let tmp = tmp();
    let file = tmp.path().join("fp8_block.wasm");
    std::fs::copy(guest("fp8_block"), &file).unwrap();
    let rig = Rig::new("qwen3_moe", &[("fp8_block", &[])]);
    let watcher = Watcher::start(&rig.live, std::slice::from_ref(&file), none(), When::Refit).unwrap();
    let seen = watcher.sync();
    assert!(matches!(seen[0].outcome, Ok(Requested::AlreadyActive { .. })), "{seen:?}");
    for (round, name) in ["fp8_block_mse", "fp8_block", "fp8_block_mse"].iter().enumerate() {
        assert!(watcher.sync().is_empty());
        assert!(rig.refit().swap.is_none());
        match round % 2 {
            // In place, as `cp` does; and by rename, as `install` and editors do.
            0 => std::fs::write(&file, std::fs::read(guest(name)).unwrap()).unwrap(),
            _ => {
                let other = tmp.path().join(".new");
                std::fs::copy(guest(name), &other).unwrap();
                std::fs::rename(&other, &file).unwrap();
            }
        }
        watcher.sync();
        let done = rig.refit();
        assert!(done.swap.is_some(), "round {round}");
        assert_eq!(&rig.live.board().active().members()[1].name, name);
    }
    // Touched, not changed.
    std::fs::write(&file, std::fs::read(guest("fp8_block_mse")).unwrap()).unwrap();
    assert!(watcher.sync().is_empty());
    assert!(rig.refit().swap.is_none());
}

#[test]
fn a_folder_is_watched_without_being_asked() {
    let tmp = tmp();
    let rig = Rig::new("qwen3_moe", &[("fp8_block", &[])]);
    let _watcher = Watcher::start(&rig.live, &[tmp.path().to_owned()], none(), When::Refit).unwrap();
    std::fs::copy(guest("gpu_layout"), tmp.path().join("gpu_layout.wasm")).unwrap();
    for _ in 0..400 {
        if rig.live.status().board.transition.is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    assert!(rig.refit().swap.is_some());
    assert_eq!(rig.live.board().active().members().len(), 3);
    assert_eq!(rig.last("patch.staged")["name"], "gpu_layout");
}

#[test]
fn broken_files_change_nothing_and_are_written_down_once() {
    let tmp = tmp();
    let file = tmp.path().join("fp8_block.wasm");
    std::fs::copy(guest("fp8_block"), &file).unwrap();
    let rig = Rig::new("qwen3_moe", &[("fp8_block", &[])]);
    let (before, active) = (rig.bits(), rig.active());
    let watcher = Watcher::start(&rig.live, std::slice::from_ref(&file), none(), When::Refit).unwrap();
    watcher.sync();
    let half = std::fs::read(guest("fp8_block")).unwrap();
    for bytes in [half[..half.len() / 2].to_vec(), b"hello".to_vec(), std::fs::read(evil("saturating")).unwrap()] {
        // In one step: what is broken here is the file, not half of a write that the watcher may see under load.
        let next = tmp.path().join(".next");
        std::fs::write(&next, bytes).unwrap();
        std::fs::rename(&next, &file).unwrap();
        watcher.sync();
        watcher.sync();
        rig.refit();
        assert_eq!((rig.bits(), rig.active()), (before.clone(), active));
    }
    assert_eq!(rig.live.status().board.refused, 3);
    std::fs::remove_file(&file).unwrap();
    watcher.sync();
    assert_eq!(rig.active(), active, "a file that is gone takes nothing out");
    assert!(rig.events().iter().any(|e| e == "watch.lost"));
    assert_eq!(watcher.reload(&me()).len(), 0);
}

#[test]
fn what_is_not_there_cannot_be_watched() {
    let rig = Rig::new("qwen3_moe", &[]);
    let error = Watcher::start(&rig.live, &["/nowhere/x.wasm".into()], none(), When::Refit).err().unwrap();
    assert!(error.to_string().contains("/nowhere/x.wasm"));
}

/// The patch with other bytes each time: a custom section that nobody reads stands at its end.
fn version(n: u8) -> Vec<u8> {
    let mut bytes = std::fs::read(guest("fp8_block")).unwrap();
    bytes.extend([0, 4, 2, b'v', b'n', n]);
    bytes
}

/// Another name in the same folder. `..data` has no extension to change.
fn beside(path: &Path) -> std::path::PathBuf {
    path.with_file_name(format!("{}.new", path.file_name().unwrap().display()))
}

/// Renames over a name, as everybody does who replaces a file or a link in one step.
fn put(path: &Path, bytes: &[u8]) {
    let beside = beside(path);
    std::fs::write(&beside, bytes).unwrap();
    std::fs::rename(&beside, path).unwrap();
}

fn link(path: &Path, to: impl AsRef<Path>) {
    let beside = beside(path);
    symlink(to, &beside).unwrap();
    std::fs::rename(&beside, path).unwrap();
}

/// As the kubelet updates a ConfigMap: a new folder, `..data` renamed to lead to it, the old folder removed.
fn mount(folder: &Path, number: u8, bytes: &[u8]) {
    let data = |n: u8| format!("..t{n}");
    std::fs::create_dir_all(folder.join(data(number))).unwrap();
    std::fs::write(folder.join(data(number)).join("fp8_block.wasm"), bytes).unwrap();
    link(&folder.join("..data"), data(number));
    match number.checked_sub(1).map(|before| folder.join(data(before))).filter(|before| before.exists()) {
        Some(before) => std::fs::remove_dir_all(before).unwrap(),
        None => symlink("..data/fp8_block.wasm", folder.join("fp8_block.wasm")).unwrap(),
    }
}

/// The components that were staged, in this order.
fn staged(rig: &Rig) -> Vec<String> {
    let entries = rig.live.ledger().recent(1000);
    let staged = entries.iter().filter(|entry| entry.event == "patch.staged");
    staged.map(|entry| entry.fields["sha256"].as_str().unwrap().to_owned()).collect()
}

/// Waits until these were staged, each once and nothing else.
#[track_caller]
fn expect(rig: &Rig, what: &str, bytes: &[Vec<u8>]) {
    let expected: Vec<String> = bytes.iter().map(|bytes| Digest::of(bytes).to_string()).collect();
    let begun = Instant::now();
    while staged(rig).len() < expected.len() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(staged(rig), expected, "{what}");
}

#[test]
fn every_version_of_a_mounted_config_map_is_staged_once() {
    for what in ["folder", "file"] {
        let tmp = tmp();
        mount(tmp.path(), 0, &version(0));
        let target = if what == "folder" { tmp.path().to_owned() } else { tmp.path().join("fp8_block.wasm") };
        let rig = Rig::new("qwen3_moe", &[("fp8_block", &[])]);
        let watcher = Watcher::start(&rig.live, &[target], none(), When::Refit).unwrap();
        watcher.sync();
        let mut all = vec![version(0)];
        for n in 1..6 {
            mount(tmp.path(), n, &version(n));
            all.push(version(n));
            expect(&rig, &format!("{what}, swap {n}"), &all);
        }
        // Faster than they can be staged: the last one counts, and none comes twice.
        for n in 6..12 {
            mount(tmp.path(), n, &version(n));
        }
        watcher.sync();
        let seen = staged(&rig);
        assert_eq!(seen.last(), Some(&Digest::of(&version(11)).to_string()), "{what}");
        let once: std::collections::BTreeSet<&String> = seen.iter().collect();
        assert_eq!(once.len(), seen.len(), "{what}: {seen:?}");
        assert!(rig.refit().swap.is_some());
        assert!(!rig.events().iter().any(|e| e == "watch.lost"), "{what}");
    }
}

#[test]
fn links_folders_and_parents_that_are_replaced_are_seen() {
    for what in ["folder", "file"] {
        let tmp = tmp();
        let at = |name: &str| tmp.path().join(name);
        // near/patches -> far/patches, and the component in it -> store/current -> store/v
        for folder in ["near", "far/patches", "store"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        put(&at("store/v"), &version(0));
        link(&at("store/current"), "v");
        link(&at("far/patches/fp8_block.wasm"), at("store/current"));
        link(&at("near/patches"), "../far/patches");
        let file = at("near/patches/fp8_block.wasm");
        let target = if what == "folder" { at("near/patches") } else { file };
        let rig = Rig::new("qwen3_moe", &[("fp8_block", &[])]);
        let watcher = Watcher::start(&rig.live, &[target], none(), When::Refit).unwrap();
        watcher.sync();
        let mut all = vec![version(0)];
        let mut seen = |step: &str, n: u8| {
            all.push(version(n));
            expect(&rig, &format!("{what}: {step}"), &all);
        };
        put(&at("store/v"), &version(1));
        seen("the file at the end of the chain", 1);
        put(&at("store/w"), &version(2));
        link(&at("store/current"), "w");
        seen("a link in the middle", 2);
        std::fs::remove_dir_all(at("far/patches")).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        std::fs::create_dir(at("far/patches")).unwrap();
        put(&at("far/patches/fp8_block.wasm"), &version(3));
        seen("the folder made anew", 3);
        std::fs::rename(at("far"), at("old")).unwrap();
        std::fs::create_dir_all(at("next/patches")).unwrap();
        put(&at("next/patches/fp8_block.wasm"), &version(4));
        std::fs::rename(at("next"), at("far")).unwrap();
        seen("the parent replaced by another", 4);
        std::fs::create_dir(at("other")).unwrap();
        put(&at("other/fp8_block.wasm"), &version(5));
        link(&at("near/patches"), "../other");
        seen("the link to the folder", 5);
        // And what is there is followed as before.
        put(&at("other/fp8_block.wasm"), &version(6));
        seen("a file in the folder that is new", 6);
        // The same bytes again are no new version, whatever they come as.
        std::fs::remove_dir_all(at("other")).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        std::fs::create_dir(at("other")).unwrap();
        put(&at("other/fp8_block.wasm"), &version(6));
        std::thread::sleep(Duration::from_millis(1500));
        watcher.sync();
        let count = staged(&rig).len();
        assert_eq!(count, 7, "{what}");
    }
}
