//! Links in a model's folder, where files are copied out of it. A folder that came from elsewhere could hold a link to
//! anything that this user may read, and an export would give it away.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// What a name in a folder leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leads {
    /// To this file, in the folder or where the cache of the Hugging Face hub keeps the files of its snapshots.
    Here(PathBuf),
    /// To this file, somewhere else.
    Away(PathBuf),
}

/// Where a name in a folder leads, all links followed.
pub(crate) fn leads(folder: &Path, file: &Path) -> io::Result<Leads> {
    let (folder, real) = (folder.canonicalize()?, file.canonicalize()?);
    let here = real.starts_with(&folder) || blobs(&folder).is_some_and(|blobs| real.parent() == Some(blobs.as_path()));
    Ok(if here { Leads::Here(real) } else { Leads::Away(real) })
}

/// The folder that the links of a snapshot lead to, `models--NAME/blobs`, if this is
/// `models--NAME/snapshots/REVISION` or a folder in it.
fn blobs(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.ancestors().skip(1).find(|above| above.file_name() == Some(OsStr::new("snapshots")))?;
    Some(snapshots.parent()?.join("blobs"))
}

/// Why a file that leads away is not copied, and what to do.
pub(crate) fn reason(to: &Path) -> (String, &'static str) {
    let to = crate::base::text::clean(&to.display().to_string(), 200);
    let why =
        format!("it is a link that leaves the model's folder, to `{to}`, and what is not in the folder is not copied");
    (why, "put a copy of the file in the place of the link, or remove the link")
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_snapshot_leads_to_its_own_blobs_and_nowhere_else() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().canonicalize().unwrap();
        let (own, other) = (root.join("models--a/blobs"), root.join("models--b/blobs"));
        let snapshot = root.join("models--a/snapshots/0123/sub");
        for folder in [&own, &other, &snapshot, &own.join("deeper")] {
            std::fs::create_dir_all(folder).unwrap();
        }
        for file in [own.join("1"), own.join("deeper/2"), other.join("3"), root.join("secret"), snapshot.join("plain")]
        {
            std::fs::write(file, "x").unwrap();
        }
        for (to, here) in [
            ("../../../blobs/1", true),
            ("plain", true),
            ("../../../blobs/deeper/2", false),
            ("../../../../models--b/blobs/3", false),
            ("../../../../secret", false),
        ] {
            let link = snapshot.join("link");
            symlink(to, &link).unwrap();
            let found = leads(&snapshot, &link).unwrap();
            assert_eq!(matches!(found, Leads::Here(_)), here, "{to}: {found:?}");
            std::fs::remove_file(&link).unwrap();
        }
        // A chain is followed to its end, by whatever way the folder is named.
        symlink("middle", snapshot.join("first")).unwrap();
        symlink(root.join("secret"), snapshot.join("middle")).unwrap();
        symlink(&snapshot, root.join("alias")).unwrap();
        let found = leads(&root.join("alias"), &root.join("alias/first")).unwrap();
        assert_eq!(found, Leads::Away(root.join("secret")));
    }
}
