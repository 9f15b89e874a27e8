//! What changed between two versions of a component: what a reviewer of an update reads.

mod body;
mod callees;
mod functions;

use super::report::{Finding, Severity};
use super::rules::Rule;
use super::{Report, inspect};
use crate::base::Digest;
use crate::base::text;
pub use functions::{Changed, FunctionDiff};
use serde::Serialize;
use std::collections::BTreeMap;

const IMPORTS: Rule = Rule::error("PH901", "imports-added", "It asks for more than the version before.");
const EXPORTS: Rule = Rule::error("PH902", "exports-changed", "It takes over other decisions than the version before.");
const FUNCTIONS: Rule = Rule::info("PH903", "functions-changed", "Code that has to be reviewed.");
const SIMILARITY: Rule =
    Rule::warn("PH904", "similarity-low", "Less than 60 % of the functions are the same: not a patch, a rewrite.");
const FEATURES: Rule = Rule::warn("PH905", "features-added", "It uses proposals that the version before did not use.");
const DATA: Rule = Rule::info("PH906", "data-changed", "Constants and texts are others.");
const TOOLCHAIN: Rule = Rule::info("PH907", "toolchain-changed", "Other tools: more changes than the source has.");
const LIMITS: Rule = Rule::warn("PH909", "limits-grown", "It may take more memory than the version before.");
const REPACKED: Rule = Rule::info("PH910", "repacked", "The same code and data in other bytes.");
const OPERATORS: Rule = Rule::info(
    "PH911",
    "new-constant-or-import-call",
    "Constants and calls that changed functions did not have before.",
);

pub(super) const RULES: [Rule; 10] =
    [IMPORTS, EXPORTS, FUNCTIONS, SIMILARITY, FEATURES, DATA, TOOLCHAIN, LIMITS, REPACKED, OPERATORS];

/// Rules whose findings say that a file is not worth reading twice.
const COSTLY: [&str; 7] = ["PH001", "PH003", "PH005", "PH506", "PH801", "PH802", "PH803"];

/// What differs between two versions of a component.
#[derive(Debug, Clone, Serialize)]
pub struct Diff {
    /// Digest and size of the version before.
    pub old: (Digest, usize),
    /// Digest and size of this version.
    pub new: (Digest, usize),
    /// Functions, by normalized body.
    pub functions: FunctionDiff,
    /// Imports that are new.
    pub imports_added: Vec<String>,
    /// Imports that are gone.
    pub imports_removed: Vec<String>,
    /// Exports that are new.
    pub exports_added: Vec<String>,
    /// Exports that are gone.
    pub exports_removed: Vec<String>,
    /// Proposals that are new.
    pub features_added: Vec<&'static str>,
    /// Instructions by name: how many more (or fewer) there are.
    pub opcodes: BTreeMap<&'static str, i64>,
    /// Whether the bytes of data differ.
    pub data_changed: bool,
    /// Bytes of data, before and now.
    pub data_bytes: (usize, usize),
    /// Tools that made it, before and now, where they differ.
    pub toolchain: Option<(String, String)>,
    /// Most pages of memory, before and now.
    pub memory_pages: (u64, u64),
    /// Lines of the interface, `-` before and `+` now.
    pub wit: Vec<String>,
}

/// Compares two versions. Neither need be valid; what could not be read differs.
pub fn diff(old: &[u8], new: &[u8]) -> Diff {
    let (before, now) = (inspect(old), inspect(new));
    let missing = |a: &[String], b: &[String]| a.iter().filter(|name| !b.contains(name)).cloned().collect::<Vec<_>>();
    let mut words = body::Words::default();
    // What the cost rules refuse is not read a second time.
    let costly = |report: &Report| report.findings.iter().any(|f| COSTLY.contains(&f.id));
    let read = |bytes: &[u8], report: &Report, words: &mut body::Words| {
        if costly(report) { body::Side::default() } else { body::read(bytes, words) }
    };
    let (old_side, new_side) = (read(old, &before, &mut words), read(new, &now, &mut words));
    let data = |side: &body::Side| side.images.iter().flat_map(body::Image::bytes).collect::<Vec<u8>>();
    let (old_data, new_data) = (data(&old_side), data(&new_side));
    let tools = |report: &Report| {
        let all = report.facts.all_producers();
        all.iter().map(|p| format!("{} {}", p.name, p.version)).collect::<Vec<_>>().join(", ")
    };
    let (old_tools, new_tools) = (tools(&before), tools(&now));
    Diff {
        old: (before.digest, before.size),
        new: (now.digest, now.size),
        functions: functions::compare(&old_side, &new_side, &words),
        imports_added: missing(&now.imports, &before.imports),
        imports_removed: missing(&before.imports, &now.imports),
        exports_added: missing(&now.exports, &before.exports),
        exports_removed: missing(&before.exports, &now.exports),
        features_added: now.facts.needs().into_iter().filter(|p| !before.facts.proposals.contains_key(p)).collect(),
        opcodes: opcodes(&before, &now),
        data_changed: old_data != new_data,
        data_bytes: (old_data.len(), new_data.len()),
        toolchain: (old_tools != new_tools).then_some((old_tools, new_tools)),
        memory_pages: (before.facts.memory_pages(), now.facts.memory_pages()),
        wit: lines(&wit(old), &wit(new)),
    }
}

