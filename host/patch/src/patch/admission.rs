//! Who lets a component in. There is no way from bytes to a patch that does not name one: [`Candidate::admit`] is the only
//! step that leads on, and what it gives holds everything that the patch will run with.

use super::stage::Audited;
use super::{Candidate, Facts, Patch, Site, StageError};
use crate::audit::{self, AuditOptions};
use crate::base::{Digest, Grants};
use crate::patch::candidate::Verified;
use crate::sandbox::Limits;
use std::fmt;
use std::sync::Arc;

/// What somebody wants to run a component with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Terms {
    /// What it is configured with: keys and values.
    pub settings: Vec<(String, String)>,
    /// The digest that the bytes must have.
    pub sha256: Option<Digest>,
    /// Its limits where no lock says others; none: those of the policy. For a replay, which has those of the recording.
    pub limits: Option<Limits>,
    /// Its grants where no lock says others; none: nothing.
    pub grants: Option<Grants>,
}

impl Terms {
    /// With these settings, and everything else as policy and lock say.
    pub fn settings<K: Into<String>, V: Into<String>>(settings: impl IntoIterator<Item = (K, V)>) -> Self {
        let settings = settings.into_iter().map(|(key, value)| (key.into(), value.into()));
        Self { settings: settings.collect(), ..Self::default() }
    }

    /// The same with these limits, where no lock says others.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits: Some(limits), ..self }
    }

    /// The same with these grants, where no lock says others.
    #[must_use]
    pub fn with_grants(self, grants: Grants) -> Self {
        Self { grants: Some(grants), ..self }
    }
}

/// Says whether a component may run, and with what. Implemented by the gate of `trust` (policy, lock, signatures,
/// revocations) and by [`Reviewing`]; nobody else can make an [`Admitted`].
pub trait Admission {
    /// Lets the candidate in on these terms, or says who would have to accept it, and how.
    fn admit(&self, candidate: Candidate, terms: &Terms) -> Result<Admitted, StageError>;
}

/// Judges the generation that would run: digest of component, settings, limits and grants.
pub(crate) type Vet = Box<dyn Fn(&Digest) -> Result<(), StageError> + Send + Sync>;

/// A component that was let in, with everything that it will run with.
pub struct Admitted {
    candidate: Candidate,
    note: Option<String>,
    audit: AuditOptions,
    settings: Vec<(String, String)>,
    limits: Limits,
    facts: Facts,
    vet: Option<Vet>,
    /// WASI is linked with nothing behind it, whatever was granted.
    inert: bool,
}

impl Candidate {
    /// The one way on: somebody named lets it in.
    pub fn admit(self, admission: &(impl Admission + ?Sized), terms: &Terms) -> Result<Admitted, StageError> {
        admission.admit(self, terms)
    }
}

impl Admitted {
    /// `audit` has the grants; `vet` judges the generation once the audit is through.
    pub(crate) fn new(
        verified: Verified,
        audit: AuditOptions,
        settings: Vec<(String, String)>,
        limits: Limits,
        facts: Facts,
        vet: Option<Vet>,
    ) -> Self {
        let (candidate, note) = verified.into_parts();
        Self { candidate, note, audit, settings, limits, facts, vet, inert: false }
    }

    /// The bytes.
    pub fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    /// Something that the user may want to know and that is not wrong.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The same with less: WASI, where it was granted, has nothing behind it. It is let in as what was locked, and runs as
    /// another generation.
    #[must_use]
    pub fn with_nothing_behind_wasi(mut self) -> Self {
        self.inert = true;
        self
    }

    /// Applies the rules of `patchhost audit`. What was granted is what the component gets, and what would run must be the
    /// generation that was let in.
    pub fn audit(self) -> Result<Audited, StageError> {
        let Self { candidate, audit, settings, limits, facts, vet, inert, .. } = self;
        let report = audit::inspect_with(candidate.bytes(), &audit);
        if report.errors() > 0 {
            return Err(StageError::Audit { name: candidate.name().to_owned(), report: Box::new(report) });
        }
        let audited = Audited::new(candidate, report, audit.grants, settings, limits, facts);
        if let Some(vet) = vet {
            vet(&audited.generation())?;
        }
        Ok(if inert { audited.with_nothing_behind_wasi() } else { audited })
    }
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitted").field("candidate", &self.candidate.name()).finish_non_exhaustive()
    }
}

/// Lets in whatever its caller brings: nobody vouches for it. For who must start a component before it can be decided
/// about (`patchhost lock`), and for tests and benches. Never for what a user's run loads: that is the gate's.
#[derive(Debug, Clone, Default)]
pub struct Reviewing {
    /// Rules, and findings of others about the same bytes.
    pub audit: AuditOptions,
}

impl Reviewing {
    /// Takes a candidate through every stage.
    pub fn start(&self, candidate: Candidate, terms: &Terms, site: impl Into<Site>) -> Result<Arc<Patch>, StageError> {
        candidate.admit(self, terms)?.audit()?.compile(site)?.ready()
    }
}

impl Admission for Reviewing {
    fn admit(&self, candidate: Candidate, terms: &Terms) -> Result<Admitted, StageError> {
        let verified = candidate.verify(terms.sha256)?;
        let mut audit = self.audit.clone();
        if let Some(grants) = &terms.grants {
            audit.grants = grants.clone();
        }
        let limits = terms.limits.clone().unwrap_or_default();
        Ok(Admitted::new(verified, audit, terms.settings.clone(), limits, Facts::default(), None))
    }
}
