//! A candidate beside the live set: it does the whole refit apart from everything, and what it made is compared tensor by
//! tensor. What the policy does not allow ends it; nothing promotes it.

use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use patchhost_runtime::hooks::Decision;
use patchhost_runtime::refit::{RefitReport, Source};
use patchhost_runtime::weights::WeightSet;
use serde::Serialize;
use serde_json::json;

use super::canary::{CanaryUnit, CanaryWeights, chosen};
use super::{LiveError, LiveModel};
use crate::base::Digest;
use crate::base::file::{Access, write_whole_unsynced};
use crate::compare::{State, TensorRow, Totals, compare_unit, decide, of_model, totals};
use crate::patch::{Actor, Beside, Mode, RefitPlan, ShadowPolicy};

/// Findings that are listed; more are counted.
const MOST_FINDINGS: usize = 20;

/// What a comparison found.
#[derive(Debug, Clone, Serialize)]
pub struct ShadowReport {
    /// Number of the refit.
    pub refit: u64,
    /// What the trainer calls the weights.
    pub version: String,
    /// The live set.
    pub live: Digest,
    /// The candidate.
    pub candidate: Digest,
    /// Shadow or canary.
    pub mode: Mode,
    /// Refits in a row without a finding, this one included.
    pub clean_refits: u64,
    /// What the candidate's refit did.
    pub report: Option<RefitReport>,
    /// Runtime tensors whose bytes or layout differ between the two.
    pub differing_tensors: usize,
    /// Sums over the tensors that either quantizes; A is the live set, B the candidate.
    pub totals: Totals,
    /// The tensors.
    pub tensors: Vec<TensorRow>,
    /// What the policy does not allow; empty is good.
    pub findings: Vec<TensorFinding>,
    /// Findings beyond those that are listed.
    pub more_findings: usize,
}

/// One thing that the policy does not allow.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorFinding {
    /// Name of the tensor; empty for the refit as a whole.
    pub tensor: String,
    /// What, with the number and the limit.
    pub what: String,
}

impl ShadowReport {
    /// The same without its tensors.
    pub fn summary(&self) -> Self {
        Self {
            refit: self.refit,
            version: self.version.clone(),
            live: self.live,
            candidate: self.candidate,
            mode: self.mode,
            clean_refits: self.clean_refits,
            report: self.report.clone(),
            differing_tensors: self.differing_tensors,
            totals: self.totals.clone(),
            tensors: Vec::new(),
            findings: self.findings.clone(),
            more_findings: self.more_findings,
        }
    }
}

impl LiveModel {
    /// The last comparison of a candidate, with its tensors.
    pub fn shadow_report(&self) -> Option<Arc<ShadowReport>> {
        self.shadow.load_full()
    }

    /// Lets a candidate take part in the refit that was just published.
    pub(super) fn beside(&self, plan: &RefitPlan, beside: &Beside, source: &Source, refit: u64, label: &str) {
        let to = beside.to.digest();
        let mut report = ShadowReport {
            refit,
            version: label.to_owned(),
            live: plan.active.digest(),
            candidate: to,
            mode: beside.mode,
            clean_refits: 0,
            report: None,
            differing_tensors: 0,
            totals: Totals::default(),
            tensors: Vec::new(),
            findings: Vec::new(),
            more_findings: 0,
        };
        let made = self.compare_with(plan, beside, source, &mut report);
        let weights = match made {
            Ok(weights) => Some(weights),
            Err(error) => {
                let what = crate::base::text::clean(&error.to_string().replace('\n', " "), 600);
                report.findings.push(TensorFinding { tensor: String::new(), what });
                None
            }
        };
        report.more_findings += report.findings.len().saturating_sub(MOST_FINDINGS);
        report.findings.truncate(MOST_FINDINGS);
        let good = report.findings.is_empty();
        if good {
            report.clean_refits = self.board.clean(&to);
        }
        let file = self.options.reports.as_deref().and_then(|folder| write(folder, &report));
        let fields = json!({
            "refit": refit, "version": label, "live": report.live, "candidate": to, "mode": beside.mode,
            "clean_refits": report.clean_refits, "differing_tensors": report.differing_tensors,
            "findings": report.findings, "more_findings": report.more_findings, "report": file,
        });
        self.board.event("shadow.report", &Actor::policy(), fields);
        let findings: Vec<String> = report.findings.iter().map(|f| format!("{} {}", f.tensor, f.what)).collect();
        self.shadow.store(Some(Arc::new(report)));
        match (good, beside.mode, weights) {
            (true, Mode::Canary(percent), Some(weights)) if self.options.canary == CanaryUnit::Request => {
                self.canary.store(Some(Arc::new(CanaryWeights { percent, to, weights: Arc::new(weights) })));
            }
            (true, ..) => self.canary.store(None),
            (false, ..) => {
                self.canary.store(None);
                self.board.reverse(&to, refit, &format!("{} of it: {}", beside.mode, findings.join("; ")));
            }
        }
    }

