//! Files that a request may name: only inside of the folders that the operator allowed with `--root`.
//!
//! A path is opened through a handle of its root (cap-std), so that `..`, an absolute path elsewhere and a symlink that
//! leaves the root are refused by the system, whatever changes on the disk meanwhile. The readers of checkpoints take
//! paths; they get a private folder of links to the handles that were opened here ([`Pinned`]), so that what they read is
//! what was checked.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::files;
use patchhost_runtime::rename::Renames;

use super::pickle;
use crate::base::text::clean;
use crate::checkpoint::versions::{Base, Loaded, Source, Version, VersionError};

/// Longest path that is looked at.
const MAX_PATH: usize = 4096;
/// Most files of one folder: each takes a file descriptor while it is read.
const MAX_FILES: usize = 512;
/// Most characters of a path or name that a message shows.
const SHOWN: usize = 300;

/// Why a path was not opened.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// No root was configured.
    #[error("refused: {0}")]
    NoRoots(Refusal),
    /// The path leaves every root.
    #[error("refused: {0}")]
    Outside(Refusal),
    /// No root has such a file or folder.
    #[error("refused: {0}")]
    NotFound(Refusal),
    /// It is there, and no weights can be taken from it.
    #[error("refused: {0}")]
    Unusable(Refusal),
}

impl RootError {
    /// What was refused, why, and what to do next.
    pub fn into_refusal(self) -> Refusal {
        let (Self::NoRoots(r) | Self::Outside(r) | Self::NotFound(r) | Self::Unusable(r)) = self;
        r
    }
}

struct Root {
    dir: Dir,
    /// As the operator gave it, and as the system calls it: a client may use either.
    names: [PathBuf; 2],
}

/// The folders of `--root`: a request can name files in them, and nowhere else.
#[derive(Default)]
pub struct Roots {
    roots: Vec<Root>,
}

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.roots.iter().map(|r| &r.names[0])).finish()
    }
}

impl Roots {
    /// Opens the folders of `--root`; the first that is no folder, or cannot be read, is named by the error.
    pub fn open(folders: &[PathBuf]) -> Result<Self, RootError> {
        let mut roots = Vec::new();
        for folder in folders {
            let bad = |e: std::io::Error| {
                let what = format!("--root {}", show(&folder.to_string_lossy()));
                RootError::Unusable(Refusal::new(what, e.to_string(), "give a folder that exists and can be read"))
            };
            let name = folder.canonicalize().map_err(bad)?;
            let dir = Dir::open_ambient_dir(&name, cap_std::ambient_authority()).map_err(bad)?;
            roots.push(Root { dir, names: [folder.clone(), name] });
        }
        Ok(Self { roots })
    }

    /// Whether no path at all is allowed.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// Opens a file, or a folder with its weights, inside of a root. A relative path is looked for in each root.
    pub fn pin(&self, given: &str) -> Result<Pinned, RootError> {
        let file = self.find(given)?;
        let shown = show(given);
        let unusable = |e: &std::io::Error| unusable(&shown, e.to_string());
        let data = file.metadata().map_err(|e| unusable(&e))?;
        // Versions say their number in the name of their folder.
        let name = Path::new(given).file_name().map(PathBuf::from).unwrap_or_else(|| "root".into());
        let mut view = View::new(&shown)?;
        let path = view.folder.path().join(name);
        if data.is_dir() {
            view.folder_of(&Dir::from_std_file(file), &path, 0)?;
        } else if data.is_file() {
            let mut head = Vec::new();
            (&file).take(16).read_to_end(&mut head).map_err(|e| unusable(&e))?;
            if pickle::is_pickle(&head) {
                return Err(RootError::Unusable(pickle::refusal(&format!("`{shown}`"))));
            }
            view.link(file, &path)?;
        } else {
            return Err(self::unusable(&shown, "it is neither a file nor a folder".to_string()));
        }
        Ok(Pinned { view, path, shown })
    }

