//! The one way in for candidates, whoever brings them: verify, audit, compile, start, probe. Everything that can fail
//! fails here, beside the serving threads, and what failed is written down.

use std::sync::Arc;

use patchhost_runtime::refit::Source;
use serde::Serialize;

use super::staging::{OnItsWay, StagingStep};
use super::told::Telling;
use super::{Live, LiveError};
use crate::base::Digest;
use crate::patch::{
    Actor, Applicability, Candidate, Facts, Generation, Patch, RefitTarget, SwapError, SwapErrorKind, Terms, probe_set,
};
use crate::probe;

/// A candidate that passed every stage.
#[derive(Debug, Clone, Serialize)]
pub struct Staged {
    /// Name that the patch gives itself.
    pub name: String,
    pub version: String,
    /// Digest of the component.
    pub sha256: Digest,
    /// Digest of component, settings, limits and grants: what a swap names.
    pub generation: Digest,
    /// Whether it is for this model.
    pub applicability: Applicability,
    /// It was staged, active or retained before: nothing was done.
    pub already: bool,
    /// What somebody should know of its answers, although they are allowed.
    pub remarks: Vec<String>,
}

/// A candidate that passed the stages, on its way to the board.
struct Passed {
    patch: Arc<Patch>,
    already: bool,
    facts: Facts,
    remarks: Vec<String>,
}

impl<T: RefitTarget> Live<T> {
    /// Takes a candidate through every stage. `expected`: the digest that the bytes must have. Nothing live changes.
    pub fn stage(
        &self,
        candidate: Candidate,
        expected: Option<Digest>,
        settings: &[(String, String)],
        actor: &Actor,
    ) -> Result<Staged, LiveError> {
        self.stage_with(candidate, expected, settings, self.source.load_full().as_deref(), actor)
    }

    /// The same, probed with these tensors; none: it is asked nothing about tensors before its first refit.
    pub fn stage_with(
        &self,
        candidate: Candidate,
        expected: Option<Digest>,
        settings: &[(String, String)],
        source: Option<&Source>,
        actor: &Actor,
    ) -> Result<Staged, LiveError> {
        let (name, sha256) = (candidate.name().to_owned(), *candidate.digest());
        let mut telling = self.begins("stage", actor);
        telling.fact("patch.sha256", || sha256);
        telling.fact("patch_set", || self.board.active().digest());
        telling.maybe("weight_version", || self.last.load().as_ref().map(|last| last.report.label.clone()));
        let on_its_way = self.staging.begin(&name, sha256, actor);
        let result = self.through_stages(candidate, expected, settings, source, &on_its_way, &mut telling);
        drop(on_its_way);
        let result = self.staged(&name, sha256, result, actor);
        match &result {
            Ok(staged) => {
                telling.fact("patch.name", || staged.name.as_str());
                telling.fact("patch.version", || staged.version.as_str());
                telling.fact("patch.generation", || staged.generation);
                telling.fact("patch.already_staged", || staged.already);
                telling.ends::<LiveError>(None);
            }
            Err(error) => {
                telling.fact("patch.name", || name);
                telling.ends(Some(error));
            }
        }
        result
    }

    /// Gives a candidate to the board, or writes down what it was refused for.
    fn staged(
        &self,
        name: &str,
        sha256: Digest,
        result: Result<Passed, LiveError>,
        actor: &Actor,
    ) -> Result<Staged, LiveError> {
        match result {
            Ok(Passed { patch, already, facts, remarks }) => {
                let fresh = self.board.staged(&patch, &facts, &remarks, actor)?;
                Ok(Staged {
                    name: patch.info().name.clone(),
                    version: patch.info().version.clone(),
                    sha256,
                    generation: patch.generation(),
                    applicability: patch.applies_to(&self.target.describe()),
                    already: already || !fresh,
                    remarks,
                })
            }
            Err(error) => {
                let stage = match &error {
                    LiveError::Stage(error) => error.stage().to_string(),
                    LiveError::Swap(_) => "quarantine".to_owned(),
                    _ => "probe".to_owned(),
                };
                self.board.refused(name, Some(&sha256), &stage, &error.to_string(), actor);
                Err(error)
            }
        }
    }

    fn through_stages(
        &self,
        candidate: Candidate,
        expected: Option<Digest>,
        settings: &[(String, String)],
        source: Option<&Source>,
        on_its_way: &OnItsWay<'_>,
        telling: &mut Telling,
    ) -> Result<Passed, LiveError> {
        if let Some(why) = self.board.quarantined(candidate.digest()) {
            let what = format!("patch `{}` ({})", candidate.name(), candidate.digest());
            let why = format!("it is in quarantine: {why}");
            let next = "repair the patch; or lift the quarantine with a reason";
            return Err(SwapError::new(SwapErrorKind::Forbidden, what, why, next).into());
        }
        let terms = Terms { sha256: expected, ..Terms::settings(settings.iter().cloned()) };
        let audited = self.pools.stage(|| {
            let admitted = candidate.admit(&*self.gate, &terms)?;
            on_its_way.is_at(StagingStep::Audit);
            admitted.audit()
        })?;
        telling.step("audit");
        let facts = audited.facts().clone();
        // Going back to what is still instantiated compiles nothing.
        if let Some(known) = self.board.known(&audited.generation()) {
            return Ok(Passed { patch: known, already: true, facts, remarks: Vec::new() });
        }
        on_its_way.is_at(StagingStep::Compile);
        let compiled = self.pools.stage(|| audited.compile(&self.site))?;
        on_its_way.is_at(StagingStep::Start);
        // Not in the pool: with `--isolate` this starts the child that will answer.
        let patch = compiled.ready()?;
        telling.step("compile");
        on_its_way.is_at(StagingStep::Probe);
        let remarks = match patch.applies_to(&self.target.describe()) {
            Applicability::Applies => self.pools.stage(|| self.probe(&patch, source))?,
            Applicability::NotApplicable { .. } => Vec::new(),
        };
        telling.step("probe");
        Ok(Passed { patch, already: false, facts, remarks })
    }

    /// Refuses a patch whose answers a refit would refuse, or that is wrong on what its own profile and contract say. Gives
    /// what somebody should know of its answers.
    fn probe(&self, patch: &Arc<Patch>, source: Option<&Source>) -> Result<Vec<String>, LiveError> {
        let mut remarks = Vec::new();
        // Before the first load there is nothing to ask about; that load asks everything.
        if let Some(source) = source {
            let trial = Generation::trial(probe_set(&self.board.active(), patch)?);
            remarks = self.target.probe(source, &trial, patch)?;
        }
        probe::before_activation(patch).map_err(LiveError::Probe)?;
        Ok(remarks)
    }
}
