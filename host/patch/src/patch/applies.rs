//! Which engine and model a patch is for. What it says about itself (`targets`) is compared with the host that asks, and
//! the answer always comes with its reason: a patch that silently does nothing is worse than none.

use super::Patch;
use crate::abi::Info;
use semver::{Prerelease, Version, VersionReq};
use serde::Serialize;

/// The engine that a patch works in, by the name that targets use (`patchhost`, `vllm`, `sglang`), and its version as the
/// engine writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostIdentity {
    /// Compared letter by letter with a target's `engine`.
    pub engine: String,
    /// Semver, or as Python packages write it: see [`version`].
    pub version: String,
}

/// What patches are applied to: an engine, and the model in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// The engine.
    pub host: HostIdentity,
    /// `architectures[0]` of the model's config.json.
    pub architecture: String,
}

/// Whether a patch is for a model in a host. Never silence: the reason is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Applicability {
    /// One of its targets names this engine, version and architecture.
    Applies,
    /// None does.
    NotApplicable {
        /// Which part does not fit, with both names or numbers.
        reason: String,
    },
}

impl HostIdentity {
    /// An engine by name and version, both as it says them itself.
    pub fn new(engine: impl Into<String>, version: impl Into<String>) -> Self {
        Self { engine: engine.into(), version: version.into() }
    }

    /// This program with its own embedded engine.
    pub fn patchhost() -> Self {
        Self::new("patchhost", env!("CARGO_PKG_VERSION"))
    }
}

impl Description {
    /// A model of this architecture in this program's own engine.
    pub fn patchhost(architecture: impl Into<String>) -> Self {
        Self { host: HostIdentity::patchhost(), architecture: architecture.into() }
    }
}

impl Patch {
    /// Whether one of its targets is this engine, in this version, with this architecture.
    pub fn applies_to(&self, what: &Description) -> Applicability {
        applies(self.info(), what)
    }
}

fn applies(info: &Info, what: &Description) -> Applicability {
    let Description { host: HostIdentity { engine, version: written }, architecture } = what;
    let (engine, written) = (shown(engine), shown(written));
    let not = |reason: String| Applicability::NotApplicable { reason };
    let ours: Vec<_> = info.targets.iter().filter(|target| target.engine == what.host.engine).collect();
    if ours.is_empty() {
        let engines: Vec<_> = info.targets.iter().map(|target| target.engine.as_str()).collect();
        return not(format!("it targets {}, not {engine}", list(&engines)));
    }
    let ranges = || ours.iter().map(|target| target.versions.as_str()).collect::<Vec<_>>().join(" or ");
    let Some(version) = version(&what.host.version) else {
        let why = "which is a version neither by semver nor by PEP 440 and cannot be compared";
        return not(format!("it is for {engine} {}, this is `{written}`, {why}", ranges()));
    };
    let in_range = |range: &str, version: &Version| VersionReq::parse(range).is_ok_and(|range| range.matches(version));
    let current: Vec<_> = ours.iter().filter(|target| in_range(&target.versions, &version)).collect();
    if current.is_empty() {
        let release = Version { pre: Prerelease::EMPTY, ..version.clone() };
        let early = !version.pre.is_empty() && ours.iter().any(|target| in_range(&target.versions, &release));
        let note = if early { " (a pre-release, which only a range that names one takes in)" } else { "" };
        return not(format!("it is for {engine} {}, this is {written}{note}", ranges()));
    }
    let knows = |names: &[String]| names.is_empty() || names.iter().any(|name| name == architecture);
    if current.iter().any(|target| knows(&target.architectures)) {
        return Applicability::Applies;
    }
    let names: Vec<_> = current.iter().flat_map(|target| &target.architectures).map(String::as_str).collect();
    not(format!("it is for {}, the model is {architecture}", list(&names)))
}

