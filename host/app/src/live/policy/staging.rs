//! Which candidates are on their way in, and how far each one is: a large component takes a while to compile, and whoever
//! waits for it wants to know.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::base::Digest;
use crate::patch::Actor;

/// What is being done to a candidate, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StagingStep {
    /// Its digest, its signatures and the lock are looked at.
    Verify,
    /// The static rules.
    Audit,
    /// Machine code is made of it, or read from the cache.
    Compile,
    /// It is started, described and configured.
    Start,
    /// It is asked about vectors and properties, and about the tensors of the live weights.
    Probe,
}

impl fmt::Display for StagingStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verify => "verify",
            Self::Audit => "audit",
            Self::Compile => "compile",
            Self::Start => "start",
            Self::Probe => "probe",
        })
    }
}

/// A candidate that is going through its stages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Staging {
    /// What messages call it.
    pub name: String,
    /// Digest of the component.
    pub sha256: Digest,
    /// Who brought it.
    pub by: Actor,
    /// What is being done.
    pub step: StagingStep,
    /// For how long that has been going on.
    pub step_seconds: f64,
    /// For how long all of it has.
    pub seconds: f64,
}

struct Entry {
    number: u64,
    name: String,
    sha256: Digest,
    by: Actor,
    step: StagingStep,
    began: Instant,
    step_began: Instant,
}

#[derive(Default)]
struct All {
    begun: u64,
    entries: Vec<Entry>,
}

/// All candidates that are on their way.
#[derive(Default)]
pub(super) struct UnderWay(Mutex<All>);

/// One of them, until it is dropped.
pub(super) struct OnItsWay<'a> {
    all: &'a UnderWay,
    number: u64,
}

impl UnderWay {
    pub(super) fn begin(&self, name: &str, sha256: Digest, by: &Actor) -> OnItsWay<'_> {
        let (mut all, now) = (self.lock(), Instant::now());
        all.begun += 1;
        let number = all.begun;
        let (name, by) = (name.to_owned(), by.clone());
        all.entries.push(Entry { number, name, sha256, by, step: StagingStep::Verify, began: now, step_began: now });
        OnItsWay { all: self, number }
    }

    pub(super) fn list(&self) -> Vec<Staging> {
        let shown = |entry: &Entry| Staging {
            name: entry.name.clone(),
            sha256: entry.sha256,
            by: entry.by.clone(),
            step: entry.step,
            step_seconds: entry.step_began.elapsed().as_secs_f64(),
            seconds: entry.began.elapsed().as_secs_f64(),
        };
        self.lock().entries.iter().map(shown).collect()
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OnItsWay<'_> {
    /// The next step begins.
    pub(super) fn is_at(&self, step: StagingStep) {
        if let Some(entry) = self.all.lock().entries.iter_mut().find(|entry| entry.number == self.number) {
            (entry.step, entry.step_began) = (step, Instant::now());
        }
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.all.lock().entries.retain(|entry| entry.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_the_same_bytes_are_told_apart_and_both_go() {
        let all = UnderWay::default();
        let digest = Digest::of(b"x");
        let first = all.begin("x", digest, &Actor::cli());
        let second = all.begin("x", digest, &Actor::new("watch:x"));
        second.is_at(StagingStep::Compile);
        let steps = || all.list().iter().map(|one| one.step).collect::<Vec<_>>();
        assert_eq!(steps(), [StagingStep::Verify, StagingStep::Compile]);
        drop(first);
        assert_eq!(steps(), [StagingStep::Compile]);
        assert!(all.list().iter().all(|one| one.step_seconds <= one.seconds));
        drop(second);
        assert!(all.list().is_empty());
    }
}
