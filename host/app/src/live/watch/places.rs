//! Where a path leads: every name on its way, links followed one by one. What happens to a link is an event of the folder that
//! the link is in, and not of the folder that it leads to.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// Links that are followed on one way, as many as Linux follows.
const MOST_LINKS: usize = 40;

/// What stands at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Link,
    Folder,
    Other,
    Nothing,
}

/// A name in a folder that a path goes through.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    /// The folder. There is no link in its own path.
    folder: PathBuf,
    name: OsString,
    there: There,
}

/// What has to be watched, so that no change of what some paths lead to is missed.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Folders whose events count. There is no link in their paths.
    pub folders: BTreeSet<PathBuf>,
    /// Names in these folders whose events count.
    names: HashSet<PathBuf>,
    /// Folders of components: each component in them counts.
    listed: BTreeSet<PathBuf>,
}

impl Places {
    /// Adds a file, or a link to one, or where either may come to be.
    pub(super) fn add_file(&mut self, path: &Path) {
        self.add(path);
    }

    /// Adds a folder and the components in it, which may be links.
    pub(super) fn add_folder(&mut self, path: &Path, components: &[PathBuf]) {
        if let Some(folder) = self.add(path) {
            self.folders.insert(folder.clone());
            self.listed.insert(folder);
        }
        for component in components.iter().filter(|path| path.is_symlink()) {
            self.add(component);
        }
    }

    /// The folder that the path leads to, if it is one.
    fn add(&mut self, path: &Path) -> Option<PathBuf> {
        let steps = steps(path);
        for (i, step) in steps.iter().enumerate() {
            self.names.insert(step.folder.join(&step.name));
            // The folders above change seldom; looking at the path now and then finds that.
            if i + 1 == steps.len() || matches!(step.there, There::Link | There::Nothing) {
                self.folders.insert(step.folder.clone());
            }
        }
        steps.last().filter(|step| step.there == There::Folder).map(|step| step.folder.join(&step.name))
    }

    /// Whether what happened to this path matters.
    pub(super) fn concern(&self, path: &Path) -> bool {
        let listed = || path.parent().is_some_and(|folder| self.listed.contains(folder));
        self.names.contains(path) || (super::is_component(path) && listed())
    }
}

/// The names that a path goes through. The last one is what it leads to, or where it ends too early.
fn steps(path: &Path) -> Vec<Step> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut left: VecDeque<OsString> = names(&path).collect();
    let (mut at, mut links, mut steps) = (PathBuf::from("/"), 0, Vec::new());
    while let Some(name) = left.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let full = at.join(&name);
        let there = match full.symlink_metadata() {
            Ok(data) if data.is_symlink() => There::Link,
            Ok(data) if data.is_dir() => There::Folder,
            Ok(_) => There::Other,
            Err(_) => There::Nothing,
        };
        steps.push(Step { folder: at.clone(), name, there });
        match there {
            There::Link => {
                links += 1;
                let Ok(to) = full.read_link() else { break };
                if links > MOST_LINKS {
                    break;
                }
                if to.is_absolute() {
                    at = PathBuf::from("/");
                }
                names(&to).rev().for_each(|name| left.push_front(name));
            }
            There::Folder => at = full,
            There::Other | There::Nothing => break,
        }
    }
    steps
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    fn shown(root: &Path, path: &Path) -> Vec<(String, There)> {
        let inside = |step: &Step| {
            let full = step.folder.join(&step.name);
            full.strip_prefix(root).ok().filter(|p| !p.as_os_str().is_empty()).map(|p| p.display().to_string())
        };
        steps(path).iter().filter_map(|step| Some((inside(step)?, step.there))).collect()
    }

    #[test]
    fn a_mounted_config_map_goes_through_its_links() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("etc/..t1")).unwrap();
        std::fs::write(root.join("etc/..t1/x.wasm"), "x").unwrap();
        symlink("..t1", root.join("etc/..data")).unwrap();
        symlink("..data/x.wasm", root.join("etc/x.wasm")).unwrap();
        symlink(root.join("etc"), root.join("mounted")).unwrap();
        let expected = [
            ("mounted", There::Link),
            ("etc", There::Folder),
            ("etc/x.wasm", There::Link),
            ("etc/..data", There::Link),
            ("etc/..t1", There::Folder),
            ("etc/..t1/x.wasm", There::Other),
        ];
        let path = root.join("mounted/../mounted/./x.wasm");
        // `..` of a link's target is the folder that the target is in.
        let seen = shown(&root, &path);
        assert_eq!(seen.iter().map(|(p, t)| (p.as_str(), *t)).skip(2).collect::<Vec<_>>(), expected);

        let mut places = Places::default();
        places.add_file(&path);
        for folder in ["", "etc", "etc/..t1"] {
            assert!(places.folders.contains(root.join(folder).components().as_path()), "{folder}: {places:?}");
        }
        for (name, concerns) in [("etc/..data", true), ("etc/x.wasm", true), ("etc/y.wasm", false), ("etc/..t2", false)]
        {
            assert_eq!(places.concern(&root.join(name)), concerns, "{name}");
        }
    }

    #[test]
    fn circles_and_what_is_not_there_end() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().canonicalize().unwrap();
        symlink("b", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        assert_eq!(shown(&root, &root.join("a")).len(), MOST_LINKS + 1);
        let seen = shown(&root, &root.join("no/such/file"));
        assert_eq!(seen, [("no".to_owned(), There::Nothing)]);
        // The folder in which it would come to be is watched.
        let mut places = Places::default();
        places.add_folder(&root.join("no/such"), &[]);
        assert!(places.folders.contains(&root) && places.concern(&root.join("no")));
    }
}