/// A version as semver ranges can judge it. What is semver is taken as it is. Python's versions (PEP 440) give their first
/// three release numbers (`0.33` is 0.33.0); alpha, beta, candidate and development versions become pre-releases
/// (`0.33.0rc1` is 0.33.0-rc.1, `0.5.2.dev12+cu128` is 0.5.2-dev.12); post-releases and local parts are ignored
/// (`0.32.0.post1` is 0.32.0: it mends the packaging, not the code). None: an epoch, or no version at all.
pub fn version(text: &str) -> Option<Version> {
    let text = text.trim();
    if let Ok(version) = Version::parse(text) {
        return Some(version);
    }
    let lower = text.to_ascii_lowercase();
    let public = lower.split('+').next().unwrap_or_default();
    let public = public.strip_prefix('v').unwrap_or(public);
    let mut release = Vec::new();
    let mut rest = public;
    loop {
        let digits = digits(rest);
        release.push(digits.parse::<u64>().ok()?);
        rest = &rest[digits.len()..];
        match rest.strip_prefix('.') {
            Some(after) if after.starts_with(|c: char| c.is_ascii_digit()) => rest = after,
            _ => break,
        }
    }
    let mut early = Vec::new();
    // At most one of each kind can follow: a1, post1, dev1, in this order.
    for _ in 0..3 {
        let after = rest.trim_start_matches(['.', '-', '_']);
        if rest.is_empty() {
            break;
        }
        let word: &str = &after[..after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len())];
        let number_at = after[word.len()..].trim_start_matches(['.', '-', '_']);
        let number = digits(number_at);
        let kind = match word {
            "a" | "alpha" => Some("a"),
            "b" | "beta" => Some("b"),
            "rc" | "c" | "pre" | "preview" => Some("rc"),
            "dev" => Some("dev"),
            "post" | "rev" | "r" => None,
            // `1.0-1` is the first post-release of 1.0.
            "" if rest.starts_with('-') && !number.is_empty() => None,
            _ => return None,
        };
        // A number that is left out is 0.
        let number: u64 = if number.is_empty() { 0 } else { number.parse().ok()? };
        early.extend(kind.map(|kind| format!("{kind}.{number}")));
        rest = number_at.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    if !rest.is_empty() {
        return None;
    }
    let part = |i: usize| release.get(i).copied().unwrap_or(0);
    let pre = Prerelease::new(&early.join(".")).ok()?;
    Some(Version { pre, ..Version::new(part(0), part(1), part(2)) })
}

fn digits(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())]
}

/// What others say about themselves, bounded and escaped.
fn shown(text: &str) -> String {
    crate::base::text::clean(text, 60)
}