fn opcodes(old: &Report, new: &Report) -> BTreeMap<&'static str, i64> {
    let mut delta: BTreeMap<&'static str, i64> = BTreeMap::new();
    for (name, count) in &new.facts.opcodes {
        *delta.entry(name).or_default() += i64::try_from(*count).unwrap_or(i64::MAX);
    }
    for (name, count) in &old.facts.opcodes {
        *delta.entry(name).or_default() -= i64::try_from(*count).unwrap_or(i64::MAX);
    }
    delta.retain(|_, count| *count != 0);
    delta
}

/// The interface as WIT text; empty where it cannot be read.
pub fn wit(bytes: &[u8]) -> String {
    let print = || {
        let decoded = wit_component::decode(bytes).ok()?;
        let package = decoded.package();
        let mut printer = wit_component::WitPrinter::default();
        printer.print(decoded.resolve(), package, &[]).ok()?;
        Some(printer.output.to_string())
    };
    // The bytes are not trusted, and a panic of the reader must not be the end of the audit.
    patchhost_runtime::caught::caught(print).ok().flatten().unwrap_or_default()
}

/// Lines that only one text has.
fn lines(old: &str, new: &str) -> Vec<String> {
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    old.lines().for_each(|line| *counts.entry(line).or_default() -= 1);
    new.lines().for_each(|line| *counts.entry(line).or_default() += 1);
    let mut out = Vec::new();
    for (text, sign) in [(old, -1), (new, 1)] {
        for line in text.lines() {
            let count = counts.entry(line).or_default();
            if count.signum() == sign && !line.trim().is_empty() {
                *count -= sign;
                out.push(format!("{} {}", if sign < 0 { '-' } else { '+' }, text::clean(line, 200)));
            }
        }
    }
    out
}

impl Diff {
    /// Whether nothing differs that anybody could review.
    pub fn is_empty(&self) -> bool {
        let f = &self.functions;
        f.changed.is_empty() && f.added.is_empty() && f.removed.is_empty() && !self.data_changed && self.wit.is_empty()
    }

    /// What differs, as findings.
    pub fn findings(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let names =
            |names: &[String]| names.iter().take(4).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        if !self.imports_added.is_empty() {
            out.push(IMPORTS.finding(names(&self.imports_added), "review what it needs them for"));
        }
        if !self.exports_added.is_empty() || !self.exports_removed.is_empty() {
            let message = format!(
                "added {}; removed {}",
                or_none(names(&self.exports_added)),
                or_none(names(&self.exports_removed))
            );
            out.push(EXPORTS.finding(message, "review the decisions that it takes over"));
        }
        let f = &self.functions;
        let touched = f.changed.len() + f.added.len() + f.removed.len();
        if touched > 0 {
            let changed: Vec<String> = f.changed.iter().map(|c| c.name.clone()).collect();
            let mut message = format!("{} of {} functions changed", f.changed.len(), f.total);
            for (what, list) in [("", &changed), ("added ", &f.added), ("removed ", &f.removed)] {
                if !list.is_empty() {
                    let more = if list.len() > 4 { format!(" and {} more", list.len() - 4) } else { String::new() };
                    message += &format!("; {what}{}{more}", names(list));
                }
            }
            out.push(FUNCTIONS.finding(message, "review them"));
        }
        if f.total > 0 && f.same * 10 < f.total * 6 {
            let message = format!("{} of {} functions are the same", f.same, f.total);
            out.push(SIMILARITY.finding(message, "review it as a new patch"));
        }
        if !self.features_added.is_empty() {
            out.push(FEATURES.finding(self.features_added.join(", "), "ask why"));
        }
        if self.data_changed {
            let (old, new) = self.data_bytes;
            out.push(DATA.finding(format!("{old} bytes before, {new} now"), "review the strings"));
        }
        if let Some((old, new)) = &self.toolchain {
            out.push(TOOLCHAIN.finding(format!("{old} before, {new} now"), "build both with the same tools"));
        }
        if self.memory_pages.1 > self.memory_pages.0 {
            let (old, new) = self.memory_pages;
            out.push(LIMITS.finding(format!("{old} pages before, {new} now"), "ask why"));
        }
        if self.is_empty() && self.old.0 != self.new.0 {
            out.push(REPACKED.finding("code and data are the same", "nothing"));
        }
        for changed in f.changed.iter().filter(|c| !c.constants.is_empty() || !c.calls.is_empty()).take(4) {
            let new = changed.constants.iter().chain(&changed.calls).take(6).cloned().collect::<Vec<_>>().join(", ");
            out.push(OPERATORS.found_at(
                &changed.place,
                format!("`{}`: {new}", changed.name),
                "review what they are for",
            ));
        }
        out.sort_by(|a, b| (b.severity, a.id).cmp(&(a.severity, b.id)));
        out
    }

    /// Whether a finding would refuse it.
    pub fn errors(&self) -> usize {
        self.findings().iter().filter(|finding| finding.severity == Severity::Error).count()
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}
