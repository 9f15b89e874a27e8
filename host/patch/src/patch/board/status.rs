//! The board as reports and endpoints show it.

use super::{Board, Mode, When};
use crate::base::Digest;
use crate::patch::Applicability;
use crate::patch::generation::Member;
use serde::Serialize;

/// Everything about the patches of one model.
#[derive(Debug, Clone, Serialize)]
pub struct BoardStatus {
    /// Digest of the active set.
    pub active: Digest,
    /// Its number, counted in this process.
    pub number: u64,
    pub patches: Vec<Member>,
    /// Patches that the run was started with and that do not apply, with the reason.
    pub not_applicable: Vec<(String, String)>,
    /// The change under way.
    pub transition: Option<TransitionStatus>,
    /// Sets that a rollback can go to, the next one first.
    pub retained: Vec<Digest>,
    /// Superseded sets that are still in use.
    pub draining: Vec<DrainingStatus>,
    /// Patches that passed every stage.
    pub staged: Vec<StagedStatus>,
    /// Components that may not run.
    pub quarantine: Vec<QuarantineStatus>,
    /// What was forced in this process; empty is untainted.
    pub tainted: Vec<String>,
    /// Swaps that landed.
    pub swaps: u64,
    /// Rollbacks that landed.
    pub rollbacks: u64,
    /// Candidates that were refused or reversed.
    pub refused: u64,
}

/// A change that has not landed.
#[derive(Debug, Clone, Serialize)]
pub struct TransitionStatus {
    /// The set that is coming.
    pub to: Digest,
    pub patches: Vec<Member>,
    /// How it takes part.
    pub mode: Mode,
    /// When it lands.
    pub when: When,
    /// Who asked.
    pub by: String,
    /// How long ago, in seconds.
    pub age_s: f64,
    /// Refits it took part in without a finding.
    pub clean_refits: u64,
}

/// A superseded set that is still in use.
#[derive(Debug, Clone, Serialize)]
pub struct DrainingStatus {
    /// Its digest.
    pub set: Digest,
    pub number: u64,
    /// Sets of weights in use that it made.
    pub users: usize,
    /// For how long, in seconds.
    pub age_s: f64,
    /// Longer than the policy's deadline.
    pub blocked: bool,
}

/// A patch that passed every stage.
#[derive(Debug, Clone, Serialize)]
pub struct StagedStatus {
    #[serde(flatten)]
    pub patch: Member,
    /// Whether it is for this model.
    pub applicability: Applicability,
    /// Who staged it.
    pub by: String,
    /// How long ago, in seconds.
    pub age_s: f64,
}

/// A component that may not run.
#[derive(Debug, Clone, Serialize)]
pub struct QuarantineStatus {
    /// Its digest.
    pub sha256: Digest,
    /// Why.
    pub reason: String,
    /// Who put it there.
    pub by: String,
}

impl Board {
    /// Everything, as it stands now.
    pub fn status(&self) -> BoardStatus {
        let inner = self.lock();
        BoardStatus {
            active: inner.active.digest(),
            number: inner.active.number(),
            patches: inner.active.members(),
            not_applicable: inner.not_applicable.iter().map(|(p, why)| (p.info().name.clone(), why.clone())).collect(),
            transition: inner.transition.as_ref().map(|t| TransitionStatus {
                to: t.to.digest(),
                patches: t.to.members(),
                mode: t.mode,
                when: t.when,
                by: t.by.to_string(),
                age_s: t.since.elapsed().as_secs_f64(),
                clean_refits: t.clean,
            }),
            retained: inner.retained.iter().map(|g| g.digest()).collect(),
            draining: inner
                .draining
                .iter()
                .map(|d| DrainingStatus {
                    set: d.digest,
                    number: d.number,
                    users: d.pin.strong_count(),
                    age_s: d.since.elapsed().as_secs_f64(),
                    blocked: d.blocked,
                })
                .collect(),
            staged: inner
                .staged
                .iter()
                .map(|s| StagedStatus {
                    patch: Member::of(&s.patch),
                    applicability: s.applicability.clone(),
                    by: s.by.to_string(),
                    age_s: s.at.elapsed().as_secs_f64(),
                })
                .collect(),
            quarantine: inner
                .quarantine
                .iter()
                .map(|(sha256, q)| QuarantineStatus { sha256: *sha256, reason: q.reason.clone(), by: q.by.to_string() })
                .collect(),
            tainted: inner.tainted.clone(),
            swaps: inner.swaps,
            rollbacks: inner.rollbacks,
            refused: inner.refused,
        }
    }
}
