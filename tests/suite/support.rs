//! What the tests share: running the binary, reading and writing small safetensors files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use patchhost::checkpoint::write::{Out, safetensors};
use patchhost_runtime::checkpoint::Checkpoint;
use safetensors::tensor::Dtype;

pub fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}

/// The program under test.
pub fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_patchhost-under-test").into()
}

/// A guest that misbehaves.
pub fn evil(name: &str) -> String {
    repo().join("guests/evil").join(format!("{name}.wasm")).display().to_string()
}

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.stdout, self.stderr))
    }

    #[track_caller]
    pub fn good(self) -> Self {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts the exit code and that the error has three parts, and gives the error without the folder `hide`.
    #[track_caller]
    pub fn refused(&self, code: i32, hide: &Path) -> String {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        let text = self.stderr.replace(&hide.display().to_string(), "[tmp]");
        let text = text.replace(&repo().display().to_string(), "[repo]");
        assert!(text.contains("\n  why: ") && text.contains("\n  next: "), "not three parts: {text}");
        hide_digests(text.trim_end())
    }
}

/// Digests of guests change whenever a guest is rebuilt; texts must not.
fn hide_digests(text: &str) -> String {
    let hex = |word: &str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    text.split_inclusive(|c: char| !c.is_ascii_alphanumeric())
        .map(|word| {
            let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            if hex(bare) { word.replace(bare, "[digest]") } else { word.to_string() }
        })
        .collect()
}

pub fn patchhost<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    let out = Command::new(env!("CARGO_BIN_EXE_patchhost-under-test"))
        .args(args)
        // Not the cache of whoever runs the tests.
        .env("PATCHHOST_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("aot"))
        .output()
        .unwrap();
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    Ran { code: out.status.code().unwrap_or(-1), stdout: text(out.stdout), stderr: text(out.stderr) }
}

pub fn tmp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
}

pub fn read_f32(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

pub type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

pub fn write(path: &Path, tensors: &[Tensor]) {
    let out: Vec<Out<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| Out {
            name: name.clone(),
            dtype: *dtype,
            shape: shape.clone(),
            data: Cow::Borrowed(data),
        })
        .collect();
    safetensors(path, &out, HashMap::new()).unwrap();
}

pub fn read(path: &Path) -> Vec<Tensor> {
    let checkpoint = Checkpoint::open(path).unwrap();
    checkpoint.tensors().map(|t| (t.name.clone(), t.stored, t.shape.clone(), t.data.load().unwrap().to_vec())).collect()
}

/// A file with one f32 matrix of heavy-tailed values.
pub fn matrix_file(folder: &Path, rows: usize, cols: usize) -> PathBuf {
    let path = folder.join("in.safetensors");
    write(&path, &[("w".into(), Dtype::F32, vec![rows, cols], f32_bytes(&normal(rows * cols, 1)))]);
    path
}

/// Pseudo-random values around zero, the same for the same seed.
pub fn normal(n: usize, seed: u64) -> Vec<f32> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    (0..n).map(|_| (0..6).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 0.03).collect()
}

/// A copy of an oracle model in `folder`, whose tensors and config can then be changed.
pub fn copy_model(name: &str, folder: &Path) -> PathBuf {
    copy_folder(&data("oracle").join(name), &folder.join(name))
}

/// Copies the files of a folder.
pub fn copy_folder(from: &Path, to: &Path) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
    to.to_path_buf()
}

/// Changes the tensors of a one-file model.
pub fn edit_tensors(model: &Path, edit: impl FnOnce(&mut Vec<Tensor>)) {
    let path = model.join("model.safetensors");
    let mut tensors = read(&path);
    edit(&mut tensors);
    write(&path, &tensors);
}

/// Changes config.json.
pub fn edit_config(model: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = model.join("config.json");
    let mut config = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, serde_json::to_string(&config).unwrap()).unwrap();
}

/// A file with `input_ids` [n].
pub fn ids_file(folder: &Path, ids: &[i64]) -> PathBuf {
    let path = folder.join("ids.safetensors");
    let bytes = ids.iter().flat_map(|i| i.to_le_bytes()).collect();
    write(&path, &[("input_ids".into(), Dtype::I64, vec![ids.len()], bytes)]);
    path
}
