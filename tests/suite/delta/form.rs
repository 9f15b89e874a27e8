//! What is written and read: the form, the bytes, chains.

use super::*;

#[test]
fn versions_of_slime_are_read() {
    let published = data("delta/published");
    let held = Checkpoint::open(&data("delta/base")).unwrap();
    let expected = |n: u64| read(&data(&format!("delta/expected/v{n:06}.safetensors")));
    // From what the engine started with to each version; 4 is a full one.
    for (target, steps) in [(1, 1), (2, 2), (3, 3), (4, 1), (5, 2)] {
        for version in [None, Some(0)] {
            let loaded = load(&published, base(&held, version), Some(target)).unwrap();
            assert_eq!(tensors(&loaded.checkpoint), expected(target), "version {target}");
            assert_eq!((loaded.version, loaded.steps.len()), (Some(Version(target)), steps));
        }
    }
    // The newest, by itself and from what is held.
    for held in [None, base(&held, None)] {
        let loaded = load(&published, held, None).unwrap();
        assert_eq!((tensors(&loaded.checkpoint), loaded.skipped.len()), (expected(5), 0));
    }
    // One delta's folder; nothing newer; a plain file; back to an older full version.
    let (one, five) = (checkpoint(&expected(1)), checkpoint(&expected(5)));
    let two = load(&published.join("weight_v000002"), base(&one, Some(1)), None).unwrap();
    assert_eq!(tensors(&two.checkpoint), expected(2));
    let still = load(&published, base(&five, Some(5)), None).unwrap();
    assert!(still.steps.is_empty() && still.version == Some(Version(5)));
    let file = load(&data("delta/expected/v000002.safetensors"), None, None).unwrap();
    assert_eq!((tensors(&file.checkpoint), file.version), (expected(2), None));
    assert_eq!(load(&published, base(&five, Some(5)), Some(4)).unwrap().version, Some(Version(4)));
    // From the wrong one it is refused, whether it says what it is or not.
    assert!(matches!(load(&published.join("weight_v000002"), base(&held, Some(0)), None), Err(VersionError::Base(_))));
    for wrong in [&held, &five] {
        let unknown = load(&published.join("weight_v000002"), base(wrong, None), None);
        assert!(matches!(unknown, Err(VersionError::Corrupt(_))));
    }
    // With slime's other strong checksum, and with one bit of it wrong.
    let folder = data("delta/blake3/weight_v000001");
    assert_eq!(tensors(&load(&folder, base(&held, None), None).unwrap().checkpoint), expected(1));
    let tmp = tmp();
    let wrong = tmp.path().join("weight_v000001");
    std::fs::create_dir(&wrong).unwrap();
    for (name, mut bytes) in files(&folder) {
        let shard = name.ends_with(".safetensors");
        // The header holds the checksums, as texts.
        let digit = bytes.iter().position(|b| *b == b'{').filter(|_| shard).map(|at| {
            let hex = |w: &[u8]| w[0] == b'"' && w[1..65].iter().all(u8::is_ascii_hexdigit) && w[65] == b'"';
            at + bytes[at..].windows(66).position(hex).unwrap() + 1
        });
        if let Some(digit) = digit {
            bytes[digit] = if bytes[digit] == b'0' { b'1' } else { b'0' };
        }
        std::fs::write(wrong.join(name), bytes).unwrap();
    }
    let error = load(&wrong, base(&held, None), None);
    assert!(matches!(&error, Err(VersionError::Corrupt(r)) if r.why.contains("blake3")), "{:?}", error.err());
}

#[test]
fn what_is_written_comes_back() {
    for encoding in [Encoding::Xor, Encoding::Overwrite] {
        for checksum in Checksum::ALL {
            let tmp = tmp();
            let options = small(checksum);
            let mut all = vec![model(7)];
            write_full(&checkpoint(&all[0]), &Beside::default(), tmp.path(), Version(10), &options).unwrap();
            // Parts of the bytes: few, all, none.
            for (i, part) in [0.01, 1.0, 0.3].into_iter().enumerate() {
                all.push(trained(&all[i], i as u64, part));
            }
            all.push(all[3].clone());
            for i in 1..all.len() {
                let (a, b) = (checkpoint(&all[i - 1]), checkpoint(&all[i]));
                let (version, before) = (Version(10 + i as u64), Version(9 + i as u64));
                let written = write_delta(&a, &b, tmp.path(), version, before, encoding, &options).unwrap();
                let changed = if i == 4 { 0 } else { 5 };
                assert_eq!((written.tensors, written.unchanged), (changed, 8 - changed));
                // Each alone, on the one before.
                let made = load(&written.path, base(&a, Some(before.0)), None).unwrap();
                assert_eq!(tensors(&made.checkpoint), sorted(all[i].clone()));
                assert_eq!(made.checkpoint.file_bytes(), a.file_bytes());
                for name in ["model.norm.weight", "model.steps"] {
                    let place = |c: &Checkpoint| c.get(name).unwrap().data.load().unwrap().as_ptr();
                    assert_eq!(place(&made.checkpoint), place(&a), "bytes that stay are shared, not copied");
                }
            }
            // The chain, from nothing and from the middle.
            let middle = checkpoint(&all[2]);
            for (held, steps) in [(None, 5), (base(&middle, Some(12)), 2)] {
                let loaded = load(tmp.path(), held, None).unwrap();
                assert_eq!(tensors(&loaded.checkpoint), sorted(all[4].clone()));
                assert_eq!((loaded.steps.len(), loaded.skipped.len()), (steps, 0));
            }
        }
    }
}

