//! The number of a version, and where it is written.

use std::path::Path;

use super::error::{Result, format, unreadable};

/// Start of the name of a version's folder.
pub(super) const PREFIX: &str = "weight_v";

/// Where SGLang keeps the state of a checkpoint that it patches in place.
const SYNC: &str = ".weight_sync";

/// The number of a version of weights. Shown with six digits, as folders and indexes have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// From digits, with or without leading zeros.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten().map(Self)
    }

    /// Name of its folder: `weight_v000012`.
    pub fn folder(self) -> String {
        format!("{PREFIX}{self}")
    }

    /// The version whose folder has this name.
    pub fn of_folder(name: &str) -> Option<Self> {
        let version = Self::parse(name.strip_prefix(PREFIX)?)?;
        (version.folder() == name).then_some(version)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

impl std::str::FromStr for Version {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::parse(text).ok_or_else(|| "a version is a number, for example 12 or 000012".to_string())
    }
}

impl serde::Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Which version a folder of weights is at: by its name, or by what SGLang noted when it patched it. `None`: it is just a
/// checkpoint.
pub fn applied_version(folder: &Path) -> Result<Option<Version>> {
    if let Some(version) = folder.file_name().and_then(|n| n.to_str()).and_then(Version::of_folder) {
        return Ok(Some(version));
    }
    let sync = folder.join(SYNC);
    if !sync.is_dir() {
        return Ok(None);
    }
    let state = sync.join("state.json");
    let text = match patchhost_runtime::files::read(&state, patchhost_runtime::files::CONFIG) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(format(
                format!("`{}`", folder.display()),
                format!(
                    "it is patched in place by /pull_weights, and without `{SYNC}/state.json` the last pull did not end: \
                         its tensors may be of different versions"
                ),
                "pull again, or give the published version's own folder",
            ));
        }
        Err(e) => return Err(unreadable(&state, &e)),
    };
    let version =
        serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|state| number(state.get("version")?));
    version.map(Some).ok_or_else(|| {
        format(
            format!("`{}`", state.display()),
            "it does not say which version was applied; it must be {\"version\": \"000012\"}",
            "pull again, or give the published version's own folder",
        )
    })
}

/// A version in JSON: a string of digits, or a number.
pub(super) fn number(value: &serde_json::Value) -> Option<Version> {
    match value {
        serde_json::Value::String(text) => Version::parse(text),
        other => other.as_u64().map(Version),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_have_six_digits_or_more_and_only_one_form() {
        assert_eq!(Version(12).folder(), "weight_v000012");
        assert_eq!(Version(1_234_567).folder(), "weight_v1234567");
        for n in [0, 12, 999_999, 1_000_000, u64::MAX] {
            assert_eq!(Version::of_folder(&Version(n).folder()), Some(Version(n)));
        }
        for no in
            ["weight_v12", "weight_v0000012", "weight_v", "weight_v-00001", "weight_v00001x", "weight_v+00001", "w"]
        {
            assert_eq!(Version::of_folder(no), None, "{no}");
        }
        assert_eq!("12".parse(), Ok(Version(12)));
        assert_eq!("000012".parse(), Ok(Version(12)));
        assert!("99999999999999999999999".parse::<Version>().is_err() && "v12".parse::<Version>().is_err());
    }

    #[test]
    fn the_state_that_sglang_notes_is_read() {
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(applied_version(tmp.path()).unwrap(), None);
        let sync = tmp.path().join(SYNC);
        std::fs::create_dir(&sync).unwrap();
        assert!(applied_version(tmp.path()).unwrap_err().to_string().contains("did not end"));
        for (text, version) in [
            ("{\"version\": \"000012\"}", Some(12)),
            ("{\"version\": 7}", Some(7)),
            ("{", None),
            ("{\"version\": -1}", None),
        ] {
            std::fs::write(sync.join("state.json"), text).unwrap();
            assert_eq!(applied_version(tmp.path()).ok().flatten(), version.map(Version), "{text}");
        }
    }
}
