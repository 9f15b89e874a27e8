//! What is wrong: another base, damage, bombs, folders that are no version.

use super::*;

#[test]
fn another_base_is_refused_before_anything_is_applied() {
    let tmp = tmp();
    let (one, two) = two_versions(tmp.path(), Encoding::Xor);
    let delta = match Source::open(&tmp.path().join("weight_v000002")).unwrap() {
        Source::Delta(delta) => delta,
        _ => panic!("not a delta"),
    };
    let q = "model.layers.0.q.weight";
    let at = one.iter().position(|t| t.0 == q).unwrap();
    let mut texts = Vec::new();
    let mut check = |version: Option<u64>, edit: &dyn Fn(&mut Tensor)| {
        let mut held = one.clone();
        edit(&mut held[at]);
        let held = checkpoint(&held);
        let result = apply(&base(&held, version).unwrap(), &delta);
        assert!(matches!(result, Err(VersionError::Base(_))));
        texts.push(refused(result, tmp.path()));
    };
    check(Some(3), &|_| {});
    check(Some(1), &|t| t.3[100] ^= 1);
    check(None, &|t| t.3[100] ^= 1);
    check(Some(1), &|t| t.0 = "model.layers.0.k.weight".into());
    check(Some(1), &|t| t.2 = vec![3, 65]);
    check(Some(1), &|t| t.1 = Dtype::I8);
    check(Some(1), &|t| t.3.truncate(64 * 3));
    let result = load(&tmp.path().join("weight_v000002"), None, None).map(|_| ());
    texts.push(refused(result, tmp.path()));
    insta::assert_snapshot!(texts.join("\n\n"));
    // Tensors that it does not change are not looked at.
    let mut other = one.clone();
    other.iter_mut().find(|t| t.0 == "model.norm.weight").unwrap().3[0] ^= 1;
    let made = apply(&base(&checkpoint(&other), Some(1)).unwrap(), &delta).unwrap();
    assert_eq!(made.get(q).unwrap().data.load().unwrap().to_vec(), two[at].3);
}

/// Whatever happened to the files of a version, it is refused or gives what was written.
#[track_caller]
fn refused_or_right(dir: &Path, held: &Checkpoint, right: &[Tensor], how: &str) -> bool {
    let mut refused = 0;
    for version in [Some(1), None] {
        match load(dir, base(held, version), None) {
            Ok(loaded) => assert!(tensors(&loaded.checkpoint) == right, "{how}: wrong weights were taken"),
            Err(e) => {
                refused += 1;
                let text = e.to_string();
                assert!(text.contains("\n  why: ") && text.contains("\n  next: "), "{how}: not three parts: {text}");
            }
        }
    }
    refused > 0
}

#[test]
fn damage_anywhere_is_refused_or_changes_nothing() {
    // A file that was just written is waited for, every time.
    let stride = if std::env::var_os("PATCHHOST_CAMPAIGN").is_some() { 1 } else { 23 };
    for encoding in [Encoding::Xor, Encoding::Overwrite] {
        let tmp = tmp();
        let (one, two) = two_versions(tmp.path(), encoding);
        let held = checkpoint(&one);
        for (version, right) in [("weight_v000001", &one), ("weight_v000002", &two)] {
            let folder = tmp.path().join(version);
            assert!(!refused_or_right(&folder, &held, right, "untouched"));
            for (name, bytes) in files(&folder) {
                let path = folder.join(&name);
                let (mut noticed, mut tried) = (0, 0);
                for (i, byte) in bytes.iter().enumerate().step_by(stride) {
                    let mut bad = bytes.clone();
                    bad[i] = byte ^ [1, 0x20, 0xff][i / stride % 3];
                    std::fs::write(&path, &bad).unwrap();
                    tried += 1;
                    noticed += usize::from(refused_or_right(&folder, &held, right, &format!("{name} at {i}")));
                }
                // Most of it matters: spaces and the rest of JSON's freedom are little.
                assert!(noticed * 2 > tried, "{name}: {noticed} of {tried}");
                for len in (0..bytes.len()).step_by(7 * stride) {
                    std::fs::write(&path, &bytes[..len]).unwrap();
                    let noticed = refused_or_right(&folder, &held, right, &format!("{name} cut to {len}"));
                    // The index ends with a line feed that nobody misses.
                    assert!(noticed || (name == INDEX && len + 1 == bytes.len()), "{name} cut to {len}");
                }
                std::fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
                assert!(refused_or_right(&folder, &held, right, &format!("{name} and more")));
                std::fs::remove_file(&path).unwrap();
                assert!(refused_or_right(&folder, &held, right, &format!("{name} gone")));
                std::fs::write(&path, &bytes).unwrap();
            }
        }
    }
}