/// At most three names, and how many more there are.
fn list(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [a, b, c, _, rest @ ..] => format!("{a}, {b}, {c} and {} more", rest.len() + 1),
        few => few.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Target;

    fn info(targets: &[(&str, &str, &[&str])]) -> Info {
        let targets = targets.iter().map(|(engine, versions, names)| Target {
            engine: (*engine).into(),
            versions: (*versions).into(),
            architectures: names.iter().map(|name| (*name).into()).collect(),
        });
        Info { targets: targets.collect(), ..Info::default() }
    }

    fn reason_in(engine: &str, version: &str, info: &Info, architecture: &str) -> String {
        let what = Description { host: HostIdentity::new(engine, version), architecture: architecture.into() };
        match applies(info, &what) {
            Applicability::Applies => String::new(),
            Applicability::NotApplicable { reason } => reason,
        }
    }

    fn reason(info: &Info, architecture: &str) -> String {
        reason_in("patchhost", "0.1.0", info, architecture)
    }

    #[test]
    fn targets_are_matched() {
        let any = info(&[("patchhost", ">=0.1, <0.3", &[])]);
        assert_eq!(reason(&any, "QwenForCausalLM"), "");
        let some = info(&[("patchhost", "*", &["Qwen2MoeForCausalLM"]), ("vllm", "*", &[])]);
        assert_eq!(reason(&some, "Qwen2MoeForCausalLM"), "");
        assert_eq!(reason(&some, "Llama"), "it is for Qwen2MoeForCausalLM, the model is Llama");
        assert_eq!(reason(&info(&[("vllm", "*", &[])]), "x"), "it targets vllm, not patchhost");
        assert_eq!(reason(&info(&[("patchhost", ">=0.2", &[])]), "x"), "it is for patchhost >=0.2, this is 0.1.0");
        assert_eq!(reason(&info(&[]), "x"), "it targets nothing, not patchhost");
    }

    #[test]
    fn other_engines_are_matched_by_their_own_versions() {
        let patch = info(&[("patchhost", "*", &[]), ("vllm", ">=0.32, <0.34", &[]), ("sglang", "=0.5.23", &[])]);
        let in_ = |engine, version| reason_in(engine, version, &patch, "x");
        for version in ["0.32.0", "0.33.0", "0.33", "0.32.0.post1", "0.32.1+cpu", "v0.33.9"] {
            assert_eq!(in_("vllm", version), "", "{version}");
        }
        assert_eq!(in_("sglang", "0.5.23.post2"), "");
        assert_eq!(in_("vllm", "0.34.0"), "it is for vllm >=0.32, <0.34, this is 0.34.0");
        assert_eq!(
            in_("vllm", "0.33.0rc1"),
            "it is for vllm >=0.32, <0.34, this is 0.33.0rc1 (a pre-release, which only a range that names one takes in)"
        );
        assert_eq!(in_("vllm", "0.31.0rc1"), "it is for vllm >=0.32, <0.34, this is 0.31.0rc1");
        assert_eq!(in_("trl", "1.0.0"), "it targets patchhost, vllm, sglang, not trl");
        assert_eq!(in_("vLLM", "0.32.0"), "it targets patchhost, vllm, sglang, not vLLM");
        let unknown = in_("vllm", "nightly\u{1b}[31m");
        assert!(unknown.starts_with("it is for vllm >=0.32, <0.34, this is `nightly"), "{unknown}");
        assert!(unknown.contains("neither by semver nor by PEP 440") && !unknown.contains('\u{1b}'), "{unknown}");
        let early = info(&[("vllm", ">=0.33.0-rc.1, <0.34", &[])]);
        assert_eq!(reason_in("vllm", "0.33.0rc2", &early, "x"), "");
    }

    #[test]
    fn versions_of_python_packages_become_semver() {
        for (written, read) in [
            ("0.32.0", "0.32.0"),
            ("0.32", "0.32.0"),
            ("1", "1.0.0"),
            ("0.32.0.4", "0.32.0"),
            ("0.32.0.post1", "0.32.0"),
            ("0.32.0-1", "0.32.0-1"),
            ("0.32-1", "0.32.0"),
            ("0.33.0rc1", "0.33.0-rc.1"),
            ("0.33.0RC1", "0.33.0-rc.1"),
            ("0.33.0.rc.1", "0.33.0-rc.1"),
            ("0.33.0-alpha", "0.33.0-alpha"),
            ("0.33alpha", "0.33.0-a.0"),
            ("0.33.0b2.post3.dev4", "0.33.0-b.2.dev.4"),
            ("0.5.2.dev12+cu128", "0.5.2-dev.12"),
            ("0.1.dev1+g0123abc.d20261130", "0.1.0-dev.1"),
            ("0.32.1.2.post1+cpu", "0.32.1"),
            (" v0.32.0 ", "0.32.0"),
        ] {
            let version = version(written).unwrap_or_else(|| panic!("{written}"));
            assert_eq!(Version { build: semver::BuildMetadata::EMPTY, ..version }.to_string(), read, "{written}");
        }
        for none in [
            "",
            "nightly",
            "1!0.32.0",
            "0.32.x",
            "0.32.0rc1rc2rc3rc4",
            "0..1",
            ".1",
            "0.32.0final",
            "-1",
            "99999999999999999999",
        ] {
            assert_eq!(version(none), None, "{none}");
        }
    }
}
