//! What one patch may reach besides its arguments. Nothing, unless somebody granted it: to these bytes, for these settings.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::PathBuf;

/// Grants of one patch. They are part of its generation digest: a patch with other grants is another generation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grants {
    /// WASI; none: it is not linked at all, and a component that imports it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wasi: Option<Wasi>,
}

/// What stands behind WASI. `wasi = "inert"` (the default of this type) links it with nothing behind it: no files, no
/// environment, no arguments, no network, a clock that stands still, the same "random" bytes always, and output that goes
/// to the host's bounded log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wasi {
    /// Folders that it sees.
    pub dirs: Vec<Dir>,
    /// Environment variables of the host that it sees, by name.
    pub env: Vec<String>,
    /// Whether it sees the host's clocks.
    pub clocks: bool,
    /// Whether it gets the host's random numbers.
    pub random: bool,
}

/// A folder that a patch sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dir {
    /// Folder on the host.
    pub host: PathBuf,
    /// Its path in the guest.
    pub guest: String,
    /// `ro` or `rw`.
    #[serde(default)]
    pub mode: DirMode,
}

/// What may be done in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DirMode {
    /// Reading.
    #[default]
    Ro,
    /// Reading, writing, creating, removing.
    Rw,
}

impl Grants {
    /// WASI with nothing behind it.
    pub fn inert() -> Self {
        Self { wasi: Some(Wasi::default()) }
    }

    /// Whether nothing is granted.
    pub fn is_none(&self) -> bool {
        self.wasi.is_none()
    }

    /// One line per grant, as the generation digest and people see them.
    pub fn lines(&self) -> Vec<String> {
        let Some(Wasi { dirs, env, clocks, random }) = &self.wasi else { return Vec::new() };
        let mode = |mode| if mode == DirMode::Ro { "ro" } else { "rw" };
        let mut lines = vec!["wasi".to_owned()];
        lines.extend(dirs.iter().map(|d| format!("dir {}={}:{}", d.guest, d.host.display(), mode(d.mode))));
        lines.extend(env.iter().map(|name| format!("env {name}")));
        lines.extend(clocks.then(|| "clocks".to_owned()));
        lines.extend(random.then(|| "random".to_owned()));
        lines
    }
}

/// As it stands in a file: `"inert"`, or a table with at least one key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dirs: Vec<Dir>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    clocks: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    random: bool,
}

impl Serialize for Wasi {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::default() {
            return serializer.serialize_str("inert");
        }
        let Self { dirs, env, clocks, random } = self.clone();
        Table { dirs, env, clocks, random }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Wasi {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Wasi;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"inert\", or a table with dirs, env, clocks or random")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Wasi, E> {
                match text {
                    "inert" => Ok(Wasi::default()),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Wasi, A::Error> {
                let table = Table::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                let Table { dirs, env, clocks, random } = table;
                Ok(Wasi { dirs, env, clocks, random })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn text_and_back() {
        for text in [
            "",
            "wasi = \"inert\"\n",
            "[wasi]\nenv = [\"A\"]\nclocks = true\nrandom = true\n\n[[wasi.dirs]]\nhost = \"/srv\"\nguest = \"/d\"\nmode = \"rw\"\n",
        ] {
            let grants: Grants = toml::from_str(text).unwrap();
            let again: Grants = toml::from_str(&toml::to_string(&grants).unwrap()).unwrap();
            assert_eq!(grants, again, "{text}");
        }
        assert!(toml::from_str::<Grants>("wasi = \"all\"").unwrap_err().to_string().contains("inert"));
        assert!(toml::from_str::<Grants>("[wasi]\nnetwork = true").unwrap_err().to_string().contains("network"));
    }

    #[test]
    fn every_grant_is_a_line() {
        let dirs = vec![Dir { host: "/srv".into(), guest: "/d".into(), mode: DirMode::Ro }];
        let wasi = Wasi { dirs, env: vec!["A".into()], clocks: true, random: true };
        let lines = Grants { wasi: Some(wasi) }.lines();
        assert_eq!(lines, ["wasi", "dir /d=/srv:ro", "env A", "clocks", "random"]);
        assert_eq!(Grants::inert().lines(), ["wasi"]);
        assert!(Grants::default().lines().is_empty());
    }
}