/// A frame of zeros made of runs of 128 KiB, 4 bytes each, that says nothing about its length.
fn bomb(bytes: u64) -> Vec<u8> {
    const RUN: u64 = 128 << 10;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    let runs = bytes / RUN;
    for i in 0..runs {
        let header = u32::from(i + 1 == runs) | (1 << 1) | ((RUN as u32) << 3);
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

/// Most memory that this process ever held, in KiB.
#[cfg(target_os = "linux")]
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A delta of one tensor, made by hand.
fn by_hand(dir: &Path, encoding: &str, tensor: &str, frame: &[u8], checksum: &str) -> PathBuf {
    let folder = dir.join("weight_v000002");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let header = json!({"__metadata__": {tensor: checksum},
        tensor: {"dtype": "U8", "shape": [frame.len()], "data_offsets": [0, frame.len()]}})
    .to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), frame].concat();
    std::fs::write(folder.join("d.safetensors"), bytes).unwrap();
    let index = json!({"metadata": {"version": "000002", "base_version": "000001", "delta_encoding": encoding,
        "compression_format": "zstd", "checksum_format": "adler32"}, "weight_map": {tensor: "d.safetensors"}});
    std::fs::write(folder.join(INDEX), index.to_string()).unwrap();
    folder
}

#[cfg(target_os = "linux")]
#[test]
fn a_bomb_is_refused_with_little_memory() {
    let tmp = tmp();
    let held = checkpoint(&model(1));
    let frame = bomb(10 << 30);
    assert!(frame.len() < 400_000);
    // A frame that is no bomb is taken: what is refused below is its length.
    let norm = held.get("model.norm.weight").unwrap().data.load().unwrap().to_vec();
    let mut raw = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    raw.extend(&(1u32 | (1 << 1) | ((norm.len() as u32) << 3)).to_le_bytes()[..3]);
    raw.push(0xff);
    let flipped: Vec<u8> = norm.iter().map(|b| !b).collect();
    let good = by_hand(tmp.path(), "xor", "model.norm.weight", &raw, &Checksum::Adler32.of(&flipped));
    let made = load(&good, base(&held, Some(1)), None).unwrap();
    assert_eq!(made.checkpoint.get("model.norm.weight").unwrap().data.load().unwrap().to_vec(), flipped);

    let before = most_memory();
    let mut texts = Vec::new();
    // The second claims 2^62 bytes and has none of them.
    let liar = [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..], &(1u64 << 62).to_le_bytes(), &[1, 0, 0]].concat();
    for (encoding, frame) in [("xor", &frame), ("overwrite", &frame), ("xor", &liar), ("overwrite", &liar)] {
        let bad = by_hand(tmp.path(), encoding, "model.norm.weight", frame, "00000001");
        texts.push(refused(load(&bad, base(&held, Some(1)), None), tmp.path()));
    }
    let grown = (most_memory() - before) >> 10;
    assert!(grown < 2000, "{grown} MiB more");
    insta::assert_snapshot!(texts.join("\n\n"));
}

#[test]
fn what_is_no_version_says_so() {
    let tmp = tmp();
    let dir = tmp.path().join("published");
    let (one, two) = two_versions(&dir, Encoding::Xor);
    let held = checkpoint(&one);
    let mut texts = Vec::new();
    let mut check = |name: &str, edit: &dyn Fn(&Path)| {
        let folder = tmp.path().join(name);
        copy_folder(&dir.join("weight_v000002"), &folder);
        edit(&folder);
        texts.push(refused(load(&folder, base(&held, None), None), tmp.path()));
        std::fs::remove_dir_all(folder).unwrap();
    };
    let two_ = "weight_v000002";
    check(two_, &|f| edit_index(f, |i| i["weight_map"]["model.scalar"] = "../x.safetensors".into()));
    check(two_, &|f| edit_index(f, |i| i["weight_map"]["model.scalar"] = "/x.safetensors".into()));
    check(two_, &|f| edit_index(f, |i| i["weight_map"]["model.scalar"] = "gone.safetensors".into()));
    check(two_, &|f| edit_index(f, |i| i["weight_map"]["model.other"] = "model-00001-of-00002.safetensors".into()));
    check(two_, &|f| edit_index(f, |i| i["metadata"]["compression_format"] = "lz4".into()));
    check(two_, &|f| edit_index(f, |i| drop(i.as_object_mut().unwrap().remove("metadata"))));
    check(two_, &|f| std::fs::remove_file(f.join(INDEX)).unwrap());
    check("plain", &|f| std::fs::remove_file(f.join(INDEX)).unwrap());
    check("weight_v000003", &|_| {});
    check("weight_v2", &|_| {});
    check(".weight_v000002.patchhost-aB3dE6", &|_| {});
    check(two_, &|f| {
        let shard = f.join("model-00001-of-00002.safetensors");
        let retyped: Vec<Tensor> = read(&shard).into_iter().map(|t| (t.0, Dtype::I8, t.2, t.3)).collect();
        write(&shard, &retyped);
    });
    let nothing = tmp.path().join("nothing");
    std::fs::create_dir(&nothing).unwrap();
    for path in [nothing, tmp.path().join("none")] {
        texts.push(refused(load(&path, None, None), tmp.path()));
    }
    insta::assert_snapshot!(texts.join("\n\n"));
    let again = load(&dir, base(&held, Some(1)), None).unwrap();
    assert_eq!(tensors(&again.checkpoint), two);
}
