//! The folder of an export: written beside its place under a hidden name, and put there in one step. Whatever happens,
//! the place holds what was there before or the whole export.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use super::{Result, io, usage};

/// Random characters at the end of the hidden name.
const RANDOM: usize = 6;

/// A place that an export may take.
#[derive(Debug)]
pub struct Target {
    /// Where the export appears.
    place: PathBuf,
    parent: PathBuf,
    /// A folder with files is there.
    replaces: bool,
}

/// The hidden folder. Dropped unpublished, it is removed.
pub struct Staging {
    target: Target,
    folder: tempfile::TempDir,
    /// Held as long as this process lives: a hidden folder without a lock is the leftover of a killed export.
    _lock: Option<File>,
    /// Leftovers of killed exports that were removed.
    pub leftovers: usize,
}

impl Target {
    /// Checks the place, touching nothing. `model` is the folder that is read.
    pub fn new(out: &Path, model: Option<&Path>, force: bool) -> Result<Self> {
        let shown = out.display();
        let exists = out.symlink_metadata().is_ok();
        let place = if exists {
            out.canonicalize().map_err(io(out))?
        } else {
            let name = out.file_name().ok_or_else(|| {
                usage(format!("OUT `{shown}`"), "it has no name of its own", "give the name of a folder to make")
            })?;
            let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            parent.canonicalize().map_err(io(parent))?.join(name)
        };
        if exists && !place.is_dir() {
            return Err(usage(format!("OUT `{shown}`"), "it is a file", "give the name of a folder to make"));
        }
        if let Some(model) = model {
            let model = model.canonicalize().map_err(io(model))?;
            let why = if place == model {
                "it is MODEL itself"
            } else if place.starts_with(&model) {
                "it lies inside of MODEL"
            } else if model.starts_with(&place) {
                "MODEL lies inside of it"
            } else {
                ""
            };
            if !why.is_empty() {
                return Err(usage(format!("OUT `{shown}`"), why, "export to a folder apart from the model"));
            }
        }
        let Some(parent) = place.parent().map(Path::to_path_buf) else {
            return Err(usage(format!("OUT `{shown}`"), "it is the root folder", "give the name of a folder to make"));
        };
        let replaces = exists && std::fs::read_dir(&place).map_err(io(&place))?.next().is_some();
        if replaces && !force {
            return Err(usage(
                format!("OUT `{shown}`"),
                "it exists and is not empty",
                "give another folder, or --force to replace the model in it",
            ));
        }
        if replaces {
            replaceable(&place)?;
        }
        Ok(Self { place, parent, replaces })
    }

    /// Makes the hidden folder, and removes those of exports to the same place that were killed.
    pub fn stage(self) -> Result<Staging> {
        let prefix = self.prefix();
        let leftovers = self.clean(&prefix)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).rand_bytes(RANDOM);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o755));
        }
        let folder = builder.tempdir_in(&self.parent).map_err(io(&self.parent))?;
        let lock = File::open(folder.path()).ok().filter(|f| f.try_lock().is_ok());
        Ok(Staging { target: self, folder, _lock: lock, leftovers })
    }

    fn prefix(&self) -> OsString {
        let mut prefix = OsString::from(".");
        prefix.push(self.place.file_name().unwrap_or_default());
        prefix.push(".patchhost-");
        prefix
    }

    fn clean(&self, prefix: &OsString) -> Result<usize> {
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.parent).map_err(io(&self.parent))? {
            let entry = entry.map_err(io(&self.parent))?;
            let name = entry.file_name();
            let random = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
            let ours = random.is_some_and(|r| r.len() == RANDOM && r.iter().all(u8::is_ascii_alphanumeric));
            if !ours || !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            let path = entry.path();
            let Ok(folder) = File::open(&path) else { continue };
            match folder.try_lock() {
                Ok(()) => {
                    std::fs::remove_dir_all(&path).map_err(io(&path))?;
                    removed += 1;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(usage(
                        format!("OUT `{}`", self.place.display()),
                        format!("another export to it is running (in `{}`)", path.display()),
                        "wait for it, or give another folder",
                    ));
                }
                // No locks on this file system: nobody can tell whether it is in use.
                Err(TryLockError::Error(_)) => {}
            }
        }
        Ok(removed)
    }
}

/// `--force` replaces models, not other folders that were named by mistake.
fn replaceable(place: &Path) -> Result<()> {
    let refuse = |why: String| {
        Err(usage(
            format!("--force with OUT `{}`", place.display()),
            why,
            "give the folder of an exported model, or remove this one yourself",
        ))
    };
    if !place.join("config.json").is_file() {
        return refuse(
            "it holds no config.json, so it is not a model; replacing would delete what is in it".to_string(),
        );
    }
    for entry in std::fs::read_dir(place).map_err(io(place))? {
        let entry = entry.map_err(io(place))?;
        if entry.file_type().map_err(io(place))?.is_dir() {
            let name = entry.file_name();
            return refuse(format!("it holds a folder `{}`, which replacing would delete", name.to_string_lossy()));
        }
    }
    Ok(())
}

impl Staging {
    /// Where files are written.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Puts the folder in its place, in one step. What was there is removed afterwards.
    pub fn publish(self) -> Result<PathBuf> {
        let Self { target: Target { place, parent, replaces }, folder, .. } = self;
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

/// Makes names in a folder durable, where the system can.
fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder).and_then(|f| f.sync_all()).map_err(io(folder))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
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

    #[test]
    fn leftovers_are_told_from_running_exports_and_from_other_names() {
        let tmp = tempfile::tempdir().unwrap();
        let out = tmp.path().join("m");
        for name in [".m.patchhost-abc123", ".m.patchhost-other", ".m.patchhost-b.patchhost-abc123"] {
            std::fs::create_dir(tmp.path().join(name)).unwrap();
        }
        let first = Target::new(&out, None, false).unwrap().stage().unwrap();
        assert_eq!(first.leftovers, 1);
        let second = Target::new(&out, None, false).unwrap().stage();
        assert!(second.is_err_and(|e| e.to_string().contains("another export")));
        let hidden = first.path().to_path_buf();
        drop(first);
        assert!(!hidden.exists() && tmp.path().join(".m.patchhost-other").exists());
        assert!(tmp.path().join(".m.patchhost-b.patchhost-abc123").exists());
    }
}
