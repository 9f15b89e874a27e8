//! What an entry's machine code depends on.

use super::MAGIC;
use sha2::{Digest as _, Sha256};
use std::hash::{Hash, Hasher};
use std::sync::LazyLock;
use std::time::SystemTime;
use wasmtime::Engine;

/// Digest of everything that machine code depends on.
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn new(engine: &Engine, component: &[u8; 32]) -> Self {
        let mut hasher = Sha256Hasher(Sha256::new());
        (MAGIC, component, &*BUILD, std::env::consts::ARCH, cpu_features()).hash(&mut hasher);
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Self(hasher.0.finalize().into())
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key as 64 hex digits: the name of its file.
    pub(super) fn name(&self) -> String {
        crate::base::hex(&self.0)
    }
}

/// `Hash` into SHA-256: what is hashed carries its own lengths.
struct Sha256Hasher(Sha256);

impl Hasher for Sha256Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Never asked for: the digest is taken instead.
    fn finish(&self) -> u64 {
        0
    }
}

/// Asked once: the executable of a process stays what it was, even if its file is replaced.
static BUILD: LazyLock<String> = LazyLock::new(build);

/// Which build of patchhost this is. Hashing the executable would cost as much as compiling a small component.
fn build() -> String {
    let stat = std::env::current_exe().and_then(std::fs::metadata);
    let executable = stat.map(|meta| {
        let modified = meta.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        (meta.len(), modified.map(|time| time.as_nanos()), inode(&meta))
    });
    format!("{} {executable:?}", env!("CARGO_PKG_VERSION"))
}

/// What the code generator could have used. A list of its own, because a home folder can be shared by unlike machines.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! detected {
            ($($name:tt),*) => { [$(($name, std::arch::is_x86_feature_detected!($name))),*] };
        }
        let known = detected![
            "sse3",
            "ssse3",
            "sse4.1",
            "sse4.2",
            "popcnt",
            "lzcnt",
            "bmi1",
            "bmi2",
            "avx",
            "avx2",
            "fma",
            "f16c",
            "cmpxchg16b",
            "avx512f",
            "avx512bw",
            "avx512dq",
            "avx512vl",
            "avx512vbmi",
            "avx512bitalg"
        ];
        known.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
    }
    // Elsewhere wasmtime's own record of the target's features, in its compatibility hash, is all there is.
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

#[cfg(unix)]
fn inode(meta: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(meta)
}

#[cfg(not(unix))]
fn inode(_: &std::fs::Metadata) -> u64 {
    0
}
