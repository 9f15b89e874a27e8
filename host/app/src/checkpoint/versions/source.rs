//! What weights can be taken from: a file, a checkpoint, a version, or the folder that a trainer publishes versions in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::rename::Renames;

use super::apply::{Base, apply};
use super::codec::Encoding;
use super::error::{Result, VersionError, base as refuse_base, format, incomplete, source, unreadable};
use super::read::{self, Delta, Folder, Full};
use super::version::{PREFIX, Version};
use crate::checkpoint::layout::INDEX;
use crate::checkpoint::staging::is_hidden;

/// Longest chain of deltas that is followed.
const MAX_CHAIN: usize = 10_000;

/// Where weights come from.
pub enum Source {
    /// A safetensors file, a checkpoint's folder, or a full version.
    Full(Full),
    /// A delta's folder.
    Delta(Delta),
    /// A folder of versions.
    Series(Series),
}

/// A folder of versions, each looked at when it is needed.
pub struct Series {
    path: PathBuf,
    versions: BTreeMap<Version, PathBuf>,
    skipped: Vec<Skipped>,
    /// What the names of their tensors become.
    renames: Renames,
}

/// Something in a folder of versions that was passed over.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    /// Name of the folder.
    pub name: String,
    pub why: String,
}

/// One version on the way to the result.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    /// The version, if it has a number.
    pub version: Option<Version>,
    /// What a delta builds on; none for a full version.
    pub base_version: Option<Version>,
    /// How a delta is written.
    pub encoding: Option<Encoding>,
    /// Tensors that it replaces.
    pub changed: usize,
    /// Bytes that were read for it.
    pub bytes: u64,
}

/// The weights, and how they were come by.
pub struct Loaded {
    /// The weights.
    pub checkpoint: Checkpoint,
    /// Their version, if known.
    pub version: Option<Version>,
    /// What was loaded and applied, in order. None: what is held is the newest.
    pub steps: Vec<Step>,
    /// What was passed over.
    pub skipped: Vec<Skipped>,
}

/// A start and the deltas from there, in order.
struct Chain {
    /// None: what is held.
    start: Option<Full>,
    deltas: Vec<Delta>,
}

impl Source {
    /// Looks at a file or folder.
    pub fn open(path: &Path) -> Result<Self> {
        let data = path.metadata().map_err(|e| unreadable(path, &e))?;
        // `.` has no name of its own, and a version's folder says its number in its name.
        let named = path.file_name().is_none().then(|| path.canonicalize().ok()).flatten();
        let path = named.as_deref().unwrap_or(path);
        if !data.is_dir() {
            return Ok(Self::Full(Full { checkpoint: Checkpoint::open(path)?, version: None }));
        }
        if let Some(series) = Series::open(path)? {
            return Ok(Self::Series(series));
        }
        match read::folder(path)? {
            Folder::Full(full) => Ok(Self::Full(full)),
            Folder::Delta(delta) => Ok(Self::Delta(delta)),
        }
    }

    /// The same with other names of the tensors: what is held has the names that the renames make, and a delta is for those.
    pub fn renamed(self, renames: &Renames) -> Result<Self> {
        Ok(match self {
            Self::Full(full) => Self::Full(full.renamed(renames)?),
            Self::Delta(delta) => Self::Delta(delta.renamed(renames)?),
            Self::Series(series) => Self::Series(Series { renames: renames.clone(), ..series }),
        })
    }

    /// The weights, starting from what is held if that is needed. From a folder of versions: `target`, or else the newest
    /// that is complete, down to what is held.
    pub fn load(&self, base: Option<Base<'_>>, target: Option<Version>) -> Result<Loaded> {
        let other = |found: Option<Version>| {
            let found = found.map_or_else(|| "no version".to_string(), |v| format!("version {v}"));
            let wanted = target.map(|t| t.to_string()).unwrap_or_default();
            Err(source(
                format!("version {wanted}"),
                format!("it was asked for, but {found} was given"),
                "give that version's folder, or the folder of all versions",
            ))
        };
        match self {
            Self::Full(full) if target.is_some() && target != full.version => other(full.version),
            Self::Delta(delta) if target.is_some_and(|t| t != delta.version) => other(Some(delta.version)),
            Self::Full(full) => run(base, Chain { start: Some(full.clone()), deltas: Vec::new() }, Vec::new()),
            Self::Delta(delta) => {
                let base = base.ok_or_else(|| {
                    refuse_base(
                        format!("version {}", delta.version),
                        format!("it is the difference to version {}, and no weights are held", delta.base_version),
                        "give the weights it builds on, or a full version",
                    )
                })?;
                let step = step(delta);
                let checkpoint = apply(&base, delta)?;
                Ok(Loaded { checkpoint, version: Some(delta.version), steps: vec![step], skipped: Vec::new() })
            }
            Self::Series(series) => series.load(base, target),
        }
    }
}

