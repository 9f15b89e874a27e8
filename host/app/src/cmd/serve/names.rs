//! What the served model is called, and where it comes from.

use std::path::{Path, PathBuf};

use patchhost_runtime::files;
use serde_json::{Map, Value};

use crate::checkpoint::bundled;

/// The name of a model that nobody named: that of its folder, or of the bundled one.
pub fn of_folder(folder: Option<&Path>) -> String {
    let whole = folder.map(|folder| folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf()));
    // `.` has no name of its own.
    let name = folder.and_then(Path::file_name).or_else(|| whole.as_deref().and_then(Path::file_name));
    name.map_or_else(|| bundled::NAME.to_string(), |name| name.to_string_lossy().into_owned())
}

/// How requests may name a folder: as it was given, in full, and by the repository whose copy it is in Hugging Face's cache.
pub fn paths(folder: &Path) -> Vec<String> {
    let mut paths = vec![folder.display().to_string()];
    if let Ok(absolute) = std::path::absolute(folder) {
        paths.push(absolute.display().to_string());
    }
    if let Ok(whole) = folder.canonicalize() {
        paths.push(whole.display().to_string());
    }
    let repositories: Vec<String> = paths.iter().filter_map(|path| repository(Path::new(path))).collect();
    paths.extend(repositories);
    let mut seen = std::collections::BTreeSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    paths
}

/// `models--ORG--NAME/snapshots/…` is a copy of `ORG/NAME`.
fn repository(path: &Path) -> Option<String> {
    let snapshots = path.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let name = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    Some(name.replacen("--", "/", 1))
}

/// vLLM takes several names behind one flag. So does this program, and a path behind several of them is the model, where
/// none was given before: it would have been, had the flag one name only. One that is not there is refused later, as a model.
pub fn folder_among(names: &mut Vec<String>, model: &mut Option<PathBuf>) {
    if model.is_none()
        && names.len() > 1
        && let Some(folder) = names.pop_if(|last| last.starts_with(['.', '/']) || Path::new(last).is_dir())
    {
        *model = Some(PathBuf::from(folder));
    }
}

/// The content of tokenizer_config.json; empty where there is none. That it can be read was seen when the tokenizer was made.
pub fn tokenizer_config(folder: Option<&Path>) -> Map<String, Value> {
    let name = "tokenizer_config.json";
    let text = match folder {
        Some(folder) => files::read_text_if_any(&folder.join(name), files::TOKENIZER_CONFIG).ok().flatten(),
        None => bundled::FILES.iter().find(|(file, _)| *file == name).map(|(_, text)| (*text).to_string()),
    };
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_has_its_path_in_every_form_and_the_name_of_its_repository() {
        let tmp = tempfile::tempdir().unwrap();
        let snapshot = tmp.path().join("models--Qwen--Qwen3-0.6B/snapshots/0123abcd");
        std::fs::create_dir_all(&snapshot).unwrap();
        let all = paths(&snapshot);
        assert_eq!(all[0], snapshot.display().to_string());
        assert!(all.contains(&"Qwen/Qwen3-0.6B".to_string()), "{all:?}");
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink(&snapshot, &link).unwrap();
        let linked = paths(&link);
        assert_eq!(linked[0], link.display().to_string());
        assert!(linked.contains(&snapshot.canonicalize().unwrap().display().to_string()), "{linked:?}");
        assert!(linked.contains(&"Qwen/Qwen3-0.6B".to_string()), "{linked:?}");
        assert_eq!(paths(&tmp.path().join("models--a--b")).len(), 1, "a folder that is no snapshot has no repository");
        assert_eq!(repository(Path::new("/x/models--gpt2/snapshots/1")).unwrap(), "gpt2");
        assert_eq!(of_folder(Some(&link)), "link");
        assert_eq!(of_folder(None), bundled::NAME);
        assert_ne!(of_folder(Some(Path::new("."))), bundled::NAME);
    }

    #[test]
    fn a_folder_behind_several_names_is_the_model() {
        let tmp = tempfile::tempdir().unwrap();
        let folder = tmp.path().display().to_string();
        let tried = |names: &[&str], model: Option<&str>| {
            let mut names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let mut model = model.map(PathBuf::from);
            folder_among(&mut names, &mut model);
            (names, model)
        };
        assert_eq!(tried(&["a", &folder], None), (vec!["a".to_string()], Some(tmp.path().to_path_buf())));
        assert_eq!(tried(&["a", "./typo"], None), (vec!["a".to_string()], Some(PathBuf::from("./typo"))));
        assert_eq!(tried(&["a", "org/b"], None).0, ["a", "org/b"]);
        assert_eq!(tried(&[&folder], None), (vec![folder.clone()], None));
        assert_eq!(tried(&["a", &folder], Some("m")).0.len(), 2);
    }
}
