//! PH95x: what a patch did when it was asked. `crate::probe` asks; here is what it calls its findings.

use super::Rule;
use crate::audit::report::Finding;
use crate::probe::{ProbeReport, Verdict};

const FAILED: Rule = Rule::error(
    "PH950",
    "probe-failed",
    "An answer was wrong: not what its own profile gives, not what its contract allows, or not the same twice.",
);
const NOTE: Rule =
    Rule::info("PH951", "probe-note", "An answer that is not wrong, and that a reviewer should know of.");

pub(super) const RULES: [Rule; 2] = [FAILED, NOTE];

/// It passed the static rules and could not be started.
pub(crate) fn not_started(why: &str) -> Finding {
    FAILED.finding(
        format!("it could not be started: {}", crate::abi::text::clean(&why.replace('\n', " "), 600)),
        "mend the patch",
    )
}

/// What a probe found, as findings.
pub(crate) fn findings(report: &ProbeReport) -> Vec<Finding> {
    let one = |check: &crate::probe::Check| {
        let why = check.why.clone().unwrap_or_default().replace('\n', " ");
        let message = format!("{}: {}", check.title(), crate::abi::text::clean(&why, 600));
        match check.verdict {
            Verdict::Failed => Some(FAILED.finding(message, "mend the patch; ask the same input again by hand")),
            Verdict::Note => Some(NOTE.finding(message, "say in the review why")),
            Verdict::Passed | Verdict::Skipped => None,
        }
    };
    report.checks.iter().filter_map(one).collect()
}
