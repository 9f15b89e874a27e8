//! Files that several programs write: read bounded, written whole or not at all, one writer at a time.

use super::text::clean;
use patchhost_runtime::files;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How the names of files begin that are not whole yet. A program that was killed leaves them.
pub(crate) const TEMPORARY: &str = ".patchhost-";

/// Whose turn it is after a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileErrorKind {
    /// The path, the permissions or the content.
    Usage,
    /// Another program's.
    Refused,
    /// The machine's: a full disk.
    Host,
}

/// A file was not read or not written. Nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("refused: {what}\n  why: {why}\n  next: {next}")]
pub struct FileError {
    pub(crate) kind: FileErrorKind,
    pub(crate) what: String,
    pub(crate) why: String,
    pub(crate) next: String,
}

impl FileError {
    fn new(kind: FileErrorKind, what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { kind, what: what.into(), why: why.into(), next: next.into() }
    }

    fn usage(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(FileErrorKind::Usage, what, why, next)
    }

    fn refused(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(FileErrorKind::Refused, what, why, next)
    }

    /// An error of the operating system: the user's to mend where a path or a permission is wrong.
    pub(crate) fn io(what: impl Into<String>, error: &io::Error, next: impl Into<String>) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::WriteZero => FileErrorKind::Host,
            _ => FileErrorKind::Usage,
        };
        Self::new(kind, what, error.to_string(), next)
    }
}

/// Largest file that is read.
const MOST_BYTES: u64 = 4 << 20;
/// How long another writer is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(5);

/// `lock file `x``.
pub(crate) fn shown(kind: &str, path: &Path) -> String {
    format!("{kind} `{}`", clean(&path.display().to_string(), 200))
}

/// The text of a file; none if there is no such file. A folder, a pipe or a device is refused unread.
pub(crate) fn read(path: &Path, kind: &str, next: &str) -> Result<Option<String>, FileError> {
    let bad = |why: &str| FileError::usage(shown(kind, path), why, next);
    let bytes = match files::read(path, MOST_BYTES) {
        Ok(bytes) => bytes,
        // A link to nowhere is not "no file": somebody meant one.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.symlink_metadata().is_err() => return Ok(None),
        Err(e) => return Err(FileError::io(shown(kind, path), &e, next)),
    };
    String::from_utf8(bytes).map(Some).map_err(|e| bad(&format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to())))
}

/// The same for files that are only read, where the error need not say what else to do.
pub fn read_small(path: &Path, kind: &str) -> Result<Option<String>, FileError> {
    read(path, kind, "give a file that can be read")
}

/// The right to write a file, until it is dropped. Held by a lock on a file beside it, since the file itself is replaced.
pub(crate) struct Guard {
    _lock: File,
}

impl Guard {
    /// Waits until no other program writes `path`. Nothing but a plain, writable file, or none at all, can be written.
    pub(crate) fn take(path: &Path, kind: &str) -> Result<Self, FileError> {
        let next = "name a plain file that can be written in a folder that can be written";
        if let Ok(data) = path.symlink_metadata() {
            if data.is_symlink() {
                let why = "it is a symbolic link: writing would replace the link, not the file behind it";
                return Err(FileError::usage(shown(kind, path), why, "name the file itself"));
            }
            if !data.is_file() {
                return Err(FileError::usage(shown(kind, path), "it is not a file", next));
            }
            if data.permissions().readonly() {
                return Err(FileError::usage(
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
            return Err(FileError::usage(what(), why, "remove it"));
        }
        let open = File::options().create(true).truncate(false).write(true).open(&beside);
        let lock = open.map_err(|e| FileError::io(what(), &e, next))?;
        let start = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { _lock: lock }),
                Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    let why = format!("another program has been writing it for {} s", PATIENCE.as_secs());
                    return Err(FileError::refused(what(), why, "end that program, then try again"));
                }
                Err(TryLockError::Error(e)) => return Err(FileError::io(what(), &e, next)),
            }
        }
    }
}

/// Who may read a file that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// This user only.
    Private,
    /// Everybody, as files that people make.
    Shared,
    /// As the file that is replaced has it; everybody, where there is none.
    Kept,
}

