//! What a candidate beside the live set made, tensor by tensor: its numbers, and what the rules do not allow about them.

use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use patchhost_runtime::refit::{RefitReport, Source};
use patchhost_runtime::weights::WeightSet;
use serde::Serialize;

use super::LiveModel;
use super::embedded::{CanaryWeights, Embedded};
use crate::base::Digest;
use crate::base::file::{Access, write_whole_unsynced};
use crate::compare::{CompareError, Pair, TensorRow, Totals, of_model, reader, totals};
use crate::patch::{Compared, Generation, Mode, ShadowPolicy, TensorFinding, Verdict};

/// What a comparison found.
#[derive(Debug, Clone, Serialize)]
pub struct ShadowReport {
    /// Number of the refit.
    pub refit: u64,
    /// What the trainer calls the weights.
    pub version: String,
    /// The live set.
    pub live: Digest,
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
    pub tensors: Vec<TensorRow>,
    /// What the policy does not allow; empty is good.
    pub findings: Vec<TensorFinding>,
    /// Findings beyond those that are listed.
    pub more_findings: usize,
}

/// What the engine keeps of a comparison.
#[derive(Default)]
pub struct Side {
    report: Option<RefitReport>,
    totals: Totals,
    tensors: Vec<TensorRow>,
    /// The candidate's weights, where all of it could be compared.
    weights: Option<WeightSet>,
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
        self.target.shadow.load_full()
    }
}

impl Embedded {
    /// Makes weights of the same tensors through the candidate, and compares them with those that serve.
    pub(super) fn compare_with(
        &self,
        source: &Source,
        active: &Generation,
        candidate: &Generation,
        rules: &ShadowPolicy,
    ) -> Compared<Side> {
        let mut compared = Compared { findings: Vec::new(), differing_tensors: 0, seen: Side::default() };
        match self.compare_into(source, active, candidate, rules, &mut compared) {
            Ok(weights) => compared.seen.weights = Some(weights),
            Err(error) => compared.findings.push(TensorFinding::failed(error)),
        }
        compared.seen.totals = totals(&compared.seen.tensors);
        compared
    }

    fn compare_into(
        &self,
        source: &Source,
        active: &Generation,
        candidate: &Generation,
        rules: &ShadowPolicy,
        into: &mut Compared<Side>,
    ) -> Result<WeightSet, CompareError> {
        let live = self.engine.live()?;
        let (hooks_live, mut hooks) = (self.hooks(active), self.hooks(candidate));
        // Observers watch the live refit; shown a second one, they might count it.
        hooks.observers.clear();
        let (mut weights, done) = self.engine.stage(source.checkpoint(), &hooks, &|_, _, _| {})?;
        weights.relabel(live.version(), live.label());
        into.differing_tensors =
            (0..self.engine.registry().params().len()).filter(|p| weights.differs(&live, *p)).count();
        into.seen.report = Some(done);

        let readable = self.engine.readable(source.checkpoint())?;
        let units = of_model(&self.engine.setup(), &readable, hooks.loader.as_deref())?;
        let pair = Pair {
            model: self.engine.info(),
            reader: &reader(),
            live: hooks_live.quant.as_deref(),
            candidate: hooks.quant.as_deref(),
            to: candidate.digest(),
            rules,
        };
        pair.compare(&units, |row, findings| {
            into.findings.extend(findings);
            into.seen.tensors.push(row);
            Ok(())
        })?;
        Ok(weights)
    }

    /// Writes the report, and takes the candidate's weights for its share of the requests, or lets those of before go.
    pub(super) fn keep(&self, verdict: &Verdict, seen: Side) -> Option<String> {
        let Side { report, totals, tensors, weights } = seen;
        let report = ShadowReport {
            refit: verdict.refit,
            version: verdict.version.clone(),
            live: verdict.live,
            candidate: verdict.candidate,
            mode: verdict.mode,
            clean_refits: verdict.clean_refits,
            report,
            differing_tensors: verdict.differing_tensors,
            totals,
            tensors,
            findings: verdict.findings.clone(),
            more_findings: verdict.more_findings,
        };
        let file = self.reports.as_deref().and_then(|folder| write(folder, &report));
        self.shadow.store(Some(Arc::new(report)));
        let canary = verdict.serve.zip(weights).map(|(percent, weights)| {
            Arc::new(CanaryWeights { percent, to: verdict.candidate, weights: Arc::new(weights) })
        });
        self.canary.store(canary);
        file
    }
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
