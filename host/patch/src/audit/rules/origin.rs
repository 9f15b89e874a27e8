//! PH7xx, but for trust: where it comes from, as the file itself says.

use super::Rule;
use crate::audit::input::Input;
use crate::audit::report::Finding;

const NO_PRODUCERS: Rule = Rule::warn("PH701", "no-producers", "It does not say what made it.");
const TOOLCHAIN: Rule = Rule::warn(
    "PH702",
    "toolchain",
    "It says that it was made by tools that the policy does not name. That it names the right ones proves nothing: \
     `patchhost rebuild` does.",
);
const STRIPPED: Rule =
    Rule::info("PH703", "stripped-names", "Functions without names: findings and diffs can only give numbers.");
const DEBUG_INFO: Rule = Rule::info("PH704", "debug-info", "Much of the file is debug information.");
const HOST: Rule =
    Rule::error("PH715", "host-outdated", "An advisory affects the engine inside this host, as it is built.");
const OLD_LIST: Rule = Rule { severity: crate::audit::Severity::Info, ..HOST };
const DEPENDENCIES: Rule =
    Rule::info("PH716", "guest-deps", "Whether the file lists the crates in it, to be checked for advisories.");

pub(super) const RULES: [Rule; 6] = [NO_PRODUCERS, TOOLCHAIN, STRIPPED, DEBUG_INFO, HOST, DEPENDENCIES];

/// When the list of advisories was last looked through, in days since 1970: 2026-11-28.
const LOOKED_THROUGH: u64 = 20_785;
/// Days after which it is old.
const OLD: u64 = 90;
/// Advisories that affect the release line of the engine that this crate is built with.
const ADVISORIES: &[Advisory] = &[Advisory {
    id: "RUSTSEC-2026-0570 (GHSA-rc4p-x33f-vpr2)",
    what: "abort of builds without the cargo feature `gc`",
    first: "47.0.0",
    fixed: "48.0.9",
    // The default features have it; here it was off until this advisory. The engine still gives no guest a collector.
    unless_feature: Some("gc"),
    // Low (2.2), and only for embedders with privileges; a trial compile and `--isolate` keep an abort out of this process.
    severity: crate::audit::Severity::Info,
}];

/// One advisory about the engine, for one of its release lines.
struct Advisory {
    id: &'static str,
    what: &'static str,
    first: &'static str,
    fixed: &'static str,
    /// A cargo feature of the engine with which a build is not affected.
    unless_feature: Option<&'static str>,
    severity: crate::audit::Severity,
}
/// The engine, as Cargo.toml has it.
pub(in crate::audit) const ENGINE: &str = "48.0.8";
/// The cargo features of it that this build has, as Cargo.toml has them: what an advisory may depend on.
const FEATURES: &[&str] =
    &["runtime", "cranelift", "component-model", "std", "gc", "parallel-compilation", "pooling-allocator", "demangle"];

impl Advisory {
    /// Whether it affects an engine of this version, built with these features.
    fn affects(&self, version: &str, features: &[&str]) -> bool {
        let line = older(version, self.fixed) && !older(version, self.first);
        line && !self.unless_feature.is_some_and(|feature| features.contains(&feature))
    }
}

pub(super) fn check(input: &Input<'_>, out: &mut Vec<Finding>) {
    let facts = input.facts;
    let producers = facts.all_producers();
    if producers.is_empty() {
        out.push(NO_PRODUCERS.finding("no producers section", "keep it when stripping: `strip = \"debuginfo\"`"));
    }
    let allowed = input.toolchains;
    let unknown = producers.iter().find(|p| {
        p.field == "processed-by"
            && !allowed
                .iter()
                .any(|name| p.name == *name || format!("{} {}", p.name, p.version).starts_with(name.as_str()))
    });
    if let Some(tool) = unknown.filter(|_| !allowed.is_empty()) {
        let message = format!("`{} {}`; the policy names {}", tool.name, tool.version, allowed.join(", "));
        out.push(
            TOOLCHAIN.finding(message, "build it with a tool of the policy, or add this one to `audit.toolchains`"),
        );
    }
    let nameless = |module: &crate::audit::ModuleFacts| {
        module.code.iter().filter(|function| !module.names.contains_key(&function.cost.index)).count()
    };
    let nameless: usize = facts.modules.iter().map(nameless).sum();
    if nameless > 0 {
        let message = format!("{nameless} of {} functions have no name", facts.functions);
        out.push(STRIPPED.finding(message, "build with `strip = \"debuginfo\"`"));
    }
    if facts.debug_bytes * 10 > input.bytes.len() * 3 {
        let share = 100 * facts.debug_bytes / input.bytes.len().max(1);
        out.push(DEBUG_INFO.finding(format!("{share} % of the file"), "build with `strip = \"debuginfo\"`"));
    }
    // What is in the list is the author's word, and compressed: that there is one says little, but where to look.
    match facts.customs.iter().find(|(name, _)| name == ".dep-v0") {
        Some((_, bytes)) => out.push(DEPENDENCIES.finding(
            format!("a section that is called like a list of crates (`.dep-v0`, {bytes} bytes); not read here"),
            "check it for advisories with `cargo audit bin`",
        )),
        None if facts.functions > 0 => {
            out.push(DEPENDENCIES.finding("no list of crates (`.dep-v0`)", "build with `cargo auditable`"));
        }
        None => {}
    }
    for advisory in ADVISORIES.iter().filter(|a| a.affects(ENGINE, FEATURES)) {
        let Advisory { id, what, fixed, severity, .. } = advisory;
        let message = format!("{id}: {what}; affects wasmtime {ENGINE}, mended in {fixed}");
        out.push(Finding {
            severity: *severity,
            ..HOST.finding(message, "update patchhost when it has the mended engine")
        });
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let days = (now / 86_400).saturating_sub(LOOKED_THROUGH);
    if days > OLD {
        let message = format!("this host's list of advisories for wasmtime {ENGINE} is {days} days old");
        out.push(OLD_LIST.finding(message, "update patchhost, or look at the advisories yourself"));
    }
}

fn older(version: &str, than: &str) -> bool {
    match (semver::Version::parse(version), semver::Version::parse(than)) {
        (Ok(version), Ok(than)) => version < than,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_engine_is_the_one_that_is_linked() {
        let manifest = include_str!("../../../../../Cargo.toml");
        assert!(manifest.contains(&format!("wasmtime = {{ version = \"{}\"", super::ENGINE)));
        assert!(super::older("48.0.8", "48.0.9") && !super::older("48.0.8", "48.0.8"));
        let line = manifest.lines().find(|l| l.starts_with("wasmtime = ")).unwrap_or_default();
        let listed: Vec<String> = super::FEATURES.iter().map(|f| format!("\"{f}\"")).collect();
        assert!(line.contains(&format!("features = [{}]", listed.join(", "))), "{line}");
        assert!(line.contains("default-features = false"), "{line}");
    }

    #[test]
    fn an_advisory_affects_some_versions_and_some_builds() {
        let gc = super::ADVISORIES.iter().find(|a| a.id.starts_with("RUSTSEC-2026-0570"));
        let affects = |version, features: &[&str]| gc.is_some_and(|a| a.affects(version, features));
        assert!(affects("48.0.8", &["runtime", "cranelift"]), "without the feature");
        assert!(!affects("48.0.8", &["runtime", "gc"]), "with it");
        assert!(!affects("48.0.9", &[]) && !affects("46.9.9", &[]) && affects("47.0.0", &[]));
        assert!(!affects(super::ENGINE, super::FEATURES), "this build");
    }
}
