//! What a component was made from and with: an in-toto statement with a SLSA provenance predicate, and what comparing it
//! with a rebuild says.

use super::TrustError;
use crate::audit::Finding;
use crate::audit::trust_rules::{NOT_REPRODUCIBLE, found};
use crate::base::Digest;
use crate::base::file;
use crate::base::text::clean;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://slsa.dev/provenance/v1";
/// The one way to build that this host knows: `cargo xtask guests` in the repository.
pub const BUILD_TYPE: &str = "patchhost:guests/v1";
/// The most bytes that a statement may have.
const MOST_BYTES: usize = 256 << 10;

/// The statement about the patches that come with the host.
const BUNDLED: &str = include_str!("../../../../guests/provenance.json");

/// What a statement says, as far as a rebuild needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The components, by file name.
    pub subjects: Vec<(String, Digest)>,
    /// Digest of the sources.
    pub source: Digest,
    /// Compiler, linker and component encoder, with their versions.
    pub toolchain: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Resource>,
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    digest: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Predicate {
    build_definition: Definition,
    run_details: Run,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Definition {
    build_type: String,
    resolved_dependencies: Vec<Resource>,
}

#[derive(Deserialize)]
struct Run {
    builder: Builder,
}

#[derive(Deserialize)]
struct Builder {
    version: BTreeMap<String, String>,
}

impl Provenance {
    /// The statement beside a component: `X.wasm.intoto.json`.
    pub fn path_of(component: &Path) -> PathBuf {
        let mut path = OsString::from(component);
        path.push(".intoto.json");
        path.into()
    }

    /// About a component: the statement beside its file, else the one of the bundled patches if it is about these bytes.
    pub fn find(component: Option<&Path>, digest: &Digest) -> Result<Option<Self>, TrustError> {
        if let Some(path) = component.map(Self::path_of) {
            let next = "have it made anew by whoever built the component";
            if let Some(text) = file::read(&path, "provenance", next)? {
                let bad = |why| TrustError::usage(file::shown("provenance", &path), why, next);
                return Self::parse(&text).map(Some).map_err(bad);
            }
        }
        let bundled = Self::parse(BUNDLED).map_err(|why| {
            TrustError::usage(
                "provenance of the bundled patches",
                why,
                "run `cargo xtask guests` and build the host anew",
            )
        })?;
        Ok(bundled.subject(digest).is_some().then_some(bundled))
    }

    /// Reads a statement from JSON; the error says why it cannot be understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MOST_BYTES {
            return Err(format!("it has {} bytes, at most {MOST_BYTES} are read", text.len()));
        }
        let read: Statement = serde_json::from_str(text).map_err(|e| clean(&e.to_string(), 200))?;
        if read.kind != STATEMENT || read.predicate_type != PREDICATE {
            return Err(format!(
                "it is `{}` with `{}`; this host knows `{STATEMENT}` with `{PREDICATE}`",
                clean(&read.kind, 80),
                clean(&read.predicate_type, 80)
            ));
        }
        let Definition { build_type, resolved_dependencies } = read.predicate.build_definition;
        if build_type != BUILD_TYPE {
            return Err(format!("its build type is `{}`; this host can repeat `{BUILD_TYPE}`", clean(&build_type, 80)));
        }
        let sha256 = |of: &Resource| -> Result<Digest, String> {
            let hex = of.digest.get("sha256").ok_or_else(|| format!("`{}` has no sha256", clean(&of.name, 80)))?;
            hex.parse().map_err(|e: crate::base::NotADigest| e.to_string())
        };
        let source = resolved_dependencies.iter().find(|dependency| dependency.name == "source");
        let toolchain = read.predicate.run_details.builder.version.get("toolchain").cloned();
        Ok(Self {
            subjects: read.subject.iter().map(|s| Ok((s.name.clone(), sha256(s)?))).collect::<Result<_, String>>()?,
            source: sha256(source.ok_or("it names no `source` among its dependencies")?)?,
            toolchain: toolchain.ok_or("it does not name the builder's toolchain")?,
        })
    }

    /// The file of these bytes, if the statement is about them.
    pub fn subject(&self, digest: &Digest) -> Option<&str> {
        self.subjects.iter().find(|(_, subject)| subject == digest).map(|(name, _)| name.as_str())
    }
}

/// PH713, where the same sources and tools give other bytes.
pub fn not_reproducible(name: &str, expected: &Digest, rebuilt: Option<&Digest>) -> Finding {
    let name = clean(name, 120);
    let message = match rebuilt {
        Some(rebuilt) => format!("`{name}` rebuilt is {rebuilt}, the statement says {expected}"),
        None => format!("a rebuild makes no `{name}`"),
    };
    found(&NOT_REPRODUCIBLE, message, "do not use it before somebody says why; pin the toolchain, and build it anew")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::patch::bundled::BUNDLED as GUESTS;

    #[test]
    fn every_bundled_patch_has_its_provenance() {
        let statement = Provenance::parse(BUNDLED).unwrap();
        for (name, bytes) in GUESTS {
            assert_eq!(statement.subject(&Digest::of(bytes)), Some(&*format!("{name}.wasm")));
        }
        assert!(Provenance::find(None, &Digest::of(b"other")).unwrap().is_none());
    }

    #[test]
    fn statements_of_others_are_refused_with_what_is_known() {
        for (from, to, why) in [
            (STATEMENT, "https://in-toto.io/Statement/v0.1", "this host knows"),
            (BUILD_TYPE, "make", "build type is `make`"),
            ("\"source\"", "\"sauce\"", "names no `source`"),
            ("\"toolchain\"", "\"tools\"", "toolchain"),
            ("\"sha256\"", "\"md5\"", "sha256"),
            ("\"subject\"", "\"object\"", "subject"),
        ] {
            let error = Provenance::parse(&BUNDLED.replace(from, to)).unwrap_err();
            assert!(error.contains(why), "{from}: {error}");
        }
        assert!(Provenance::parse("").is_err());
        assert!(Provenance::parse(&" ".repeat(MOST_BYTES + 1)).is_err());
    }
}
