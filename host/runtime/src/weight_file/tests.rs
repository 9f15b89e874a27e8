//! Files that change while they are read.
#![allow(clippy::unwrap_used)]

use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

use safetensors::tensor::TensorView;

use super::*;
use crate::bytes::TensorData;
use crate::checkpoint::Checkpoint;

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("patchhost-weight-file-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Two tensors, the larger of several blocks, of values that `seed` changes.
    fn write(&self, name: &str, seed: u8) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes(seed)).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const LARGE: usize = 2 * BLOCK + 77;

fn view(data: &[u8]) -> TensorView<'_> {
    TensorView::new(safetensors::Dtype::U8, vec![data.len()], data).unwrap()
}

fn bytes(seed: u8) -> Vec<u8> {
    let data = |len: usize| (0..len).map(|i| (i % 251) as u8 ^ seed).collect::<Vec<u8>>();
    let (large, small) = (data(LARGE), data(10));
    safetensors::serialize([("large", view(&large)), ("small", view(&small))], None).unwrap()
}

/// Changes the file in place. With `back`, its modification time is what it was.
fn rewrite(path: &Path, bytes: &[u8], back: bool) {
    let times = std::fs::metadata(path).unwrap().modified().unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(bytes).unwrap();
    if back {
        file.set_modified(times).unwrap();
    }
}

fn data(file: &Checkpoint, name: &str) -> TensorData {
    file.get(name).unwrap().data.clone()
}

#[track_caller]
fn refused(data: &TensorData) -> String {
    let error = data.load().unwrap_err();
    assert!(matches!(error, RuntimeError::Checkpoint(_)), "{error}");
    error.to_string()
}

#[test]
fn a_file_is_read_as_its_bytes_in_memory_are() {
    let folder = Folder::new("read");
    let file = Checkpoint::open(&folder.write("x.safetensors", 3)).unwrap();
    let memory = Checkpoint::from_shared("x", Arc::new(bytes(3))).unwrap();
    assert_eq!(file.file_bytes(), memory.file_bytes());
    for range in [0..LARGE, 0..1, 1..BLOCK, BLOCK..2 * BLOCK, BLOCK - 3..2 * BLOCK + 5, LARGE - 1..LARGE, 7..7] {
        let [a, b] = [&file, &memory].map(|c| data(c, "large").slice(range.clone()).unwrap());
        assert_eq!(a.load().unwrap()[..], b.load().unwrap()[..], "{range:?}");
        let parts: Vec<u8> = a.parts(1000).flat_map(|p| p.unwrap().1.to_vec()).collect();
        assert_eq!(parts, b.load().unwrap()[..], "{range:?}");
    }
    assert!(data(&file, "large").slice(0..LARGE + 1).is_none());
}

#[test]
fn a_file_that_shrinks_or_is_written_to_is_refused() {
    let folder = Folder::new("changed");
    for read_before in [true, false] {
        let path = folder.write("x.safetensors", 1);
        let file = Checkpoint::open(&path).unwrap();
        if read_before {
            data(&file, "large").load().unwrap();
        }
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(BLOCK as u64).unwrap();
        let text = refused(&data(&file, "large"));
        assert!(text.contains("when it was opened"), "{text}");
        std::fs::write(&path, bytes(1)).unwrap();
        let text = refused(&data(&file, "small"));
        assert!(text.contains("modification time"), "the same bytes, written again: {text}");
    }
}

#[test]
fn other_bytes_under_the_same_size_and_time_are_refused() {
    let folder = Folder::new("digest");
    let path = folder.write("x.safetensors", 1);
    let (known, unknown) = (Checkpoint::open(&path).unwrap(), Checkpoint::open(&path).unwrap());
    let tail = data(&known, "large").slice(2 * BLOCK..LARGE).unwrap();
    tail.load().unwrap();
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    rewrite(&path, &bytes(2), true);
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before, "the test changes what it means to");
    assert!(refused(&tail).contains("digest"));
    // What was not read before has no digest; the inode's own time tells.
    assert!(refused(&data(&known, "large")).contains("change time"));
    assert!(refused(&data(&unknown, "small")).contains("change time"));
    // The right bytes again: what was read before is proved, nothing else.
    rewrite(&path, &bytes(1), true);
    tail.load().unwrap();
    assert!(refused(&data(&unknown, "small")).contains("change time"));
    // A file that is opened now is this file.
    Checkpoint::open(&path).unwrap().get("large").unwrap().data.load().unwrap();
}

#[test]
fn a_file_that_was_replaced_or_removed_is_still_the_one_that_was_opened() {
    let folder = Folder::new("renamed");
    let path = folder.write("x.safetensors", 1);
    let file = Checkpoint::open(&path).unwrap();
    let loaded = data(&file, "large").load().unwrap().to_vec();
    let other = folder.write("y.safetensors", 2);
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(data(&file, "large").load().unwrap()[..], loaded[..]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(data(&file, "large").load().unwrap()[..], loaded[..]);
}

#[test]
fn only_regular_files_are_opened() {
    let folder = Folder::new("kinds");
    let text = Checkpoint::open(&folder.0.join("none")).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("none"), "{text}");
    #[cfg(target_os = "linux")]
    {
        let error = WeightFile::open(Path::new("/dev/zero")).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("only plain files"), "{error}");
    }
}

/// Whoever reads while another writes gets one of the files that were complete, or a refusal.
#[test]
fn a_reader_beside_a_writer_never_mixes() {
    let folder = Folder::new("beside");
    let path = folder.write("x.safetensors", 1);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut taken, mut refusals) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut seed = 1u8;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                seed ^= 3;
                rewrite(&path, &bytes(seed), seed == 1);
                std::thread::sleep(Duration::from_millis(u64::from(seed) * 30));
            }
        });
        for _ in 0..60 {
            let read = || {
                let file = Checkpoint::open(&path)?;
                Ok::<_, RuntimeError>([data(&file, "large").load()?.to_vec(), data(&file, "small").load()?.to_vec()])
            };
            match read() {
                Ok([large, small]) => {
                    taken += 1;
                    let seed = small[0];
                    assert!(seed == 1 || seed == 2, "{seed}");
                    assert!(large.iter().enumerate().all(|(i, b)| *b == (i % 251) as u8 ^ seed), "two files in one");
                }
                Err(_) => refusals += 1,
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(taken > 0 && taken + refusals == 60, "{taken} {refusals}");
}
