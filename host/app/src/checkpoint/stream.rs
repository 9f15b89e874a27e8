//! Writing one file piece by piece, at offsets that are known beforehand.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::write::WriteError;
use crate::base::hex;

type Result<T> = std::result::Result<T, WriteError>;

/// The error of doing something to `path`.
pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> WriteError + '_ {
    move |source| WriteError::Io { path: path.display().to_string(), source }
}

/// Bytes handled at once where data is only copied or hashed.
pub(crate) const CHUNK: usize = 8 << 20;

/// A file that is being written.
pub(crate) struct StreamFile {
    file: File,
    path: PathBuf,
    at: u64,
}

impl StreamFile {
    /// Makes the file, which must not exist, with its final length.
    pub fn create(path: &Path, len: u64) -> Result<Self> {
        let file = File::options().write(true).create_new(true).open(path).map_err(io(path))?;
        file.set_len(len).map_err(io(path))?;
        Ok(Self { file, path: path.to_path_buf(), at: 0 })
    }

    /// Writes `bytes` at `offset`.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.at != offset {
            self.file.seek(SeekFrom::Start(offset)).map_err(io(&self.path))?;
        }
        self.file.write_all(bytes).map_err(io(&self.path))?;
        self.at = offset + bytes.len() as u64;
        Ok(())
    }

    /// Waits until everything is on the disk.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(io(&self.path))
    }
}

/// Writes a small file and waits until it is on the disk.
pub(crate) fn write_small(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = StreamFile::create(path, bytes.len() as u64)?;
    file.write_at(0, bytes)?;
    file.finish()
}

/// SHA-256 of a file, as 64 lower-case hex digits.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    use std::io::Read;
    let mut file = patchhost_runtime::files::open(path).map_err(io(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(io(path))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    Ok(hex(&hasher.finalize()))
}

/// Makes names in a folder durable, where the system can.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder).and_then(|f| f.sync_all()).map_err(io(folder))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}
