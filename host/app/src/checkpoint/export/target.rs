//! The place of an export: what may be replaced there, and what may not. (`staging` puts the folder there in one step.)

use std::path::{Path, PathBuf};

use super::{Result, io, usage};
use crate::checkpoint::staging::{Staging, StagingError};

/// A place that an export may take.
#[derive(Debug)]
pub struct Target {
    /// Where the export appears.
    place: PathBuf,
    parent: PathBuf,
    /// A folder with files is there.
    replaces: bool,
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
        let shown = self.place.display().to_string();
        Staging::new(self.place, self.parent, self.replaces).map_err(|e| match e {
            StagingError::Busy(path) => usage(
                format!("OUT `{shown}`"),
                format!("another export to it is running (in `{}`)", path.display()),
                "wait for it, or give another folder",
            ),
            StagingError::Write(e) => e.into(),
        })
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