    /// The bytes of a file inside of a root, at most `limit`.
    pub fn read(&self, given: &str, limit: u64) -> Result<Vec<u8>, RootError> {
        let file = self.find(given)?;
        let shown = show(given);
        let data = file.metadata().map_err(|e| unusable(&shown, e.to_string()))?;
        if !data.is_file() {
            return Err(unusable(&shown, "it is not a file".to_string()));
        }
        let mut bytes = Vec::new();
        (&file).take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| unusable(&shown, e.to_string()))?;
        if bytes.len() as u64 > limit {
            return Err(unusable(&shown, format!("it has more than the {limit} bytes that are read")));
        }
        Ok(bytes)
    }

    fn find(&self, given: &str) -> Result<File, RootError> {
        let shown = show(given);
        if self.roots.is_empty() {
            return Err(RootError::NoRoots(Refusal::new(
                format!("path `{shown}`"),
                "no folder is allowed for requests: the server was started without --root",
                "start it with --root FOLDER, or send the tensors in the body as safetensors",
            )));
        }
        if given.is_empty() || given.len() > MAX_PATH {
            return Err(unusable(&shown, format!("a path has 1 to {MAX_PATH} bytes, this has {}", given.len())));
        }
        let path = Path::new(given);
        let mut missing = None;
        let mut outside = true;
        for root in &self.roots {
            let inside = match path.is_absolute() {
                true => root.names.iter().find_map(|name| path.strip_prefix(name).ok()),
                false => Some(path),
            };
            let Some(inside) = inside else { continue };
            let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
            match open(&root.dir, inside) {
                Ok(file) => return Ok(file),
                Err(e) if escapes(&e) => return Err(self.outside(&shown)),
                Err(e) => {
                    outside = false;
                    missing = Some(e);
                }
            }
        }
        match missing {
            _ if outside => Err(self.outside(&shown)),
            Some(e) if e.kind() != std::io::ErrorKind::NotFound => Err(unusable(&shown, e.to_string())),
            _ => Err(RootError::NotFound(Refusal::new(
                format!("path `{shown}`"),
                format!("there is no such file or folder in {}", self.list()),
                "check the path; it is taken relative to a root, or absolute",
            ))),
        }
    }

    fn outside(&self, shown: &str) -> RootError {
        RootError::Outside(Refusal::new(
            format!("path `{shown}`"),
            format!("it leads out of the allowed folders ({}), by itself, by `..` or by a link", self.list()),
            "copy the files into an allowed folder, or start the server with another --root",
        ))
    }

    fn list(&self) -> String {
        self.roots.iter().map(|r| format!("`{}`", show(&r.names[0].to_string_lossy()))).collect::<Vec<_>>().join(", ")
    }
}

/// Files and folders of a root that were opened, under the names that they have there. Dropping it closes them; a
/// checkpoint that was read keeps its own hold of the files.
pub struct Pinned {
    view: View,
    path: PathBuf,
    shown: String,
}

impl Pinned {
    /// As the client wrote it, escaped and bounded.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The weights, read as `patchhost refit --from` reads them.
    pub fn load(
        &self,
        base: Option<Base<'_>>,
        target: Option<Version>,
        renames: &Renames,
    ) -> Result<Loaded, VersionError> {
        let loaded = Source::open(&self.path)?.renamed(renames)?.load(base, target)?;
        loaded.checkpoint.call_files(|label| self.plain(label));
        Ok(loaded)
    }

    /// Whether it is a folder of versions.
    pub fn is_series(&self) -> bool {
        matches!(Source::open(&self.path), Ok(Source::Series(_)))
    }

    /// The tensors of a file, or of one file of the folder.
    pub fn checkpoint(&self, file: Option<&str>) -> Result<Checkpoint, RuntimeError> {
        let checkpoint = Checkpoint::open(&file.map_or_else(|| self.path.clone(), |f| self.path.join(f)))?;
        checkpoint.call_files(|label| self.plain(label));
        Ok(checkpoint)
    }

    /// A small text file of the folder.
    pub fn text(&self, file: &str, limit: u64) -> Result<String, RootError> {
        let bad = |why: String| unusable(&format!("{}/{}", self.shown, show(file)), why);
        files::read_text(&self.path.join(file), limit).map_err(|e| bad(e.to_string()))
    }

    /// A message of a reader, or the name of a file, with the client's path in place of the private one.
    pub fn plain(&self, message: &str) -> String {
        message
            .replace(&self.path.display().to_string(), &self.shown)
            .replace(&self.view.folder.path().display().to_string(), "")
    }
}

