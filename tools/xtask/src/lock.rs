//! `guests/guests.lock`: which bytes the committed guests have, and what they were made from and with.

use crate::compile::Built;
use crate::source::sha256;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Version of the file's own layout.
const VERSION: u32 = 1;

/// The whole file.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    version: u32,
    /// Compiler, linker and component encoder with their versions.
    pub toolchain: String,
    /// Digest of the sources, see `source.rs`.
    pub source: String,
    /// The patches that people use.
    pub guest: Vec<Entry>,
    /// The patches that misbehave, for tests.
    pub evil: Vec<Entry>,
}

/// One built guest.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name of the patch.
    pub name: String,
    /// File, relative to `guests/`.
    pub file: String,
    /// Digest of the file.
    pub sha256: String,
    /// Bytes of the file.
    pub size: u64,
}

impl Lock {
    /// What a build produced.
    pub fn of(toolchain: String, source: String, built: &[Built]) -> Self {
        let of_kind = |evil: bool| built.iter().filter(|b| b.evil == evil).map(Entry::of).collect();
        Self { version: VERSION, toolchain, source, guest: of_kind(false), evil: of_kind(true) }
    }

    /// Reads the committed lock.
    pub fn read(root: &Path) -> Result<Self> {
        let path = path(root);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}; `cargo xtask guests` writes it", path.display()))?;
        let lock: Self = toml::from_str(&text).with_context(|| format!("{} is not a guests lock", path.display()))?;
        if lock.version != VERSION {
            bail!(
                "{} has version {}, this program knows {VERSION}; build it from the same commit",
                path.display(),
                lock.version
            );
        }
        Ok(lock)
    }

    /// Writes it.
    pub fn write(&self, root: &Path) -> Result<()> {
        let path = path(root);
        let text = toml::to_string(self).context("cannot write the lock as TOML")?;
        let head = "# Written by `cargo xtask guests`; `cargo xtask guests --check` proves it.\n";
        std::fs::write(&path, format!("{head}{text}")).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Every guest, evil ones last.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.guest.iter().chain(&self.evil)
    }
}

impl Entry {
    fn of(b: &Built) -> Self {
        Self { name: b.name.clone(), file: b.file(), sha256: sha256(&b.bytes), size: b.bytes.len() as u64 }
    }
}

fn path(root: &Path) -> PathBuf {
    root.join("guests/guests.lock")
}
