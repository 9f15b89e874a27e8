//! Versions of weights in folders: those of slime are read, ours come back bit for bit, and whatever is wrong with one is
//! refused before anything is applied.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::support::{Tensor, copy_folder, data, read, tmp, write};
use patchhost::checkpoint::bundled;
use patchhost::checkpoint::export::Companions;
use patchhost::checkpoint::versions::{
    Base, Beside, Checksum, Encoding, Loaded, Source, Version, VersionError, WriteOptions, apply, write_delta,
    write_full,
};
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

const INDEX: &str = "model.safetensors.index.json";

/// Every dtype that weights have, odd sizes, a scalar and an empty tensor.
const SHAPES: [(&str, Dtype, usize, &[usize]); 8] = [
    ("model.embed_tokens.weight", Dtype::BF16, 2, &[7, 33]),
    ("model.layers.0.q.weight", Dtype::F8_E4M3, 1, &[65, 3]),
    ("model.layers.0.q.weight_scale_inv", Dtype::F32, 4, &[1, 1]),
    ("model.layers.0.up.weight", Dtype::F16, 2, &[13, 5]),
    ("model.norm.weight", Dtype::F32, 4, &[129]),
    ("model.scalar", Dtype::F32, 4, &[]),
    ("model.steps", Dtype::I64, 8, &[5]),
    ("model.nothing", Dtype::F32, 4, &[0, 4]),
];

fn model(seed: u64) -> Vec<Tensor> {
    let mut rng = StdRng::seed_from_u64(seed);
    SHAPES
        .iter()
        .map(|(name, dtype, width, shape)| {
            let n = width * shape.iter().product::<usize>();
            ((*name).to_string(), *dtype, shape.to_vec(), (0..n).map(|_| rng.random()).collect())
        })
        .collect()
}

/// The same with about a part of the bytes of some tensors changed; norm and steps stay.
fn trained(from: &[Tensor], seed: u64, part: f64) -> Vec<Tensor> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut to = from.to_vec();
    for (name, _, _, bytes) in &mut to {
        if name.contains("norm") || name.contains("steps") {
            continue;
        }
        let must = bytes.len().checked_sub(1).map(|last| rng.random_range(0..=last));
        for (i, byte) in bytes.iter_mut().enumerate() {
            if rng.random_bool(part) || must == Some(i) {
                *byte ^= rng.random_range(1..=255u8);
            }
        }
    }
    to
}

fn checkpoint(tensors: &[Tensor]) -> Checkpoint {
    Checkpoint::from_tensors(tensors.iter().map(|(name, dtype, shape, bytes)| {
        let data = TensorBytes::new(Arc::new(bytes.clone()), 0..bytes.len()).unwrap();
        CheckpointTensor::new(name.clone(), *dtype, shape.clone(), data)
    }))
    .unwrap()
}

fn tensors(checkpoint: &Checkpoint) -> Vec<Tensor> {
    checkpoint.tensors().map(|t| (t.name.clone(), t.stored, t.shape.clone(), t.data.to_vec())).collect()
}

fn sorted(mut tensors: Vec<Tensor>) -> Vec<Tensor> {
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

fn base(checkpoint: &Checkpoint, version: Option<u64>) -> Option<Base<'_>> {
    Some(Base { checkpoint, version: version.map(Version) })
}

fn load(path: &Path, base: Option<Base<'_>>, target: Option<u64>) -> Result<Loaded, VersionError> {
    Source::open(path)?.load(base, target.map(Version))
}

/// The text of an error, which must have three parts, without the folder `hide`.
#[track_caller]
fn refused<T>(result: Result<T, VersionError>, hide: &Path) -> String {
    let Err(e) = result else { panic!("it was taken") };
    let text = e.to_string().replace(&hide.canonicalize().unwrap().display().to_string(), "[tmp]");
    let text = text.replace(&hide.display().to_string(), "[tmp]");
    assert!(text.contains("\n  why: ") && text.contains("\n  next: "), "not three parts: {text}");
    text
}

fn small(checksum: Checksum) -> WriteOptions {
    WriteOptions { checksum, max_shard: 300 }
}

