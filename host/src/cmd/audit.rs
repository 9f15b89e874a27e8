//! `patchhost audit`: what a reviewer reads before a patch may run.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::args::Format;
use super::failure::{Refused, UsageError};
use crate::audit::{self, AuditOptions, Report, Severity, Style, catalogue, diff};
use crate::patch::{Candidate, Policy, resolve};

/// Says what a component is and what is wrong with it, without running or compiling it
///
/// Exit codes: 0 nothing forbids it; 1 refused; 2 usage, or a file that cannot be read.
#[derive(Debug, clap::Args)]
#[command(after_help = "The rules, what each is for, and how to accept a finding: docs/audit.md")]
pub struct Args {
    /// Components: paths, or names of bundled patches
    #[arg(value_name = "X.wasm", required_unless_present_any = ["rules", "explain"])]
    pub files: Vec<String>,
    /// The policy: caps, severities, accepted findings
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// What changed since this version
    #[arg(long, value_name = "OLD.wasm")]
    pub diff: Option<String>,
    /// List every rule
    #[arg(long)]
    pub rules: bool,
    /// What a rule is for, by its id or name
    #[arg(long, value_name = "PHnnn")]
    pub explain: Option<String>,
}

/// One file, looked at.
struct Audited {
    name: String,
    report: Report,
    more: Vec<(&'static str, String)>,
    diff: Option<diff::Diff>,
    wit: String,
    milliseconds: f64,
}

/// Runs the verb. `sarif`: instead of `format`.
pub fn run(args: Args, format: Format, sarif: bool) -> anyhow::Result<()> {
    if args.rules || args.explain.is_some() {
        return rules(args.explain.as_deref(), format);
    }
    let policy = args.policy.as_deref().map(Policy::read).transpose()?.unwrap_or_default();
    let old = args.diff.as_deref().map(read).transpose()?;
    let mut audited = Vec::new();
    for file in &args.files {
        audited.push(one(&read(file)?, &policy, old.as_ref())?);
    }
    if sarif {
        let files: Vec<(String, &Report)> = audited.iter().map(|one| (one.name.clone(), &one.report)).collect();
        println!("{}", serde_json::to_string_pretty(&audit::sarif(&files))?);
    } else if format == Format::Json {
        let files: Vec<_> = audited.iter().map(json).collect();
        println!("{}", json!({ "files": files, "refused": refused(&audited) }));
    } else {
        let style = if std::io::stdout().is_terminal() { Style::Color } else { Style::Plain };
        for (i, one) in audited.iter().enumerate() {
            if i > 0 {
                println!();
            }
            print!("{}", audit::text(&one.name, &one.report, &one.more, style));
            if let Some(diff) = &one.diff {
                print_diff(diff);
            }
            println!("({:.0} ms)", one.milliseconds);
        }
    }
    match refused(&audited) {
        0 => Ok(()),
        count => Err(Refused::new(format!("{count} of {} files", audited.len())).into()),
    }
}

fn refused(audited: &[Audited]) -> usize {
    audited.iter().filter(|one| one.report.errors() > 0).count()
}

/// Any file: one that is no component, or too large for one, has a report too.
fn read(name: &str) -> anyhow::Result<Candidate> {
    Ok(resolve(name)?)
}

fn one(candidate: &Candidate, policy: &Policy, old: Option<&Candidate>) -> anyhow::Result<Audited> {
    let began = Instant::now();
    let mut options = AuditOptions { policy: policy.audit.clone(), ..AuditOptions::default() };
    let diff = old.map(|old| diff::diff(old.bytes(), candidate.bytes()));
    options.more.extend(diff.iter().flat_map(diff::Diff::findings));
    let report = audit::inspect_with(candidate.bytes(), &options);
    let milliseconds = began.elapsed().as_secs_f64() * 1e3;
    // Only where the cost rules and the validator let it through.
    let wit = if report.validated { diff::wit(candidate.bytes()) } else { String::new() };
    Ok(Audited { name: candidate.name().to_owned(), report, more: Vec::new(), diff, wit, milliseconds })
}

fn json(one: &Audited) -> serde_json::Value {
    json!({
        "file": one.name,
        "report": one.report,
        "verdict": if one.report.errors() > 0 { "refused" } else { "accepted" },
        "notes": one.more.iter().map(|(what, value)| (*what, value)).collect::<std::collections::BTreeMap<_, _>>(),
        "diff": one.diff,
        "interface": one.wit,
        "milliseconds": one.milliseconds,
    })
}

fn print_diff(diff: &diff::Diff) {
    let f = &diff.functions;
    println!("\nsince {} ({} bytes)", diff.old.0, diff.old.1);
    println!(
        "  functions {} changed, {} added, {} removed, {} the same",
        f.changed.len(),
        f.added.len(),
        f.removed.len(),
        f.same
    );
    for changed in &f.changed {
        let (before, now) = changed.instructions;
        println!("    ~ {}  ({})", changed.name, changed.place);
        println!("      {before} instructions before, {now} now; first: `{}` → `{}`", changed.first.0, changed.first.1);
    }
    for (sign, names) in [('+', &f.added), ('-', &f.removed)] {
        for name in names {
            println!("    {sign} {name}");
        }
    }
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    println!("  imports   added {}; removed {}", list(&diff.imports_added), list(&diff.imports_removed));
    if !diff.opcodes.is_empty() {
        let all: Vec<String> = diff.opcodes.iter().map(|(name, count)| format!("{count:+} {name}")).collect();
        println!("  opcodes   {}", all.join(", "));
    }
    let (before, now) = diff.data_bytes;
    let data = if diff.data_changed { "changed" } else { "the same" };
    println!("  data      {data}: {before} bytes before, {now} now");
    let size = i64::try_from(diff.new.1).unwrap_or(0) - i64::try_from(diff.old.1).unwrap_or(0);
    println!("  size      {size:+} bytes");
    if !diff.wit.is_empty() {
        println!("  interface");
        for line in &diff.wit {
            println!("    {line}");
        }
    }
}

fn rules(explain: Option<&str>, format: Format) -> anyhow::Result<()> {
    let mut all = catalogue();
    if let Some(name) = explain {
        all.retain(|rule| rule.id.eq_ignore_ascii_case(name) || rule.slug == name);
        if all.is_empty() {
            let shown = crate::abi::text::clean(name, 60);
            return Err(UsageError::new(
                format!("--explain {shown}"),
                "there is no such rule",
                "`patchhost audit --rules` lists them",
            )
            .into());
        }
    }
    if format == Format::Json {
        println!("{}", json!({ "rules": all }));
        return Ok(());
    }
    for rule in all {
        let severity = match rule.severity {
            Severity::Error => "error",
            Severity::Warn => "warning",
            Severity::Info => "note",
        };
        println!("{} {:<28} {severity:<8} {}", rule.id, rule.slug, rule.about);
    }
    Ok(())
}
