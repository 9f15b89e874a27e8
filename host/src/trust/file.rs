//! Files that several programs write: read bounded, written whole or not at all, one writer at a time.

use super::TrustError;
use crate::abi::text::clean;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Largest file that is read.
const MOST_BYTES: u64 = 4 << 20;
/// How long another writer is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(5);

/// `lock file `x``.
pub(super) fn shown(kind: &str, path: &Path) -> String {
    format!("{kind} `{}`", clean(&path.display().to_string(), 200))
}

/// The text of a file; none if there is no such file. A folder, a pipe or a device is refused unread.
pub(super) fn read(path: &Path, kind: &str, next: &str) -> Result<Option<String>, TrustError> {
    let bad = |why: &str| TrustError::usage(shown(kind, path), why, next);
    let io = |e: &std::io::Error| TrustError::io(shown(kind, path), e, next);
    match std::fs::metadata(path) {
        // A link to nowhere is not "no file": somebody meant one.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.symlink_metadata().is_err() => return Ok(None),
        Err(e) => return Err(io(&e)),
        Ok(data) if !data.is_file() => return Err(bad("it is not a file")),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes)).map_err(|e| io(&e))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(bad(&format!("it has more than {MOST_BYTES} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|e| bad(&format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to())))
}

/// The same for files that are only read, where the error need not say what else to do.
pub(crate) fn read_small(path: &Path, kind: &str) -> Result<Option<String>, TrustError> {
    read(path, kind, "give a file that can be read")
}

/// The right to write a file, until it is dropped. Held by a lock on a file beside it, since the file itself is replaced.
pub(super) struct Guard {
    _lock: File,
}

impl Guard {
    /// Waits until no other program writes `path`. Nothing but a plain, writable file, or none at all, can be written.
    pub(super) fn take(path: &Path, kind: &str) -> Result<Self, TrustError> {
        let next = "name a plain file that can be written in a folder that can be written";
        if let Ok(data) = path.symlink_metadata() {
            if data.is_symlink() {
                let why = "it is a symbolic link: writing would replace the link, not the file behind it";
                return Err(TrustError::usage(shown(kind, path), why, "name the file itself"));
            }
            if !data.is_file() {
                return Err(TrustError::usage(shown(kind, path), "it is not a file", next));
            }
            if data.permissions().readonly() {
                return Err(TrustError::usage(
                    shown(kind, path),
                    "it is read-only",
                    "make it writable if it may change",
                ));
            }
        }
        let mut beside = OsString::from(path);
        beside.push(".lock");
        let beside = PathBuf::from(beside);
        let what = || shown(kind, path);
        if beside.symlink_metadata().is_ok_and(|data| !data.is_file()) {
            let why = format!("`{}` beside it is not a plain file", clean(&beside.display().to_string(), 200));
            return Err(TrustError::usage(what(), why, "remove it"));
        }
        let open = File::options().create(true).truncate(false).write(true).open(&beside);
        let lock = open.map_err(|e| TrustError::io(what(), &e, next))?;
        let start = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { _lock: lock }),
                Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    let why = format!("another program has been writing it for {} s", PATIENCE.as_secs());
                    return Err(TrustError::refused(what(), why, "end that program, then try again"));
                }
                Err(TryLockError::Error(e)) => return Err(TrustError::io(what(), &e, next)),
            }
        }
    }
}

/// Replaces a file: a new one beside it, on the disk, then renamed over it. The old one is there until the new one is.
pub(super) fn write(path: &Path, kind: &str, text: &str) -> Result<(), TrustError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let replace = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".patchhost-").suffix(".new").tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // A file that others read stays readable; tempfile's own mode is 0600.
            let mode = std::fs::metadata(path).map_or(0o644, |data| data.permissions().mode() & 0o777);
            file.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        }
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        File::open(folder)?.sync_all()
    };
    let next = "name a file in a folder that exists and can be written; the file is as it was";
    replace().map_err(|e| TrustError::io(shown(kind, path), &e, next))
}