/// Version 1 (full) and 2 (delta) of a model in `dir`, and what they hold.
fn two_versions(dir: &Path, encoding: Encoding) -> (Vec<Tensor>, Vec<Tensor>) {
    let one = model(1);
    let two = trained(&one, 2, 0.1);
    let options = small(Checksum::Sha256);
    let (a, b) = (checkpoint(&one), checkpoint(&two));
    write_full(&a, &Beside::default(), dir, Version(1), &options).unwrap();
    write_delta(&a, &b, dir, Version(2), Version(1), encoding, &options).unwrap();
    (sorted(one), sorted(two))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    names(folder).into_iter().map(|n| (n.clone(), std::fs::read(folder.join(n)).unwrap())).collect()
}

fn edit_index(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join(INDEX);
    let mut index = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut index);
    std::fs::write(path, serde_json::to_vec(&index).unwrap()).unwrap();
}

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
    insta::assert_snapshot!(refused(
        load(&data("delta/blake3/weight_v000001"), base(&held, None), None),
        &data("delta")
    ));
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
                    let place = |c: &Checkpoint| c.get(name).unwrap().data.as_ptr();
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
    assert_eq!(made.get(q).unwrap().data.to_vec(), two[at].3);
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
    for encoding in [Encoding::Xor, Encoding::Overwrite] {
        let tmp = tmp();
        let (one, two) = two_versions(tmp.path(), encoding);
        let held = checkpoint(&one);
        for (version, right) in [("weight_v000001", &one), ("weight_v000002", &two)] {
            let folder = tmp.path().join(version);
            assert!(!refused_or_right(&folder, &held, right, "untouched"));
            for (name, bytes) in files(&folder) {
                let path = folder.join(&name);
                let mut noticed = 0;
                for (i, byte) in bytes.iter().enumerate() {
                    let mut bad = bytes.clone();
                    for flip in [1, 0x20, 0xff] {
                        bad[i] = byte ^ flip;
                        std::fs::write(&path, &bad).unwrap();
                        noticed += usize::from(refused_or_right(&folder, &held, right, &format!("{name} {i} {flip}")));
                    }
                }
                // Most of it matters: spaces and the rest of JSON's freedom are little.
                assert!(noticed * 2 > bytes.len() * 3, "{name}: {noticed} of {}", bytes.len() * 3);
                for len in (0..bytes.len()).step_by(7) {
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
    let norm = held.get("model.norm.weight").unwrap().data.to_vec();
    let mut raw = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    raw.extend(&(1u32 | (1 << 1) | ((norm.len() as u32) << 3)).to_le_bytes()[..3]);
    raw.push(0xff);
    let flipped: Vec<u8> = norm.iter().map(|b| !b).collect();
    let good = by_hand(tmp.path(), "xor", "model.norm.weight", &raw, &Checksum::Adler32.of(&flipped));
    let made = load(&good, base(&held, Some(1)), None).unwrap();
    assert_eq!(made.checkpoint.get("model.norm.weight").unwrap().data.to_vec(), flipped);

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

#[test]
fn nothing_is_replaced_and_nothing_impossible_is_written() {
    let tmp = tmp();
    let dir = tmp.path().join("published");
    let (one, two) = two_versions(&dir, Encoding::Xor);
    let (a, b) = (checkpoint(&one), checkpoint(&two));
    let before = files(&dir.join("weight_v000002"));
    let options = WriteOptions::default();
    let full = |c: &Checkpoint, v: u64| write_full(c, &Beside::default(), &dir, Version(v), &options);
    let delta = |a: &Checkpoint, b: &Checkpoint, v: u64, base: u64| {
        write_delta(a, b, &dir, Version(v), Version(base), Encoding::Xor, &options)
    };
    let edited = |edit: &dyn Fn(&mut Tensor)| {
        let mut all = two.clone();
        edit(&mut all[0]);
        checkpoint(&all)
    };
    let mut texts = vec![refused(full(&b, 2), tmp.path()), refused(delta(&a, &b, 2, 1), tmp.path())];
    texts.push(refused(delta(&a, &b, 3, 3), tmp.path()));
    texts.push(refused(delta(&a, &edited(&|t| t.0 = "model.e".into()), 3, 2), tmp.path()));
    texts.push(refused(delta(&a, &edited(&|t| t.1 = Dtype::F16), 3, 2), tmp.path()));
    texts.push(refused(full(&edited(&|t| t.0 = "w@base".into()), 3), tmp.path()));
    insta::assert_snapshot!(texts.join("\n\n"));
    assert!(files(&dir.join("weight_v000002")) == before);
    assert_eq!(names(&dir), ["weight_v000001", "weight_v000002"]);
    // Leftovers of any version are removed by the next, those of others are not.
    for name in [".weight_v000009.patchhost-abcdef", ".weight_v000003.patchhost-abcdef", ".other.patchhost-abcdef"] {
        std::fs::create_dir(dir.join(name)).unwrap();
    }
    assert_eq!(delta(&a, &b, 3, 1).unwrap().leftovers, 2);
    assert_eq!(names(&dir), [".other.patchhost-abcdef", "weight_v000001", "weight_v000002", "weight_v000003"]);
}

/// The model of a version in the test below: the same in the writer and in the reader.
fn large(version: u64) -> Checkpoint {
    let mut rng = StdRng::seed_from_u64(9);
    let tensors = (0..40).map(|i| {
        let mut bytes: Vec<u8> = (0..20_000).map(|_| rng.random()).collect();
        // Some tensors never change.
        if i % 4 != 0 {
            bytes.iter_mut().step_by(3).for_each(|b| *b = b.wrapping_add(version as u8));
        }
        (format!("w{i:02}"), Dtype::BF16, vec![100, 100], bytes)
    });
    checkpoint(&tensors.collect::<Vec<_>>())
}

/// Not a test of its own: the process that the next one kills.
#[test]
#[ignore = "run by killed_at_any_moment_a_version_is_whole_or_not_there"]
fn write_versions_until_killed() {
    let Ok(dir) = std::env::var("PATCHHOST_TEST_VERSIONS") else { return };
    let dir = Path::new(&dir);
    let last = names(dir).iter().filter_map(|n| Version::of_folder(n)).max();
    // A checksum that SGLang knows: run by hand, this makes folders to try its `/pull_weights` with.
    let options = WriteOptions { max_shard: 60_000, checksum: Checksum::Xxh3 };
    let mut next = last.map_or(1, |v| v.0 + 1);
    loop {
        let now = large(next);
        if next % 10 == 1 {
            write_full(&now, &Beside::default(), dir, Version(next), &options).unwrap();
        } else {
            let encoding = if next % 2 == 0 { Encoding::Xor } else { Encoding::Overwrite };
            write_delta(&large(next - 1), &now, dir, Version(next), Version(next - 1), encoding, &options).unwrap();
        }
        next += 1;
    }
}

#[test]
fn killed_at_any_moment_a_version_is_whole_or_not_there() {
    let tmp = tmp();
    let dir = tmp.path();
    let newest = || names(dir).iter().filter_map(|n| Version::of_folder(n)).max();
    let mut rng = StdRng::seed_from_u64(4);
    let mut halves = 0;
    for round in 0..60 {
        if round >= 12 && halves >= 3 {
            break;
        }
        let before = newest();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "delta::write_versions_until_killed", "--ignored"])
            .env("PATCHHOST_TEST_VERSIONS", dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // At least one version more, however slow the disk is, and then at any moment.
        while newest() == before {
            assert!(child.try_wait().unwrap().is_none(), "the writer ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_micros(rng.random_range(0..120_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        halves += usize::from(names(dir).iter().any(|n| n.starts_with('.')));
        let newest = newest().unwrap();
        // Whatever has the name of a version is one.
        let loaded = load(dir, None, None).unwrap();
        assert_eq!(loaded.version, Some(newest));
        assert!(tensors(&loaded.checkpoint) == tensors(&large(newest.0)));
        assert!(loaded.skipped.iter().all(|s| s.name.starts_with('.')), "{:?}", loaded.skipped);
    }
    assert!(halves >= 3, "the writer was hit in the middle {halves} times only");
    write_full(&large(0), &Beside::default(), dir, Version(newest().unwrap().0 + 1), &WriteOptions::default()).unwrap();
    assert!(names(dir).iter().all(|n| n.starts_with("weight_v")), "{:?}", names(dir));
}
