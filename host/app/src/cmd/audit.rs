//! `patchhost audit`: what a reviewer reads before a patch may run.

use std::io::IsTerminal;
use std::time::Instant;

use serde_json::json;

use super::Call;
use super::args::Format;
use super::failure::{Failure, Result, UsageError};
use super::session::{parse_setting, progress_bar, sandbox};
use super::trust_args::TrustFiles;
use crate::audit::{self, AuditOptions, Finding, Report, Severity, Style, catalogue, diff};
use crate::patch::{Candidate, Terms, resolve};
use crate::probe::{self, ProbeOptions, ProbeReport, Verdict};
use crate::trust::{Gate, Policy};

/// Says what a component is and what is wrong with it, without running or compiling it
///
/// Exit codes: 0 nothing forbids it; 1 refused; 2 usage, or a file that cannot be read.
#[derive(Debug, clap::Args)]
#[command(after_help = "The rules, what each is for, and how to accept a finding: docs/audit.md")]
pub struct Args {
    /// Components: paths, or names of bundled patches
    #[arg(value_name = "X.wasm", required_unless_present_any = ["rules", "explain"])]
    pub files: Vec<String>,
    /// Also start it and ask it: golden vectors, properties, bounds (docs/probe.md)
    #[arg(long)]
    pub probe: bool,
    /// A setting that it is asked with, and that the lock must have: KEY=VALUE; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    #[command(flatten)]
    pub trust: TrustFiles,
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

/// What was found in one file.
struct Audited {
    name: String,
    report: Report,
    more: Vec<(&'static str, String)>,
    diff: Option<diff::Diff>,
    probe: Option<ProbeReport>,
    wit: String,
    milliseconds: f64,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    if args.rules || args.explain.is_some() {
        return rules(args.explain.as_deref(), format);
    }
    let (policy, places) = args.trust.read()?;
    let settings = args.settings.iter().map(|s| parse_setting(s)).collect::<Result<Vec<_>, _>>()?;
    let gate = Gate::for_writing(&policy, places);
    let old = args.diff.as_deref().map(resolve).transpose()?;
    let mut audited = Vec::new();
    for file in &args.files {
        let with = With { policy: &policy, gate: &gate, settings: &settings, old: old.as_ref(), probe: args.probe };
        audited.push(one(resolve(file)?, &with)?);
    }
    if call.sarif {
        let files: Vec<(String, &Report)> = audited.iter().map(|one| (one.name.clone(), &one.report)).collect();
        super::output::json(&audit::sarif(&files))?;
    } else if format == Format::Json {
        let files: Vec<_> = audited.iter().map(json).collect();
        outln!("{}", json!({ "files": files, "refused": refused(&audited) }));
    } else {
        let style = if std::io::stdout().is_terminal() { Style::Color } else { Style::Plain };
        for (i, one) in audited.iter().enumerate() {
            if i > 0 {
                outln!();
            }
            out!("{}", audit::text(&one.name, &one.report, &one.more, style));
            if let Some(diff) = &one.diff {
                print_diff(diff);
            }
            if let Some(probe) = &one.probe {
                print_probe(probe);
            }
            outln!("({:.0} ms)", one.milliseconds);
        }
    }
    match refused(&audited) {
        0 => Ok(()),
        count => Err(Failure::findings(&format!("{count} of {} files", audited.len()))),
    }
}

fn refused(audited: &[Audited]) -> usize {
    audited.iter().filter(|one| one.report.errors() > 0).count()
}

/// What is the same for all files of the command.
struct With<'a> {
    policy: &'a Policy,
    gate: &'a Gate,
    settings: &'a [(String, String)],
    old: Option<&'a Candidate>,
    probe: bool,
}

fn one(candidate: Candidate, with: &With<'_>) -> Result<Audited> {
    let began = Instant::now();
    let judgement = with.gate.judge(&candidate, (!with.settings.is_empty()).then_some(with.settings))?;
    let mut options = AuditOptions {
        policy: with.policy.audit.clone(),
        grants: judgement.grants.clone(),
        more: judgement.findings.into_iter().map(|finding| before_the_decision(finding, with.probe)).collect(),
    };
    let diff = with.old.map(|old| diff::diff(old.bytes(), candidate.bytes()));
    options.more.extend(diff.iter().flat_map(diff::Diff::findings));
    let mut report = audit::inspect_with(candidate.bytes(), &options);
    let name = candidate.name().to_owned();
    for finding in &mut report.findings {
        finding.fix = finding.fix.replace("X.wasm", &crate::base::quoted(name.as_ref()));
    }
    // Only where the cost rules and the validator let it through.
    let wit = if report.validated { diff::wit(candidate.bytes()) } else { String::new() };
    let more = vec![("trust", judgement.summary.line())];
    let mut audited = Audited { name, report, more, diff, probe: None, wit, milliseconds: 0.0 };
    if with.probe && audited.report.errors() == 0 {
        let settings = judgement.entry.map_or_else(|| with.settings.to_vec(), |entry| entry.pairs());
        ask(candidate, with.gate, settings, &mut audited)?;
    }
    audited.milliseconds = began.elapsed().as_secs_f64() * 1e3;
    Ok(audited)
}

/// That the lock does not have it yet is what a review is for, and not a reason against reading it. Starting it is another
/// matter: what is asked must be locked, where there is a lock.
fn before_the_decision(finding: Finding, starts: bool) -> Finding {
    match finding.id {
        "PH709" | "PH710" if !starts => Finding { severity: Severity::Warn, ..finding },
        _ => finding,
    }
}

/// Starts it in a sandbox of its own, if the gate lets it in, and asks it everything. What fails there is a finding too.
fn ask(candidate: Candidate, gate: &Gate, settings: Vec<(String, String)>, audited: &mut Audited) -> Result {
    let sandbox = sandbox(2)?;
    let bar = progress_bar("probe");
    let shown = bar.clone();
    let progress = move |check: &str| shown.set_message(check.to_owned());
    let thorough = ProbeOptions { progress: Some(std::sync::Arc::new(progress)), ..ProbeOptions::thorough() };
    let asked = candidate
        .admit(gate, &Terms::settings(settings))
        .and_then(|admitted| probe::examine(admitted, &sandbox.into(), &thorough));
    match asked {
        Ok((_, report)) => {
            audited.report.findings.extend(report.findings());
            audited.probe = Some(report);
        }
        Err(error) => audited.report.findings.push(probe::not_started(&error.why())),
    }
    audited.report.sort();
    bar.finish_and_clear();
    Ok(())
}

fn json(one: &Audited) -> serde_json::Value {
    json!({
        "file": one.name,
        "report": one.report,
        "verdict": if one.report.errors() > 0 { "refused" } else { "accepted" },
        "notes": one.more.iter().map(|(what, value)| (*what, value)).collect::<std::collections::BTreeMap<_, _>>(),
        "diff": one.diff,
        "probe": one.probe,
        "interface": one.wit,
        "milliseconds": one.milliseconds,
    })
}

fn print_diff(diff: &diff::Diff) {
    let f = &diff.functions;
    outln!("\nsince {} ({} bytes)", diff.old.0, diff.old.1);
    outln!(
        "  functions {} changed, {} added, {} removed, {} the same",
        f.changed.len(),
        f.added.len(),
        f.removed.len(),
        f.same
    );
    for changed in &f.changed {
        let (before, now) = changed.instructions;
        outln!("    ~ {}  ({})", changed.name, changed.place);
        outln!("      {before} instructions before, {now} now; first: `{}` → `{}`", changed.first.0, changed.first.1);
    }
    for (sign, names) in [('+', &f.added), ('-', &f.removed)] {
        for name in names {
            outln!("    {sign} {name}");
        }
    }
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    outln!("  imports   added {}; removed {}", list(&diff.imports_added), list(&diff.imports_removed));
    if !diff.opcodes.is_empty() {
        let all: Vec<String> = diff.opcodes.iter().map(|(name, count)| format!("{count:+} {name}")).collect();
        outln!("  opcodes   {}", all.join(", "));
    }
    let (before, now) = diff.data_bytes;
    let data = if diff.data_changed { "changed" } else { "the same" };
    outln!("  data      {data}: {before} bytes before, {now} now");
    let size = i64::try_from(diff.new.1).unwrap_or(0) - i64::try_from(diff.old.1).unwrap_or(0);
    outln!("  size      {size:+} bytes");
    if !diff.wit.is_empty() {
        outln!("  interface");
        for line in &diff.wit {
            outln!("    {line}");
        }
    }
}

fn print_probe(report: &ProbeReport) {
    let of = report.profile.as_deref().map(|profile| format!(", profile {profile}")).unwrap_or_default();
    outln!("\nasked {}{of}: {} answers in {:.1} s", report.patch, report.asked(), report.seconds);
    for check in &report.checks {
        let word = match check.verdict {
            Verdict::Passed => "ok",
            Verdict::Failed => "FAILED",
            Verdict::Note => "note",
            Verdict::Skipped => "-",
        };
        let worst = check.worst.as_deref().map(|worst| format!("  ({worst})")).unwrap_or_default();
        outln!("  {word:<7}{:<28}{:>8}  {}{worst}", check.title(), check.asked, check.about);
        if let Some(why) = &check.why {
            outln!("         {}", why.replace('\n', "\n         "));
        }
    }
}

fn rules(explain: Option<&str>, format: Format) -> Result {
    let mut all = catalogue();
    if let Some(name) = explain {
        all.retain(|rule| rule.id.eq_ignore_ascii_case(name) || rule.slug == name);
        if all.is_empty() {
            let shown = crate::base::text::clean(name, 60);
            return Err(UsageError::new(
                format!("--explain {shown}"),
                "there is no such rule",
                "`patchhost audit --rules` lists them",
            )
            .into());
        }
    }
    if format == Format::Json {
        outln!("{}", json!({ "rules": all }));
        return Ok(());
    }
    for rule in all {
        let severity = match rule.severity {
            Severity::Error => "error",
            Severity::Warn => "warning",
            Severity::Info => "note",
        };
        outln!("{} {:<28} {severity:<8} {}", rule.id, rule.slug, rule.about);
    }
    Ok(())
}
