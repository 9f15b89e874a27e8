//! What a probe found, as findings of an audit. The audit's catalogue has the rules; which check breaks which rule is said
//! here.

use super::report::{Check, ProbeReport, Verdict};
use crate::audit::probe_rules::{ANSWERS, CHANGING, CONTRACT, COST, HIDDEN, NUMBERS, PROPERTY, REMARK, UNASKED};
use crate::audit::{Finding, Rule, Severity};
use crate::base::text;

/// The finding (PH955) about a component that passed the static rules and could not be started, so nothing was asked.
pub(crate) fn not_started(why: &str) -> Finding {
    let why = text::clean(&why.replace('\n', " "), 600);
    ANSWERS.finding(format!("it could not be started: {why}"), "mend the patch, or give its settings with --set")
}

/// One finding for each check that failed, that has a remark, or for which there was no time.
pub(super) fn of_probe(report: &ProbeReport) -> Vec<Finding> {
    report.checks.iter().filter_map(of_check).collect()
}

fn of_check(check: &Check) -> Option<Finding> {
    let why = check.why.clone().unwrap_or_default();
    // Where and why are one line each.
    let why = why.split('\n').map(str::trim).collect::<Vec<_>>().join("; ");
    let place = check.title();
    let found = match check.verdict {
        Verdict::Passed => return None,
        Verdict::Skipped if check.out_of_time() => {
            UNASKED.found_at(place, why, "probe again on a machine with less to do")
        }
        Verdict::Skipped => return None,
        Verdict::Note => REMARK.found_at(place, why, "ask its author why, or have it read"),
        Verdict::Failed => rule(check.name).found_at(place, why, "do not use it; its author can ask the same question"),
    };
    debug_assert!(found.severity >= Severity::Warn);
    Some(found)
}

fn rule(check: &str) -> &'static Rule {
    match check {
        "vectors" | "differential" => &NUMBERS,
        "contract" => &CONTRACT,
        "properties" | "locality" | "names" => &PROPERTY,
        "determinism" | "instances" | "history" | "twin" | "twin decisions" | "twin answers" => &CHANGING,
        "places" | "constants" | "odd questions" => &HIDDEN,
        "fuel" => &COST,
        _ => &ANSWERS,
    }
}
