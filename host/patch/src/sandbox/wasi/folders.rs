//! Folders that were granted, opened once.

use crate::base::Dir;
use cap_std::ambient_authority;
use std::io;
use std::path::PathBuf;

/// Open folders. Holding them keeps what was granted: a path that later leads elsewhere changes nothing.
#[derive(Debug, Default)]
pub(super) struct Folders(Vec<(cap_std::fs::Dir, PathBuf)>);

impl Folders {
    pub(super) fn open(dirs: &[Dir]) -> io::Result<Self> {
        let one = |dir: &Dir| {
            let with_name = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", dir.host.display()));
            // A relative path would mean another folder wherever the command is run from.
            if !dir.host.is_absolute() {
                return Err(with_name(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a granted folder needs an absolute path",
                )));
            }
            let open = cap_std::fs::Dir::open_ambient_dir(&dir.host, ambient_authority()).map_err(with_name)?;
            Ok((open, dir.host.clone()))
        };
        Ok(Self(dirs.iter().map(one).collect::<io::Result<_>>()?))
    }

    /// Paths that lead to the open folders themselves where the system has such paths, else the granted ones.
    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.0.iter().map(|(open, path)| by_descriptor(open).unwrap_or_else(|| path.clone()))
    }
}

#[cfg(target_os = "linux")]
fn by_descriptor(open: &cap_std::fs::Dir) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    let path = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    path.is_dir().then_some(path)
}

#[cfg(not(target_os = "linux"))]
fn by_descriptor(_: &cap_std::fs::Dir) -> Option<PathBuf> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::base::DirMode;

    #[test]
    fn what_is_swapped_in_later_is_not_seen() {
        let tmp = tempfile::tempdir().unwrap();
        let path = |name: &str| tmp.path().join(name);
        std::fs::create_dir(path("granted")).unwrap();
        std::fs::create_dir(path("secret")).unwrap();
        std::fs::write(path("granted/file"), "granted").unwrap();
        std::fs::write(path("secret/file"), "secret").unwrap();
        let folders = Folders::open(&[Dir { host: path("granted"), guest: "/d".into(), mode: DirMode::Ro }]).unwrap();
        std::fs::rename(path("granted"), path("away")).unwrap();
        std::os::unix::fs::symlink(path("secret"), path("granted")).unwrap();
        let seen = folders.paths().next().unwrap();
        assert_eq!(std::fs::read_to_string(seen.join("file")).unwrap(), "granted");
    }

    #[test]
    fn a_folder_must_be_there_and_have_a_whole_path() {
        let one = |host: &str| Folders::open(&[Dir { host: host.into(), guest: "/d".into(), mode: DirMode::Ro }]);
        assert!(one("/no/such/folder").unwrap_err().to_string().contains("/no/such/folder"));
        assert!(one(".").unwrap_err().to_string().contains("absolute"));
    }
}
