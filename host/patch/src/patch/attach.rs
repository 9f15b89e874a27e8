//! Attaching patches to an engine before it runs. A hook can be attached only while the engine is in a phase that allows
//! it, a patch that is attached twice counts once, and a patch that is not for this engine or model is kept with the reason.
//!
//! Other engines have this rule as a comment: verl says "import patch.py only after the LLM instance was created", and its
//! own code breaks it. Here a wrong phase is an error.

use super::{Applicability, Description, Patch, PatchSet, SetError};
use crate::base::{Code, Digest, Exit};
use patchhost_runtime::engine::Engine;
use patchhost_runtime::error::Refusal;
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// What the engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Patches are known, there is no engine yet.
    Built,
    /// The engine knows its tensors and has no weights yet.
    EngineUp,
    /// A refit is under way: its hooks are pinned until it ends.
    Refitting,
    /// Weights are live.
    Serving,
}

impl Phase {
    /// The phase of an engine; none: it was not made yet.
    pub fn of(engine: Option<&Engine>) -> Self {
        match engine {
            None => Phase::Built,
            Some(engine) if engine.is_refitting() => Phase::Refitting,
            Some(engine) if engine.live().is_ok() => Phase::Serving,
            Some(_) => Phase::EngineUp,
        }
    }

    /// Whether a patch may attach or detach. Every hook of this version asks about an engine's tensors or tokens, so none
    /// may before the engine is up; and none while a refit runs, which must see one set from its start to its end.
    fn takes_patches(self) -> bool {
        matches!(self, Phase::EngineUp | Phase::Serving)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Built => "built",
            Phase::EngineUp => "engine-up",
            Phase::Refitting => "refitting",
            Phase::Serving => "serving",
        })
    }
}

/// What attaching did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attached {
    /// The patch is in the set.
    Now,
    /// The same generation (component, settings, limits, grants) was in the set before: nothing was done.
    Already,
    /// It is for other models, engines or versions: it is shown with the reason, and not in the set.
    NotApplicable {
        /// Why.
        reason: String,
    },
}

/// A patch was not attached or detached. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// Not in this phase.
    #[error("refused: {}", self.parts())]
    WrongPhase {
        /// Name of the patch.
        patch: String,
        /// The phases that would do.
        needs: &'static str,
        /// The phase now.
        is: Phase,
    },
    /// Another patch has one of its hooks.
    #[error(transparent)]
    Conflict(#[from] SetError),
}

impl Exit for AttachError {
    fn exit(&self) -> Code {
        Code::Refused
    }

    fn parts(&self) -> Refusal {
        match self {
            Self::WrongPhase { patch, needs, is } => {
                let next = match is {
                    Phase::Built => "make the engine first, then attach its patches",
                    _ => "wait until the refit ended",
                };
                Refusal {
                    what: format!("patch `{patch}` (wrong-phase)"),
                    why: format!("it needs the phase {needs}, the engine is {is}"),
                    next: next.to_owned(),
                }
            }
            Self::Conflict(e) => e.parts(),
        }
    }
}

/// The patches of one engine: those in the set, and those that do not apply.
#[derive(Debug)]
pub struct Attachments {
    to: Description,
    entries: Vec<(Arc<Patch>, Applicability)>,
    set: PatchSet,
}

impl Attachments {
    /// No patches yet, for this model in this engine.
    pub fn new(to: Description) -> Self {
        Self { to, entries: Vec::new(), set: PatchSet::default() }
    }

    /// What the patches are applied to.
    pub fn to(&self) -> &Description {
        &self.to
    }

    /// Adds a patch; one that is for other engines or models is kept aside with the reason.
    pub fn attach(&mut self, patch: Arc<Patch>, phase: Phase) -> Result<Attached, AttachError> {
        in_phase(&patch, phase)?;
        if self.entries.iter().any(|(p, _)| p.generation() == patch.generation()) {
            return Ok(Attached::Already);
        }
        let applicability = patch.applies_to(&self.to);
        let attached = match &applicability {
            Applicability::Applies => {
                self.set.push(patch.clone())?;
                Attached::Now
            }
            Applicability::NotApplicable { reason } => Attached::NotApplicable { reason: reason.clone() },
        };
        self.entries.push((patch, applicability));
        Ok(attached)
    }

    /// Takes a generation out; false if it was not there. The next refit is as if it had never been.
    pub fn detach(&mut self, generation: &Digest, phase: Phase) -> Result<bool, AttachError> {
        let Some(at) = self.entries.iter().position(|(p, _)| p.generation() == *generation) else { return Ok(false) };
        in_phase(&self.entries[at].0, phase)?;
        self.entries.remove(at);
        let applying = self.entries.iter().filter(|(_, a)| *a == Applicability::Applies).map(|(p, _)| p.clone());
        self.set = PatchSet::new(applying)?;
        Ok(true)
    }

    /// Every patch, in order, with whether it applies.
    pub fn entries(&self) -> &[(Arc<Patch>, Applicability)] {
        &self.entries
    }

    /// Those that apply.
    pub fn set(&self) -> &PatchSet {
        &self.set
    }
}

fn in_phase(patch: &Patch, is: Phase) -> Result<(), AttachError> {
    match is.takes_patches() {
        true => Ok(()),
        false => Err(AttachError::WrongPhase { patch: patch.info().name.clone(), needs: "engine-up or serving", is }),
    }
}