#[test]
fn the_same_bytes_on_every_run_in_files_of_bounded_size() {
    let tmp = tmp();
    let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
    two_versions(&a, Encoding::Overwrite);
    two_versions(&b, Encoding::Overwrite);
    for version in ["weight_v000001", "weight_v000002"] {
        let (fa, fb) = (files(&a.join(version)), files(&b.join(version)));
        assert!(fa == fb, "{:?} {:?}", fa.keys(), fb.keys());
        let shards = fa.len() - 1;
        assert!(shards >= 2, "{:?}", fa.keys());
        let index: Value = serde_json::from_slice(&fa[INDEX]).unwrap();
        assert_eq!(index["metadata"]["version"], version["weight_v".len()..]);
        for (i, name) in fa.keys().take(shards).enumerate() {
            assert_eq!(*name, format!("model-{:05}-of-{shards:05}.safetensors", i + 1));
            let held = Checkpoint::open(&a.join(version).join(name)).unwrap();
            let bytes: usize = held.tensors().map(|t| t.data.len()).sum();
            assert!(bytes <= 300 || held.tensors().len() == 1, "{name} has {bytes}");
            assert!(held.tensors().all(|t| index["weight_map"][&t.name] == **name));
        }
    }
    // To others a full version is an ordinary checkpoint, and the delta's index has what they look for.
    assert_eq!(tensors(&Checkpoint::open(&a.join("weight_v000001")).unwrap()), sorted(model(1)));
    let index: Value = serde_json::from_slice(&std::fs::read(a.join("weight_v000002").join(INDEX)).unwrap()).unwrap();
    let form = json!({"version": "000002", "base_version": "000001", "delta_encoding": "overwrite",
        "compression_format": "zstd", "checksum_format": "sha256"});
    assert_eq!(index["metadata"], form);
}

#[test]
fn a_full_version_can_be_a_model_by_itself() {
    let tmp = tmp();
    let held = bundled::checkpoint().unwrap();
    let companions = Companions::bundled();
    let beside = Beside { config: Some(bundled::CONFIG), companions: Some(&companions) };
    let options = WriteOptions { max_shard: 1 << 20, ..WriteOptions::default() };
    let written = write_full(&held, &beside, tmp.path(), Version(3), &options).unwrap();
    let ran =
        crate::support::patchhost(["run", written.path.to_str().unwrap(), "--prompt", "KING", "--max-tokens", "4"]);
    ran.good();
    assert_eq!(tensors(&load(tmp.path(), None, None).unwrap().checkpoint), tensors(&held));
}

#[test]
fn the_newest_complete_chain_is_taken_and_the_rest_is_named() {
    let tmp = tmp();
    let mut all = vec![model(3)];
    let options = WriteOptions::default();
    for i in 1..=6u64 {
        all.push(trained(&all[i as usize - 1], i, 0.2));
        let (a, b) = (checkpoint(&all[i as usize - 1]), checkpoint(&all[i as usize]));
        write_delta(&a, &b, tmp.path(), Version(i), Version(i - 1), Encoding::Xor, &options).unwrap();
    }
    let start = checkpoint(&all[0]);
    // 3 is not written yet; 5 has lost a shard; 6 stands on 5; two leftovers; something else.
    std::fs::remove_file(tmp.path().join("weight_v000005/model-00001-of-00001.safetensors")).unwrap();
    for name in [".weight_v000007.patchhost-abcdef", "weight_v8", "logs"] {
        std::fs::create_dir(tmp.path().join(name)).unwrap();
    }
    let loaded = load(tmp.path(), base(&start, None), None).unwrap();
    assert_eq!((loaded.version, loaded.steps.len()), (Some(Version(4)), 4));
    assert_eq!(tensors(&loaded.checkpoint), sorted(all[4].clone()));
    let mut texts: Vec<String> = loaded.skipped.iter().map(|s| format!("{}: {}", s.name, s.why)).collect();
    // What is held is the newest that can be had.
    let four = checkpoint(&all[4]);
    assert!(load(tmp.path(), base(&four, Some(4)), None).unwrap().steps.is_empty());
    // From 5 one gets to 6.
    let five = checkpoint(&all[5]);
    assert_eq!(load(tmp.path(), base(&five, Some(5)), None).unwrap().version, Some(Version(6)));
    // Asked for by number, there is no way around it.
    for (held, target) in [
        (None, Some(2)),
        (base(&start, None), Some(6)),
        (base(&start, None), Some(9)),
        (base(&five, Some(5)), Some(2)),
        (None, None),
    ] {
        texts.push(refused(load(tmp.path(), held, target), tmp.path()));
    }
    let delta = tmp.path().join("weight_v000002");
    texts.push(refused(load(&delta, base(&start, None), Some(3)), tmp.path()));
    insta::assert_snapshot!(texts.join("\n\n").replace(&tmp.path().display().to_string(), "[tmp]"));
}
