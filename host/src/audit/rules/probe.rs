//! PH95x: what a probe found out by asking (`patchhost audit --probe`, and before a patch becomes live).

use super::Rule;
use crate::audit::report::{Finding, Severity};
use crate::probe::{Check, ProbeReport, Verdict};

const NUMBERS: Rule = Rule::error(
    "PH950",
    "wrong-numbers",
    "Scales differ from those of the profile that it declares, or from native code, in at least one bit.",
);
const CONTRACT: Rule =
    Rule::error("PH951", "contract-broken", "The native cast disproved a scale against the contract that it declares.");
const PROPERTY: Rule = Rule::error(
    "PH952",
    "property-broken",
    "Scales are not finite and positive, do not grow with amax, or depend on other blocks, places or names.",
);
const CHANGING: Rule = Rule::error(
    "PH953",
    "not-deterministic",
    "The same question had another answer: again, in another instance, after many calls, or in unoptimized code.",
);
const HIDDEN: Rule = Rule::error(
    "PH954",
    "special-case",
    "The answer is wrong for one number that stands in the component, one layer, or one size of a question.",
);
const ANSWERS: Rule = Rule::error(
    "PH955",
    "wrong-answer",
    "A hook gave no answer, one that a refit would refuse, or another one in another order.",
);
const COST: Rule = Rule::error("PH956", "fuel-failed", "It reached a limit while its fuel was measured.");
const REMARK: Rule =
    Rule::warn("PH957", "probe-remark", "An answer that is allowed, and that somebody should look at before using it.");
const UNASKED: Rule = Rule::warn("PH958", "not-asked", "Time was up before everything was asked.");

pub(super) const RULES: [Rule; 9] = [NUMBERS, CONTRACT, PROPERTY, CHANGING, HIDDEN, ANSWERS, COST, REMARK, UNASKED];

/// It passed the static rules and could not be started.
pub(crate) fn not_started(why: &str) -> Finding {
    let why = crate::base::text::clean(&why.replace('\n', " "), 600);
    ANSWERS.finding(format!("it could not be started: {why}"), "mend the patch, or give its settings with --set")
}

/// One finding for each check that failed, that has a remark, or for which there was no time.
pub(crate) fn of_probe(report: &ProbeReport) -> Vec<Finding> {
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