/// The private folder of links to open files.
struct View {
    folder: tempfile::TempDir,
    files: Vec<File>,
    shown: String,
}

impl View {
    fn new(shown: &str) -> Result<Self, RootError> {
        let folder = tempfile::Builder::new().prefix("patchhost-view-").tempdir();
        let folder = folder.map_err(|e| unusable(shown, format!("no temporary folder could be made: {e}")))?;
        Ok(Self { folder, files: Vec::new(), shown: shown.to_string() })
    }

    /// Opens what weights are made of: safetensors, JSON, and the folders of versions.
    fn folder_of(&mut self, dir: &Dir, at: &Path, depth: usize) -> Result<(), RootError> {
        let shown = self.shown.clone();
        let bad = |e: std::io::Error| unusable(&shown, e.to_string());
        std::fs::create_dir(at).map_err(bad)?;
        let mut names = Vec::new();
        for entry in dir.entries().map_err(bad)? {
            if let Ok(name) = entry.map_err(bad)?.file_name().into_string() {
                names.push(name);
            }
        }
        // The newest versions first: where there are too many files, the old ones are left out.
        names.sort_unstable_by(|a, b| b.cmp(a));
        for name in names {
            let version = name.trim_start_matches('.').starts_with("weight_v");
            let folder = depth == 0 && (version || name == ".weight_sync");
            if !(folder || name.ends_with(".safetensors") || name.ends_with(".json")) {
                continue;
            }
            if self.files.len() >= MAX_FILES {
                if version {
                    break;
                }
                return Err(unusable(&shown, format!("it holds more than {MAX_FILES} files")));
            }
            let file = open(dir, Path::new(&name)).map_err(|e| match escapes(&e) {
                true => RootError::Outside(Refusal::new(
                    format!("`{}` in `{shown}`", show(&name)),
                    "it is a link that leads out of the allowed folder",
                    "copy the file in place of the link",
                )),
                false => unusable(&format!("{shown}/{}", show(&name)), e.to_string()),
            })?;
            let data = file.metadata().map_err(bad)?;
            let at = at.join(&name);
            if data.is_dir() {
                if folder {
                    self.folder_of(&Dir::from_std_file(file), &at, depth + 1)?;
                }
            } else if data.is_file() {
                self.link(file, &at)?;
            }
        }
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn link(&mut self, file: File, at: &Path) -> Result<(), RootError> {
        use std::os::fd::AsRawFd;
        let fd = format!("/proc/self/fd/{}", file.as_raw_fd());
        std::os::unix::fs::symlink(fd, at).map_err(|e| unusable(&self.shown, e.to_string()))?;
        self.files.push(file);
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn link(&mut self, _: File, _: &Path) -> Result<(), RootError> {
        Err(unusable(&self.shown, "paths in requests are supported on Linux only".to_string()))
    }
}

/// Opens a file or folder for reading; a pipe does not make it wait.
fn open(dir: &Dir, path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(target_os = "linux")]
    options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    dir.open_with(path, &options).map(cap_std::fs::File::into_std)
}

/// Whether cap-std refused a path because it leaves the root: its own error, which the system does not number.
fn escapes(e: &std::io::Error) -> bool {
    e.kind() == std::io::ErrorKind::PermissionDenied && e.raw_os_error().is_none()
}

fn unusable(shown: &str, why: String) -> RootError {
    let next = "give a folder of safetensors files, a version's folder, or one safetensors file";
    RootError::Unusable(Refusal::new(format!("path `{shown}`"), why, next))
}

fn show(text: &str) -> String {
    clean(text, SHOWN)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    fn file(path: &Path) {
        let data = [1u8, 2, 3, 4];
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![4], &data).unwrap();
        std::fs::write(path, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
    }

    fn setup() -> (tempfile::TempDir, Roots) {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("root");
        std::fs::create_dir_all(root.join("model")).unwrap();
        std::fs::create_dir_all(tmp.path().join("out")).unwrap();
        file(&root.join("model/model.safetensors"));
        file(&tmp.path().join("out/model.safetensors"));
        let roots = Roots::open(&[root]).unwrap();
        (tmp, roots)
    }

    #[test]
    fn inside_is_read_by_any_name() {
        let (tmp, roots) = setup();
        let whole = tmp.path().join("root/model").display().to_string();
        let one = tmp.path().join("root/model/model.safetensors").display().to_string();
        for name in ["model", "./model", "model/../model", "model/model.safetensors", &whole, &one] {
            let loaded = roots
                .pin(name)
                .unwrap_or_else(|e| panic!("{name}: {e}"))
                .load(None, None, &Renames::default())
                .unwrap();
            // The handles are closed; the checkpoint's own are not.
            assert_eq!(loaded.checkpoint.get("w").unwrap().data.load().unwrap()[..], [1, 2, 3, 4], "{name}");
        }
    }

    #[test]
    fn outside_is_refused_however_it_is_named() {
        let (tmp, roots) = setup();
        let root = tmp.path().join("root");
        symlink("../../out/model.safetensors", root.join("model/link.safetensors")).unwrap();
        symlink("../out", root.join("dir")).unwrap();
        symlink(tmp.path().join("out"), root.join("absolute")).unwrap();
        let out = tmp.path().join("out").display().to_string();
        let dots = format!("{}/../out", root.display());
        for name in ["../out", "model/../../out", "dir", "dir/model.safetensors", "absolute", &out, &dots, "/etc", "/"]
        {
            let error = roots.pin(name).map(|_| ()).unwrap_err();
            assert!(matches!(error, RootError::Outside(_)), "{name}: {error}");
        }
        // A link inside of a folder that is allowed itself.
        let error = roots.pin("model").map(|_| ()).unwrap_err();
        assert!(matches!(&error, RootError::Outside(r) if r.what.contains("link.safetensors")), "{error}");
    }

    #[test]
    fn what_is_no_weights_is_refused() {
        let (tmp, roots) = setup();
        assert!(matches!(roots.pin("nothing"), Err(RootError::NotFound(_))));
        assert!(matches!(roots.pin(""), Err(RootError::Unusable(_))));
        assert!(matches!(roots.pin(&"x".repeat(5000)), Err(RootError::Unusable(_))));
        assert!(roots.pin("a\0b").is_err());
        assert!(matches!(Roots::default().pin("model"), Err(RootError::NoRoots(r)) if r.why.contains("--root")));
        std::fs::write(tmp.path().join("root/a.pt"), b"PK\x03\x04 and so on").unwrap();
        assert!(matches!(roots.pin("a.pt"), Err(RootError::Unusable(r)) if r.why.contains("pickle")));
        let fifo = tmp.path().join("root/fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert!(roots.pin("fifo").is_err());
        assert!(Roots::open(&[tmp.path().join("root/a.pt")]).is_err());
        assert!(Roots::open(&[tmp.path().join("root/none")]).is_err());
    }

    #[test]
    fn versions_keep_their_names_and_their_order() {
        let (tmp, roots) = setup();
        let all = tmp.path().join("root/all");
        for n in [1, 2] {
            std::fs::create_dir_all(all.join(format!("weight_v00000{n}"))).unwrap();
            file(&all.join(format!("weight_v00000{n}/model.safetensors")));
        }
        let loaded = roots.pin("all").unwrap().load(None, None, &Renames::default()).unwrap();
        assert_eq!(loaded.version, Some(Version(2)));
        let loaded = roots.pin("all/weight_v000001").unwrap().load(None, None, &Renames::default()).unwrap();
        assert_eq!(loaded.version, Some(Version(1)));
        let pinned = roots.pin("all").unwrap();
        let error = pinned.load(None, Some(Version(9)), &Renames::default()).map(|_| ()).unwrap_err();
        let text = pinned.plain(&error.to_string());
        assert!(text.contains("`all`") && !text.contains("patchhost-view"), "{text}");
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let (tmp, roots) = setup();
        std::fs::write(tmp.path().join("root/x.wasm"), [7; 10]).unwrap();
        assert_eq!(roots.read("x.wasm", 10).unwrap(), [7; 10]);
        assert!(roots.read("x.wasm", 9).is_err() && roots.read("model", 9).is_err() && roots.read("../x", 9).is_err());
    }
}