/// Writes a file that appears whole or not at all: a new one beside it, filled by `fill`, on the disk, then renamed over
/// the old one, which is there until the new one is. A device or a pipe is written to as it is.
pub fn write_whole(path: &Path, access: Access, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    match open_stream(path)? {
        Some(mut stream) => fill(&mut stream),
        None => Whole::make(path, access, true, fill)?.replace(),
    }
}

/// The same without waiting for the disk: for what can be made again.
pub fn write_whole_unsynced(
    path: &Path,
    access: Access,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    Whole::make(path, access, false, fill)?.replace()
}

/// A file that is written and not in its place yet. Dropped, it is gone.
pub(crate) struct Whole {
    file: tempfile::NamedTempFile,
    path: PathBuf,
    synced: bool,
}

impl Whole {
    /// Writes the file beside its place, and makes sure that it is on the disk where `synced` says so.
    pub(crate) fn make(
        path: &Path,
        access: Access,
        synced: bool,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<Self> {
        let folder = folder_of(path);
        // Asked first: the error of making the temporary file would name that file, which nobody knows.
        std::fs::read_dir(folder)?;
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
        fill(file.as_file_mut())?;
        if synced {
            file.as_file().sync_all()?;
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = match access {
                Access::Private => 0o600,
                Access::Shared => 0o644,
                Access::Kept => std::fs::metadata(path).map_or(0o644, |data| data.permissions().mode() & 0o777),
            };
            file.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        }
        Ok(Self { file, path: path.to_owned(), synced })
    }

    /// Puts it in the place of what is there.
    pub(crate) fn replace(self) -> io::Result<()> {
        self.file.persist(&self.path).map_err(|e| e.error)?;
        named(&self.path, self.synced)
    }

    /// Puts it where nothing is; where something is, that stays and this is an error.
    pub(crate) fn put(self) -> io::Result<()> {
        self.file.persist_noclobber(&self.path).map_err(|e| e.error)?;
        named(&self.path, self.synced)
    }
}

/// Makes the name of a new file durable.
fn named(path: &Path, synced: bool) -> io::Result<()> {
    match cfg!(unix) && synced {
        true => File::open(folder_of(path))?.sync_all(),
        false => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What can be written to and not replaced: `/dev/stdout`, `/dev/null`, a pipe. None: a file, or nothing yet.
fn open_stream(path: &Path) -> io::Result<Option<File>> {
    // `/dev/stdout` is a link, to a file where the output goes to one: the link must stay.
    let link = path.starts_with("/dev") && path.is_symlink();
    match std::fs::metadata(path) {
        Ok(data) if !data.is_dir() && (link || !data.is_file()) => File::options().write(true).open(path).map(Some),
        _ => Ok(None),
    }
}

/// Replaces a text file that others read.
pub(crate) fn write(path: &Path, kind: &str, text: &str) -> Result<(), FileError> {
    let next = "name a file in a folder that exists and can be written; the file is as it was";
    write_whole(path, Access::Kept, |file| file.write_all(text.as_bytes()))
        .map_err(|e| FileError::io(shown(kind, path), &e, next))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_fails_half_way_leaves_the_old_file_and_nothing_beside_it() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("x");
        std::fs::write(&path, "old").unwrap();
        let half = |file: &mut File| file.write_all(b"ne").and(Err(io::ErrorKind::StorageFull.into()));
        assert!(write_whole(&path, Access::Shared, half).is_err());
        assert!(Whole::make(&path, Access::Private, true, half).is_err());
        assert_eq!((std::fs::read(&path).unwrap(), names(tmp.path())), (b"old".to_vec(), vec!["x".to_owned()]));
    }

    #[test]
    fn a_file_that_must_be_new_takes_nobodys_place() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("x");
        let make =
            |text: &'static str| Whole::make(&path, Access::Shared, true, |f| f.write_all(text.as_bytes())).unwrap();
        make("first").put().unwrap();
        assert_eq!(make("second").put().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!((std::fs::read(&path).unwrap(), names(tmp.path())), (b"first".to_vec(), vec!["x".to_owned()]));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_is_written_to_and_stays_a_device() {
        let write = |path: &str| write_whole(Path::new(path), Access::Shared, |file| file.write_all(b"x"));
        write("/dev/null").unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
        assert_eq!(write("/dev/full").unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
