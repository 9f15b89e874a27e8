use std::path::PathBuf;
use std::sync::Arc;

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
