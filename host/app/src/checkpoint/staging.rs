//! A folder that appears in one step: written beside its place under a hidden name and renamed. Whatever happens, the
//! place holds what was there before or the whole new folder; what a killed writer left behind is removed by the next.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use super::stream::{io, sync_folder};
use super::write::WriteError;

/// Random characters at the end of the hidden name.
const RANDOM: usize = 6;

/// What stands between the name of the place and the random characters.
const MARK: &str = ".patchhost-";

/// Why no folder was made.
#[derive(Debug)]
pub(crate) enum StagingError {
    /// Another process is writing to the same place, in this hidden folder.
    Busy(PathBuf),
    /// The disk.
    Write(WriteError),
}

impl From<WriteError> for StagingError {
    fn from(e: WriteError) -> Self {
        Self::Write(e)
    }
}

/// The hidden folder. Dropped unpublished, it is removed.
pub struct Staging {
    place: PathBuf,
    parent: PathBuf,
    /// A folder with files is at the place.
    replaces: bool,
    folder: tempfile::TempDir,
    /// Held as long as this process lives: a hidden folder without a lock is the leftover of a killed writer.
    _lock: Option<File>,
    /// Leftovers of killed writers that were removed.
    pub leftovers: usize,
}

impl Staging {
    /// Makes the hidden folder for `place` inside of `parent`, and removes those of writers to the same place that were
    /// killed. With `replaces`, the two change places when published; without, nothing that holds files is replaced.
    pub(crate) fn new(place: PathBuf, parent: PathBuf, replaces: bool) -> Result<Self, StagingError> {
        let mut prefix = OsString::from(".");
        prefix.push(place.file_name().unwrap_or_default());
        prefix.push(MARK);
        let leftovers = clean(&parent, &prefix)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).rand_bytes(RANDOM);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o755));
        }
        let folder = builder.tempdir_in(&parent).map_err(io(&parent))?;
        let lock = File::open(folder.path()).ok().filter(|f| f.try_lock().is_ok());
        Ok(Self { place, parent, replaces, folder, _lock: lock, leftovers })
    }

    /// Where files are written.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Puts the folder in its place, in one step. What was there is removed afterwards.
    pub fn publish(self) -> Result<PathBuf, WriteError> {
        let Self { place, parent, replaces, folder, .. } = self;
        sync_folder(folder.path())?;
        if replaces {
            exchange(folder.path(), &place).map_err(io(&place))?;
            sync_folder(&parent)?;
            // The hidden name is the old model's now; dropping removes it.
            folder.close().map_err(io(&parent))?;
        } else {
            #[cfg(not(unix))]
            let _ = std::fs::remove_dir(&place);
            // Over nothing or an empty folder; fails if somebody has put something there meanwhile.
            std::fs::rename(folder.path(), &place).map_err(io(&place))?;
            let _ = folder.keep();
            sync_folder(&parent)?;
        }
        Ok(place)
    }
}

/// Whether a name is that of a hidden folder.
pub(crate) fn is_hidden(name: &str) -> bool {
    name.starts_with('.') && name.rsplit_once(MARK).is_some_and(|(_, random)| is_random(random.as_bytes()))
}

fn is_random(text: &[u8]) -> bool {
    text.len() == RANDOM && text.iter().all(u8::is_ascii_alphanumeric)
}

/// Whether the writer of a hidden folder is gone. `None`: nobody can tell; some file systems have no locks.
fn abandoned(hidden: &Path) -> Option<bool> {
    match File::open(hidden).ok()?.try_lock() {
        Ok(()) => Some(true),
        Err(TryLockError::WouldBlock) => Some(false),
        Err(TryLockError::Error(_)) => None,
    }
}

/// Removes all hidden folders in `parent` whose writers were killed, of places whose names start with `start`.
pub(crate) fn sweep(parent: &Path, start: &str) -> Result<usize, WriteError> {
    let mut removed = 0;
    for entry in std::fs::read_dir(parent).map_err(io(parent))? {
        let entry = entry.map_err(io(parent))?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|n| is_hidden(n) && n[1..].starts_with(start));
        if ours && entry.file_type().is_ok_and(|t| t.is_dir()) && abandoned(&entry.path()) == Some(true) {
            std::fs::remove_dir_all(entry.path()).map_err(io(&entry.path()))?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn clean(parent: &Path, prefix: &OsString) -> Result<usize, StagingError> {
    let mut removed = 0;
    for entry in std::fs::read_dir(parent).map_err(io(parent))? {
        let entry = entry.map_err(io(parent))?;
        let name = entry.file_name();
        let random = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        if !random.is_some_and(is_random) || !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let path = entry.path();
        match abandoned(&path) {
            Some(true) => {
                std::fs::remove_dir_all(&path).map_err(io(&path))?;
                removed += 1;
            }
            Some(false) => return Err(StagingError::Busy(path)),
            None => {}
        }
    }
    Ok(removed)
}

#[cfg(target_os = "linux")]
fn exchange(new: &Path, place: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, new, CWD, place, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // Some network file systems cannot.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => swap_by_renames(new, place),
        Err(e) => Err(e.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(new: &Path, place: &Path) -> std::io::Result<()> {
    swap_by_renames(new, place)
}

/// Three renames. Killed between the first two, the place is empty and both models stand beside it, whole.
fn swap_by_renames(new: &Path, place: &Path) -> std::io::Result<()> {
    let mut aside = new.as_os_str().to_owned();
    aside.push("-old");
    std::fs::rename(place, &aside)?;
    if let Err(e) = std::fs::rename(new, place) {
        std::fs::rename(&aside, place)?;
        return Err(e);
    }
    std::fs::rename(&aside, new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn two_folders_change_places() {
        for swap in [exchange, swap_by_renames] {
            let tmp = tempfile::tempdir().unwrap();
            let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
            for path in [&a, &b] {
                std::fs::create_dir(path).unwrap();
                std::fs::write(path.join("name"), path.file_name().unwrap().as_encoded_bytes()).unwrap();
            }
            swap(&a, &b).unwrap();
            assert_eq!(std::fs::read(a.join("name")).unwrap(), b"b");
            assert_eq!(std::fs::read(b.join("name")).unwrap(), b"a");
            assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 2);
        }
    }
}
