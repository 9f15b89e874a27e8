//! Where patches are started: in this process or in child processes, and who is told their calls.

use super::firsts::FirstAnswers;
use crate::call::Witness;
use crate::isolate::Isolation;
use crate::sandbox::Sandbox;
use std::sync::Arc;

/// The place that a compiled patch is started in. Cheap to clone.
#[derive(Clone)]
pub struct Site {
    sandbox: Sandbox,
    isolation: Option<Isolation>,
    witness: Option<Arc<dyn Witness>>,
    /// What patches that were started here said first.
    firsts: FirstAnswers,
}

impl From<Sandbox> for Site {
    /// In this process; nobody is told.
    fn from(sandbox: Sandbox) -> Self {
        Self { sandbox, isolation: None, witness: None, firsts: FirstAnswers::default() }
    }
}

impl From<&Sandbox> for Site {
    fn from(sandbox: &Sandbox) -> Self {
        sandbox.clone().into()
    }
}

impl From<&Site> for Site {
    fn from(site: &Site) -> Self {
        site.clone()
    }
}

impl Site {
    /// The same, with every patch in child processes: nothing of them is compiled or run in this one.
    #[must_use]
    pub fn with_isolation(self, isolation: Option<Isolation>) -> Self {
        Self { isolation, ..self }
    }

    /// The same, with the calls of every patch that is started from now on written to a recording.
    #[must_use]
    pub fn with_witness(self, witness: Option<Arc<dyn Witness>>) -> Self {
        Self { witness, ..self }
    }

    /// The same for a host that goes on with something else while it compiles: a trial may take its time.
    #[must_use]
    pub fn beside_decoding(self) -> Self {
        Self { sandbox: self.sandbox.beside_decoding(), ..self }
    }

    /// The same with an engine that compiles without optimization, and with nobody told.
    pub fn unoptimized(&self) -> wasmtime::Result<Self> {
        let (sandbox, isolation) = (self.sandbox.unoptimized()?, self.isolation.clone());
        Ok(Self { sandbox, isolation, witness: None, firsts: FirstAnswers::default() })
    }

    /// The engine that compiles and runs in this process.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The child processes that patches run in; none: they run in this process.
    pub fn isolation(&self) -> Option<&Isolation> {
        self.isolation.as_ref()
    }

    /// What patches that were started here said first.
    pub(super) fn firsts(&self) -> &FirstAnswers {
        &self.firsts
    }

    /// Who is told what patches are asked and answer.
    pub fn witness(&self) -> Option<&Arc<dyn Witness>> {
        self.witness.as_ref()
    }
}
