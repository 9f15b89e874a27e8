//! The report for people: what it is first, then what is wrong, worst first, then the verdict.

use super::{Finding, Kind, Report, Severity};
use crate::audit::{Facts, Rule, catalogue};
use std::fmt::Write;

/// Colors of a terminal, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Text without colors, for files and pipes.
    Plain,
    /// With escape sequences for severities.
    Color,
}

/// The report of one file. `more`: lines of others about the same bytes, name and value: signatures, the lock.
pub fn text(name: &str, report: &Report, more: &[(&str, String)], style: Style) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, name, report, more, style);
    out
}

fn write(out: &mut String, name: &str, report: &Report, more: &[(&str, String)], style: Style) -> std::fmt::Result {
    writeln!(out, "{name}  {}  {} bytes", report.digest, report.size)?;
    let mut line = |what: &str, value: String| writeln!(out, "  {what:<10}{value}");
    let facts = &report.facts;
    if report.kind == Kind::Component {
        line("made by", or(tools(facts), "it does not say"))?;
        let hooks: Vec<&str> = report.hooks.iter().map(|hook| hook.name()).collect();
        let world = hooks.iter().copied().chain(report.has_state().then_some("state")).collect::<Vec<_>>().join(", ");
        line("world", format!("patchhost:patch: {}", or(world, "none of its hooks")))?;
        line("imports", or(report.imports.join(", "), "none"))?;
        line("needs", or(facts.needs().join(", ").replace('_', "-"), "the first WebAssembly only"))?;
        line("memory", memory(facts))?;
        line("code", code(facts))?;
        line("data", data(facts))?;
    }
    for (what, value) in more {
        line(what, value.clone())?;
    }
    let all = catalogue();
    for finding in report.findings.iter().filter(|finding| finding.severity != Severity::Info) {
        self::finding(out, finding, &all, style)?;
    }
    let notes: Vec<&Finding> = report.findings.iter().filter(|finding| finding.severity == Severity::Info).collect();
    if !notes.is_empty() {
        writeln!(out, "\nnotes")?;
        for note in notes {
            writeln!(out, "  {}", note.line())?;
        }
    }
    let verdict = match (report.errors(), report.validated) {
        (0, true) => "nothing forbids it",
        (0, false) => "not validated",
        (_, true) => "REFUSED",
        (_, false) => "REFUSED before it was validated",
    };
    let count = |severity, one: &str| {
        let n = report.count(severity);
        format!("{n} {one}{}", if n == 1 { "" } else { "s" })
    };
    let (errors, warnings) = (count(Severity::Error, "error"), count(Severity::Warn, "warning"));
    writeln!(out, "\n{name}: {verdict}: {errors}, {warnings}, {}", count(Severity::Info, "note"))
}

fn finding(out: &mut String, finding: &Finding, all: &[Rule], style: Style) -> std::fmt::Result {
    let (word, color) = match finding.severity {
        Severity::Error => ("error", "\x1b[1;31m"),
        Severity::Warn => ("warning", "\x1b[1;33m"),
        Severity::Info => ("note", "\x1b[1;36m"),
    };
    let word = if style == Style::Color { format!("{color}{word}\x1b[0m") } else { word.to_owned() };
    writeln!(out, "\n{word} {} {}: {}", finding.id, finding.slug, finding.message)?;
    if !finding.where_.is_empty() {
        writeln!(out, "  where  {}", finding.where_)?;
    }
    if let Some(rule) = all.iter().find(|rule| rule.id == finding.id) {
        writeln!(out, "  why    {}", rule.about)?;
    }
    writeln!(out, "  do     {}", finding.fix)
}

fn some(count: usize, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

fn or(text: String, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text }
}

fn tools(facts: &Facts) -> String {
    let tools = facts.all_producers();
    let named = tools.iter().filter(|p| p.field == "processed-by");
    named
        .map(|p| format!("{} {}", p.name, p.version.split(' ').next().unwrap_or_default()))
        .collect::<Vec<_>>()
        .join(", ")
}

fn memory(facts: &Facts) -> String {
    let memories = facts.modules.iter().flat_map(|module| &module.memories);
    let memories: Vec<String> = memories
        .map(|m| match m.max {
            Some(max) => format!("{} to {max} pages", m.min),
            None => format!("{} pages and no maximum", m.min),
        })
        .collect();
    let tables: usize = facts.modules.iter().map(|module| module.tables.len()).sum();
    let elements: u64 = facts.modules.iter().flat_map(|m| &m.tables).map(|(min, _)| *min).fold(0, u64::saturating_add);
    let memories = or(memories.join(", "), "none");
    format!("{memories}; {} of {elements}; {} memory.grow", some(tables, "table"), facts.memory_grows)
}

fn code(facts: &Facts) -> String {
    let functions = || facts.modules.iter().flat_map(|module| &module.code);
    let loops: u64 = functions().map(|f| u64::from(f.loops)).sum();
    let endless: usize = functions().map(|f| f.endless.len()).sum();
    let classes = facts.classes();
    let of = |class: &str| classes.get(class).copied().unwrap_or(0);
    format!(
        "{} bytes, {} functions in {}, {loops} loops ({endless} without an end), {} indirect calls; {} integer, {} \
         float, {} SIMD instructions",
        facts.code_bytes(),
        facts.functions,
        some(facts.modules.len(), "module"),
        facts.indirect_calls,
        of("integer"),
        of("float"),
        of("simd"),
    )
}

fn data(facts: &Facts) -> String {
    let segments: Vec<_> = facts.modules.iter().flat_map(|module| &module.data).collect();
    let strings: usize = segments.iter().map(|segment| segment.strings).sum();
    let entropy = segments.iter().map(|segment| segment.entropy).fold(0.0, f64::max);
    format!(
        "{} bytes in {}, {strings} texts, at most {entropy:.1} bits per byte",
        facts.data_bytes(),
        some(segments.len(), "segment")
    )
}
