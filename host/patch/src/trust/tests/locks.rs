use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// 500 broken locks, policies, revocations and signature files: each is read or refused with words, none panics, and none
/// is overwritten.
#[test]
fn garbage_is_refused_and_kept() {
    let rig = Rig::new("");
    rig.lock("fp8_block", &with(&[("profile", "hf")])).unwrap();
    rig.gate().revoke(&[Revoked::Key(SecretKey::generate(None).public())], "lost").unwrap();
    rig.sign("fp8_block", &SecretKey::generate(None), Some("2027-01-01".parse().unwrap()));
    let read = |name: &str| std::fs::read(rig.path(name)).unwrap();
    let originals = [read(LOCK_FILE), read(REVOKED_FILE), read("fp8_block.wasm.sig")];
    let mut rng = StdRng::seed_from_u64(7);
    let (mut refused, path) = (0, rig.path("broken.lock"));
    for round in 0..500 {
        let mut bytes = originals[round % 3].clone();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..5) {
                0 => bytes[at] = rng.random(),
                1 => bytes.truncate(at.max(1)),
                2 => bytes.insert(at, *b"[]{}=\"'\n#\0\xff".get(rng.random_range(0..11)).unwrap()),
                3 => drop(bytes.drain(at..(at + 20).min(bytes.len()))),
                _ => bytes.extend_from_slice(&originals[0][..at.min(originals[0].len())]),
            }
            if bytes.is_empty() {
                bytes.push(b'x');
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let _ = (Policy::parse(&text), Revocations::parse(&text), Signatures::parse(&text));
        if let Err(error) = LockFile::read(&path) {
            refused += 1;
            assert!(!error.why.is_empty() && error.why.len() < 1_500, "{error}");
            LockFile::update(&path, |_| Ok(())).unwrap_err();
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "overwritten");
        }
    }
    assert!(refused > 250, "{refused}");
}

#[test]
fn writers_lose_nothing() {
    let rig = Rig::new("");
    let made = rig.lock("fp8_block", &with(&[])).unwrap().entry;
    let path = rig.path(LOCK_FILE);
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let (path, made) = (&path, &made);
            scope.spawn(move || {
                for i in 0..8 {
                    let name = format!("w{writer}-{i}");
                    LockFile::update(path, |lock| {
                        lock.put(Entry { name: name.clone(), ..made.clone() });
                        Ok(())
                    })
                    .unwrap();
                    // Whoever reads meanwhile sees a whole lock.
                    let (lock, _) = LockFile::read(path).unwrap().unwrap();
                    assert!(lock.get(&name).is_some());
                }
            });
        }
    });
    let (lock, _) = LockFile::read(&path).unwrap().unwrap();
    assert_eq!(lock.patches.len(), 65);
    assert!(lock.patches.is_sorted_by_key(|entry| &entry.name));
    let left = std::fs::read_dir(rig.folder.path()).unwrap().flatten();
    assert!(left.map(|e| e.file_name().to_string_lossy().into_owned()).all(|name| !name.ends_with(".new")));
}

/// The same entry at once: the last decision stands, whole, and each writer's own answer is what he wrote.
#[test]
fn two_decisions_about_one_patch_do_not_mix() {
    let rig = Rig::new("");
    std::thread::scope(|scope| {
        for profile in ["hf", "deepseek", "verl-torch"] {
            let rig = &rig;
            scope.spawn(move || {
                let entry = rig.lock("fp8_block", &with(&[("profile", profile)])).unwrap().entry;
                assert_eq!(entry.pairs(), settings(&[("profile", profile)]));
            });
        }
    });
    let (lock, _) = LockFile::read(&rig.path(LOCK_FILE)).unwrap().unwrap();
    assert_eq!(lock.patches.len(), 1);
    assert!(lock.patches[0].is_untouched());
}

#[test]
#[cfg(unix)]
fn odd_places_are_refused_in_words() {
    use std::os::unix::fs::PermissionsExt;
    let rig = Rig::new("");
    rig.lock("fp8_block", &with(&[])).unwrap();
    let (real, path) = (rig.path("real.lock"), rig.path(LOCK_FILE));
    std::fs::rename(&path, &real).unwrap();
    std::os::unix::fs::symlink(&real, &path).unwrap();
    // Reading through a link is fine; writing would replace it.
    rig.admit("fp8_block", &[]).unwrap();
    let before = std::fs::read(&real).unwrap();
    assert!(rig.lock("gpu_layout", &with(&[])).unwrap_err().to_string().contains("symbolic link"));
    assert_eq!(std::fs::read(&real).unwrap(), before);
    std::fs::remove_file(&real).unwrap();
    assert!(error(rig.admit("fp8_block", &[])).contains("lock file"), "a link to nowhere is no missing lock");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(error(rig.admit("fp8_block", &[])).contains("it is not a file"));
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, &before).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    assert!(rig.lock("gpu_layout", &with(&[])).unwrap_err().to_string().contains("read-only"));
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, vec![b'#'; 5 << 20]).unwrap();
    assert!(error(rig.admit("fp8_block", &[])).contains("at most"));
}

#[test]
fn a_lock_says_what_is_wrong_with_it() {
    let rig = Rig::new("");
    rig.lock("fp8_block", &with(&[])).unwrap();
    let text = std::fs::read_to_string(rig.path(LOCK_FILE)).unwrap();
    let entry = &text[text.find("[[patch]]").unwrap()..];
    for (text, why) in [
        (text.replacen("version = 2\n", "version = 3\n", 1), "its version is 3"),
        (text.replace("size = ", "sise = "), "unknown field `sise`"),
        (text.replace("size = ", "sise = "), "did you mean `size`"),
        (text.replace("memory_bytes = ", "memory_byte = "), "did you mean `memory_bytes`"),
        (text.replace("settings = []", "settings = [\"x\"]"), "a setting is KEY=VALUE"),
        (format!("{text}\n{entry}"), "two entries are called `fp8_block`"),
        (text.replace("digest = \"sha256:", "digest = \"sha256:x"), "is not a digest"),
        (String::new(), "missing field `version`"),
    ] {
        let error = LockFile::parse(&text).unwrap_err();
        assert!(error.contains(why), "{why}: {error}");
    }
}
