//! Files and folders that are one user's alone.

use rand::RngCore;
#[cfg(target_os = "linux")]
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// Bytes of the secret.
pub(super) const SECRET_BYTES: usize = 32;
/// Name of the file with the secret.
const SECRET_FILE: &str = "key";

/// The secret of the folder; made at first use.
pub(super) fn secret(folder: &Path) -> io::Result<[u8; SECRET_BYTES]> {
    let path = &folder.join(SECRET_FILE);
    let read = || {
        let bytes = read_private(path, SECRET_BYTES as u64)?;
        <[u8; SECRET_BYTES]>::try_from(bytes)
            .map_err(|bytes| io::Error::other(format!("`{SECRET_FILE}` has {} bytes, not {SECRET_BYTES}", bytes.len())))
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut secret = [0; SECRET_BYTES];
            rand::rng().fill_bytes(&mut secret);
            let mut file = tempfile::Builder::new().prefix(crate::base::file::TEMPORARY).tempfile_in(folder)?;
            file.write_all(&secret)?;
            match file.persist_noclobber(path) {
                // Read back, so that a folder that does not keep modes is noticed here.
                Ok(_) => read(),
                // Another process was first.
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => read(),
                Err(error) => Err(error.error),
            }
        }
        other => other,
    }
}

/// Makes the folder if it is not there, and checks that it is a folder of this user's alone, not a link to one.
#[cfg(target_os = "linux")]
pub(super) fn private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if let Err(error) = std::fs::symlink_metadata(path) {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    }
    let meta = std::fs::symlink_metadata(path)?;
    match meta.is_dir() {
        true => check_private(&meta, "the folder"),
        false => Err(io::Error::other("it is not a folder (links are not followed)")),
    }
}

/// Reads a plain file of this user's alone. Links are not followed, and what is checked is what is read.
#[cfg(target_os = "linux")]
pub(super) fn read_private(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    check_private(&meta, "the file")?;
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len().min(limit)).unwrap_or(0));
    file.take(limit + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(io::Error::other(format!("it has more than {limit} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(target_os = "linux")]
fn check_private(meta: &std::fs::Metadata, what: &str) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let (owner, user) = (meta.uid(), rustix::process::geteuid().as_raw());
    if owner != user {
        return Err(io::Error::other(format!("{what} belongs to user {owner}, this is user {user}")));
    }
    match meta.mode() & 0o077 {
        0 => Ok(()),
        _ => Err(io::Error::other(format!(
            "{what} has mode {:o}; others must have no access to it",
            meta.mode() & 0o7777
        ))),
    }
}

/// Without owners and modes there is nobody whose code this could be known to be.
#[cfg(not(target_os = "linux"))]
pub(super) fn private_folder(_: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn read_private(_: &Path, _: u64) -> io::Result<Vec<u8>> {
    Err(io::ErrorKind::Unsupported.into())
}