impl Series {
    /// None if the folder holds weights of its own, or no version.
    fn open(path: &Path) -> Result<Option<Self>> {
        let (mut versions, mut skipped) = (BTreeMap::new(), Vec::new());
        for entry in std::fs::read_dir(path).map_err(|e| unreadable(path, &e))? {
            let entry = entry.map_err(|e| unreadable(path, &e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == INDEX || name.ends_with(".safetensors") {
                return Ok(None);
            }
            let mut skip = |why: &str| skipped.push(Skipped { name: name.clone(), why: why.to_string() });
            if !entry.path().is_dir() {
                continue;
            } else if let Some(version) = Version::of_folder(&name) {
                versions.insert(version, entry.path());
            } else if is_hidden(&name) && name[1..].starts_with(PREFIX) {
                skip("it is being written, or its writer was killed");
            } else if name.starts_with(PREFIX) {
                skip("it is not the name of a version, which is like weight_v000012");
            }
        }
        if versions.is_empty() && skipped.is_empty() {
            return Ok(None);
        }
        skipped.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(Self { path: path.to_path_buf(), versions, skipped, renames: Renames::default() }))
    }

    /// The versions that have a folder, complete or not, in order.
    pub fn versions(&self) -> impl Iterator<Item = Version> {
        self.versions.keys().copied()
    }

    fn load(&self, base: Option<Base<'_>>, target: Option<Version>) -> Result<Loaded> {
        let held = base.map(|b| b.version.unwrap_or(Version(0)));
        let mut skipped = self.skipped.clone();
        if let Some(target) = target {
            return match base {
                Some(base) if held == Some(target) => Ok(unchanged(base, skipped)),
                _ => run(base, self.chain(target, held)?, skipped),
            };
        }
        for version in self.versions.keys().rev().take_while(|v| held.is_none_or(|h| **v > h)) {
            match self.chain(*version, held) {
                Ok(chain) => return run(base, chain, skipped),
                // A bug or the disk is no reason to take older weights.
                Err(e @ VersionError::Write(_)) => return Err(e),
                Err(e) => skipped.push(Skipped { name: version.folder(), why: e.why() }),
            }
        }
        if let Some(base) = base {
            return Ok(unchanged(base, skipped));
        }
        // The newest version's reason, else that of what has no version's name.
        let first = skipped.get(self.skipped.len()).or(skipped.first());
        let reason = first.map_or_else(String::new, |s| format!("; `{}`: {}", s.name, s.why));
        Err(incomplete(
            format!("`{}`", self.path.display()),
            format!("no version in it can be loaded{reason}"),
            "wait until one is published, or publish it again",
        ))
    }

    /// From `target` back to the newest full version, or to what is held.
    fn chain(&self, target: Version, held: Option<Version>) -> Result<Chain> {
        let mut deltas: Vec<Delta> = Vec::new();
        let mut at = target;
        let start = loop {
            // (A target that is held is answered before; going back to it by a full version is possible too.)
            if held == Some(at) && !deltas.is_empty() {
                break None;
            }
            let Some(path) = self.versions.get(&at) else { return Err(self.missing(at, held, deltas.last())) };
            match read::folder(path)? {
                Folder::Full(full) => break Some(full.renamed(&self.renames)?),
                Folder::Delta(delta) => {
                    let delta = delta.renamed(&self.renames)?;
                    // Smaller at each step: the index was refused otherwise.
                    at = delta.base_version;
                    deltas.push(delta);
                }
            }
            if deltas.len() > MAX_CHAIN {
                return Err(format(
                    format!("version {target}"),
                    format!("it is more than {MAX_CHAIN} deltas away from a full version"),
                    "publish a full version",
                ));
            }
        };
        deltas.reverse();
        Ok(Chain { start, deltas })
    }

    fn missing(&self, version: Version, held: Option<Version>, delta: Option<&Delta>) -> VersionError {
        let there = self.path.display();
        let held = held.map_or_else(|| "no weights are held".to_string(), |h| format!("version {h} is held"));
        match delta {
            None => source(
                format!("version {version}"),
                format!("`{there}` has no folder {}", version.folder()),
                "give a version that is there, or publish it",
            ),
            Some(delta) => refuse_base(
                format!("version {}", delta.version),
                format!("it builds on version {version}, which is not in `{there}`; {held}"),
                "publish what is missing, or a full version",
            ),
        }
    }
}

fn unchanged(base: Base<'_>, skipped: Vec<Skipped>) -> Loaded {
    Loaded { checkpoint: base.checkpoint.clone(), version: base.version, steps: Vec::new(), skipped }
}

fn step(delta: &Delta) -> Step {
    Step {
        version: Some(delta.version),
        base_version: Some(delta.base_version),
        encoding: Some(delta.encoding),
        changed: delta.tensors.len(),
        bytes: delta.compressed_bytes(),
    }
}

fn run(base: Option<Base<'_>>, chain: Chain, skipped: Vec<Skipped>) -> Result<Loaded> {
    let mut steps = Vec::new();
    let mut now: Option<(Checkpoint, Option<Version>)> = base.map(|b| (b.checkpoint.clone(), b.version));
    if let Some(full) = chain.start {
        steps.push(Step {
            version: full.version,
            base_version: None,
            encoding: None,
            changed: full.checkpoint.tensors().len(),
            bytes: full.checkpoint.file_bytes(),
        });
        now = Some((full.checkpoint, full.version));
    }
    for delta in &chain.deltas {
        let Some((checkpoint, version)) = &now else { break };
        let made = apply(&Base { checkpoint, version: *version }, delta)?;
        steps.push(step(delta));
        now = Some((made, Some(delta.version)));
    }
    let (checkpoint, version) =
        now.ok_or_else(|| source("the weights", "none are held and none were given", "please report this"))?;
    Ok(Loaded { checkpoint, version, steps, skipped })
}
