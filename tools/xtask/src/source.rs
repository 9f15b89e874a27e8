//! One digest over everything that the guests are made from.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files of `guests/` that do not decide any byte: what is built, the lock, and words for people.
const NOT_SOURCE: [&str; 4] = ["wasm", "lock", "md", "gitignore"];

/// sha256 over the names and contents of all sources in `guests/` and `wit/`, sorted by name. `guests/Cargo.lock` is
/// one of them; names are relative to the repository, with `/` on every system.
pub fn digest(root: &Path) -> Result<String> {
    let mut files = BTreeMap::new();
    collect(root, Path::new("guests"), &mut files)?;
    collect(root, Path::new("wit"), &mut files)?;
    let mut hash = Sha256::new();
    for (name, path) in &files {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    Ok(hex(&hash.finalize()))
}

/// sha256 of one file's bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let path = root.join(folder);
    let entries = std::fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
        let name = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                collect(root, &name, files)?;
            }
            continue;
        }
        let text = name.to_string_lossy().replace('\\', "/");
        let ending = text.rsplit('.').next().unwrap_or_default();
        // The statement about the built guests holds this very digest.
        if text == "guests/provenance.json" {
            continue;
        }
        if text == "guests/Cargo.lock" || !NOT_SOURCE.contains(&ending) {
            files.insert(text, entry.path());
        }
    }
    Ok(())
}