    fn compare_with(
        &self,
        plan: &RefitPlan,
        beside: &Beside,
        source: &Source,
        report: &mut ShadowReport,
    ) -> Result<WeightSet, LiveError> {
        let live = self.engine.live()?;
        let (hooks_live, mut hooks) = (self.hooks(&plan.active), self.hooks(&beside.to));
        // Observers watch the live refit; shown a second one, they might count it.
        hooks.observers.clear();
        let (mut weights, done) = self.engine.stage(&source.checkpoint(), &hooks, &|_, _, _| {})?;
        weights.relabel(live.version(), live.label());
        report.differing_tensors =
            (0..self.engine.registry().params().len()).filter(|p| weights.differs(&live, *p)).count();
        report.report = Some(done);

        let policy = &self.board.rules().shadow;
        let readable = self.engine.readable(&source.checkpoint())?;
        let units = of_model(&self.engine.setup(), &readable, hooks.loader.as_deref())?;
        let decided = |quant: &Option<Arc<dyn patchhost_runtime::hooks::BlockQuant>>| -> Result<_, LiveError> {
            Ok(match quant {
                None => None,
                Some(quant) => Some(decide(&units, self.engine.info(), &**quant)?),
            })
        };
        let (a, b) = (decided(&hooks_live.quant)?, decided(&hooks.quant)?);
        let percent = (policy.sample * 100.0).ceil().clamp(0.0, 100.0) as u8;
        for (i, unit) in units.iter().enumerate().filter(|(_, u)| chosen(&report.candidate, &u.info.name, percent)) {
            let side = |decisions: &Option<Vec<Decision>>| decisions.as_ref().and_then(|d| d.get(i)).cloned();
            let (da, db) = (side(&a), side(&b));
            let row = compare_unit(
                unit,
                da.as_ref().zip(hooks_live.quant.as_deref()),
                db.as_ref().zip(hooks.quant.as_deref()),
            )?;
            source.checkpoint().release(unit.source());
            if let Some(row) = row {
                report.findings.extend(judge(&row, policy));
                report.tensors.push(row);
            }
        }
        report.totals = totals(&report.tensors);
        Ok(weights)
    }
}

/// What the policy does not allow about one tensor.
fn judge(row: &TensorRow, policy: &ShadowPolicy) -> Vec<TensorFinding> {
    let mut findings = Vec::new();
    let mut find = |what: String| findings.push(TensorFinding { tensor: row.name.clone(), what });
    if row.state == State::Both {
        if let Some(bytes) = row.weight_bytes.filter(|bytes| bytes.share() > policy.max_bytes_changed) {
            find(format!("{:.6} of its bytes differ, allowed is {}", bytes.share(), policy.max_bytes_changed));
        }
        if let Some(scales) = row.scales {
            let share = scales.differing as f64 / scales.total.max(1) as f64;
            if share > policy.max_scales_changed {
                find(format!("{share:.6} of its scales differ, allowed is {}", policy.max_scales_changed));
            }
            if let Some(most) = policy.max_scale_ulp.filter(|most| u64::from(scales.max_ulp) > *most) {
                find(format!("a scale differs by {} ulp, allowed is {most}", scales.max_ulp));
            }
        }
    }
    if let (Some(a), Some(b)) = (&row.a, &row.b) {
        if let (Some(live), Some(candidate)) = (a.snr_db, b.snr_db)
            && live - candidate > policy.max_snr_loss_db
        {
            let lost = live - candidate;
            find(format!("it loses {lost:.3} dB against the live set, allowed is {}", policy.max_snr_loss_db));
        }
        let more = b.saturated.saturating_sub(a.saturated) as f64 / row.elements.max(1) as f64;
        if more > policy.max_saturated {
            find(format!("{more:.6} more of its values saturate, allowed is {}", policy.max_saturated));
        }
    }
    findings
}

/// Writes the report; a report that cannot be written ends nothing.
fn write(folder: &Path, report: &ShadowReport) -> Option<String> {
    let path = folder.join(format!("shadow-{:06}-{}.json", report.refit, report.candidate.short()));
    let written = std::fs::create_dir_all(folder).and_then(|()| {
        write_whole_unsynced(&path, Access::Private, |file| {
            Ok(serde_json::to_writer_pretty(BufWriter::new(file), report)?)
        })
    });
    match written {
        Ok(()) => Some(path.display().to_string()),
        Err(error) => {
            tracing::warn!(%error, "a shadow report could not be written");
            None
        }
    }
}
