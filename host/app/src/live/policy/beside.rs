//! A candidate beside the live set: it does the whole refit apart from everything, and what it made is compared. What the
//! rules do not allow ends it; nothing promotes it.

use patchhost_runtime::refit::Source;
use serde_json::json;

use super::Live;
use crate::patch::{Actor, Beside, CanaryUnit, Compared, Mode, RefitAt, RefitPlan, RefitTarget, Verdict};

/// Findings that are listed; more are counted.
const MOST_FINDINGS: usize = 20;

impl<T: RefitTarget> Live<T> {
    /// Lets a candidate take part in the refit that was just published.
    pub(super) fn beside(&self, plan: &RefitPlan, beside: &Beside, source: &Source, at: RefitAt, label: &str) {
        let (to, mode) = (beside.to.digest(), beside.mode);
        let Compared { mut findings, differing_tensors, seen } =
            self.target.compare(source, &plan.active, &beside.to, &self.board.rules().shadow);
        let more_findings = findings.len().saturating_sub(MOST_FINDINGS);
        findings.truncate(MOST_FINDINGS);
        let good = findings.is_empty();
        let serve = match mode {
            Mode::Canary(percent) if good && self.target.canary() == Some(CanaryUnit::Request) => Some(percent),
            _ => None,
        };
        let verdict = Verdict {
            refit: at.refit,
            version: label.to_owned(),
            live: plan.active.digest(),
            candidate: to,
            mode,
            clean_refits: if good { self.board.clean(&to) } else { 0 },
            differing_tensors,
            findings,
            more_findings,
            serve,
        };
        let file = self.target.judged(&verdict, seen);
        let fields = json!({
            "refit": at.refit, "version": label, "live": verdict.live, "candidate": to, "mode": mode,
            "clean_refits": verdict.clean_refits, "differing_tensors": differing_tensors,
            "findings": verdict.findings, "more_findings": more_findings, "report": file,
        });
        self.board.event("shadow.report", &Actor::policy(), at.with_step(fields));
        if !good {
            let findings: Vec<String> = verdict.findings.iter().map(|f| format!("{} {}", f.tensor, f.what)).collect();
            self.board.reverse(&to, at, &format!("{mode} of it: {}", findings.join("; ")));
        }
    }
}
