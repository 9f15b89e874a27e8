//! `patchhost:patch/identity`: who a patch is.

use super::bindings::identity as wit;
use crate::base::Function;
use crate::base::text;
use crate::sandbox::{Budget, Fault, State, Stats, run};
use patchhost_runtime::hooks::HookCause;
use serde::{Deserialize, Serialize};
use wasmtime::Store;

const NAME_BYTES: usize = 64;
const TEXT_BYTES: usize = 1 << 10;
const TARGETS: usize = 16;
const ARCHITECTURES: usize = 64;

/// Where a patch applies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// `patchhost` for the embedded runtime.
    pub engine: String,
    /// A semver range.
    pub versions: String,
    /// Names as in config.json; empty means any.
    pub architectures: Vec<String>,
}

/// What a patch says about itself. Bounds are checked, control characters escaped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Name, `[a-z0-9_-]`.
    pub name: String,
    /// Semver.
    pub version: String,
    /// One line.
    pub summary: String,
    /// Why the patch exists.
    pub reason: String,
    /// The issue it works around.
    pub upstream: Option<String>,
    /// When it should go.
    pub remove_when: Option<String>,
    /// Where it applies.
    pub targets: Vec<Target>,
}

/// Asks an instance who it is.
pub(super) fn describe(
    store: &mut Store<State>,
    stats: &Stats,
    guest: &wit::Guest,
    budget: &Budget,
) -> Result<Info, Fault> {
    let info = run(store, stats, Function::Describe, budget, |store| guest.call_describe(store))?;
    let checked = convert(info).and_then(|info| check(&info).map(|()| info));
    checked.map_err(|why| Fault { function: Function::Describe, cause: HookCause::BadOutput, why })
}

/// Gives an instance its settings.
pub(super) fn configure(
    store: &mut Store<State>,
    stats: &Stats,
    guest: &wit::Guest,
    settings: &[(String, String)],
    budget: &Budget,
) -> Result<(), Fault> {
    let pairs: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let answer = run(store, stats, Function::Configure, budget, |store| guest.call_configure(store, &pairs))?;
    answer.map_err(|message| Fault {
        function: Function::Configure,
        cause: HookCause::Refused,
        why: text::reason(&message, 512),
    })
}

fn convert(info: wit::Info) -> Result<Info, String> {
    if info.targets.len() > TARGETS {
        return Err(format!("{} targets; the interface allows {TARGETS}", info.targets.len()));
    }
    let bounded = |what: &str, text: String| {
        if text.len() > TEXT_BYTES {
            return Err(format!("`{what}` has {} bytes; the interface allows {TEXT_BYTES}", text.len()));
        }
        Ok(text::clean(&text, 2 * TEXT_BYTES))
    };
    let mut targets = Vec::with_capacity(info.targets.len());
    for target in info.targets {
        if target.architectures.len() > ARCHITECTURES {
            let count = target.architectures.len();
            return Err(format!("{count} architectures in a target; the interface allows {ARCHITECTURES}"));
        }
        let architectures = target.architectures.into_iter().map(|name| bounded("architectures", name));
        targets.push(Target {
            engine: bounded("engine", target.engine)?,
            versions: bounded("versions", target.versions)?,
            architectures: architectures.collect::<Result<_, _>>()?,
        });
    }
    Ok(Info {
        name: bounded("name", info.name)?,
        version: bounded("version", info.version)?,
        summary: bounded("summary", info.summary)?,
        reason: bounded("reason", info.reason)?,
        upstream: info.upstream.map(|text| bounded("upstream", text)).transpose()?,
        remove_when: info.remove_when.map(|text| bounded("remove-when", text)).transpose()?,
        targets,
    })
}

/// What the interface says about `name`, `version` and `versions`, beyond lengths.
pub(crate) fn check(info: &Info) -> Result<(), String> {
    let name_ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_' || c == b'-';
    let Info { name, version, .. } = info;
    if name.is_empty() || name.len() > NAME_BYTES || !name.bytes().all(name_ok) {
        return Err(format!("its name is `{name}`; a name is 1 to {NAME_BYTES} bytes of [a-z0-9_-]"));
    }
    if let Err(error) = semver::Version::parse(version) {
        return Err(format!("its version is `{version}`, which is not semver: {error}"));
    }
    for target in &info.targets {
        if let Err(error) = semver::VersionReq::parse(&target.versions) {
            return Err(format!("target `{}` has versions `{}`: {error}", target.engine, target.versions));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, version: &str, versions: &str) -> Info {
        let target = Target { engine: "patchhost".into(), versions: versions.into(), architectures: vec![] };
        Info { name: name.into(), version: version.into(), targets: vec![target], ..Info::default() }
    }

    #[test]
    fn bounds_of_identity() {
        assert_eq!(check(&info("fp8_block", "0.1.0", ">=0.1, <0.3")), Ok(()));
        assert!(check(&info("", "0.1.0", "*")).is_err());
        assert!(check(&info("FP8", "0.1.0", "*")).is_err());
        assert!(check(&info(&"a".repeat(65), "0.1.0", "*")).is_err());
        assert!(check(&info("a", "1", "*")).is_err());
        assert!(check(&info("a", "1.0.0", "new")).is_err());
    }
}
