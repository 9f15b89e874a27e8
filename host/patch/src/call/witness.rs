//! Somebody who is told every call of some patches: a recording.

use super::ask::Ask;
use super::question::{Answer, Outcome, Question};
use crate::base::Digest;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

/// A patch, as it was started: what a witness is told before its first call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PatchEntry {
    /// Its number in this recording.
    pub number: u32,
    /// Name that it gives itself.
    pub name: String,
    /// Version that it gives itself.
    pub version: String,
    /// Digest of the component.
    pub sha256: Digest,
    /// Digest of component, settings, limits and grants.
    pub generation: Digest,
    /// Its hooks, by their WIT names.
    pub hooks: Vec<String>,
    /// What it was configured with: keys and values.
    pub settings: Vec<(String, String)>,
    /// Its limits, as JSON: later hosts have more of them.
    pub limits: String,
    /// Its grants, a line each. They are not given again by a replay.
    pub grants: Vec<String>,
    /// Whether it remembers something.
    pub state: bool,
}

/// Told what patches are asked and what they answer, whoever they are.
pub trait Witness: Send + Sync {
    /// A patch is ready. Gives the number under which its calls are told.
    fn started(&self, patch: PatchEntry) -> u32;
    /// The patch of this number was asked, and answered.
    fn saw(&self, patch: u32, question: Question, outcome: Outcome);
}

/// A patch whose calls a witness is told, in the order in which they were made.
pub(crate) struct Witnessed<A> {
    inner: A,
    witness: Arc<dyn Witness>,
    patch: u32,
    /// Only for a patch with state. Its answers depend on the order of its calls, so the recording must have them in that
    /// order: this lock is held from before a call until the call is told. Such a patch has one instance anyway, so the
    /// lock makes nobody wait longer.
    order: Option<Mutex<()>>,
}

impl<A: Ask> Witnessed<A> {
    pub(crate) fn new(inner: A, witness: Arc<dyn Witness>, entry: PatchEntry) -> Self {
        let order = entry.state.then(Mutex::default);
        let patch = witness.started(entry);
        Self { inner, witness, patch, order }
    }
}

impl<A: Ask> Ask for Witnessed<A> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn ask(&self, question: Question) -> Outcome {
        if matches!(question, Question::Forget { .. }) {
            // Told before the patch lets go of the refit: in a recording, its end is before the begin of the next.
            self.witness.saw(self.patch, question.clone(), Ok(Answer::Done));
            return self.inner.ask(question);
        }
        let _order = self.order.as_ref().map(|order| order.lock().unwrap_or_else(PoisonError::into_inner));
        let outcome = self.inner.ask(question.clone());
        self.witness.saw(self.patch, question, outcome.clone());
        outcome
    }
}
