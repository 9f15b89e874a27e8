//! What a patch has done wrong, and for how long it is left alone.

use super::{Board, Quarantined};
use crate::base::{Digest, Hook};
use crate::patch::{Actor, OnFailure};
use patchhost_runtime::hooks::HookCause;
use serde::Serialize;
use serde_json::json;
use std::time::{Duration, Instant};

/// Failures of one component within the window.
#[derive(Debug, Default)]
pub(super) struct Failures {
    times: Vec<Instant>,
    not_before: Option<Instant>,
}

/// One failure of a live patch.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// Name of the patch.
    pub patch: String,
    /// Digest of the component.
    pub sha256: Digest,
    pub hook: Hook,
    /// What kind of failure.
    pub cause: HookCause,
    /// The message, bounded.
    pub why: String,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaction {
    /// Where the answer comes from instead.
    pub on_failure: OnFailure,
    /// The budget is used up: the component is in quarantine.
    pub quarantined: bool,
}

impl Board {
    /// Counts a failure, writes it down, and says what the policy wants.
    pub fn failed(&self, failure: &Failure) -> Reaction {
        let policy = self.rules.failure;
        let on_failure = self.rules.on_failure(failure.hook);
        let now = Instant::now();
        let mut inner = self.lock();
        let record = inner.failures.entry(failure.sha256).or_default();
        record.times.retain(|at| now.duration_since(*at) < Duration::from_secs(policy.window_s));
        record.times.push(now);
        let count = u32::try_from(record.times.len()).unwrap_or(u32::MAX);
        let backoff = policy.backoff(count, rand::random());
        record.not_before = Some(now + backoff);
        let quarantined = count >= policy.restart_budget && !inner.quarantine.contains_key(&failure.sha256);
        let mut fields = serde_json::to_value(failure).unwrap_or_default();
        fields["on_failure"] = json!(on_failure);
        fields["failures_in_window"] = json!(count);
        fields["backoff_ms"] = json!(backoff.as_millis() as u64);
        self.note("patch.failure", &Actor::policy(), fields);
        if quarantined {
            let reason = format!("{count} failures within {} s: {}", policy.window_s, failure.why);
            let by = Actor::policy();
            self.note("patch.quarantined", &by, json!({ "sha256": failure.sha256, "reason": reason }));
            inner.quarantine.insert(failure.sha256, Quarantined { reason, by });
        }
        Reaction { on_failure, quarantined }
    }

    /// Why a component is not asked now, if it is not: quarantine, or the time after a failure. Where the policy is
    /// `closed` nobody could answer instead, so only quarantine counts.
    pub fn left_alone(&self, component: &Digest, hook: Hook) -> Option<String> {
        let inner = self.lock();
        if let Some(q) = inner.quarantine.get(component) {
            return Some(format!("it is in quarantine: {}", q.reason));
        }
        if self.rules.on_failure(hook) == OnFailure::Closed {
            return None;
        }
        let not_before = inner.failures.get(component)?.not_before?;
        let left = not_before.checked_duration_since(Instant::now())?;
        Some(format!("it failed and is asked again in {} ms", left.as_millis()))
    }

    /// A component answered again.
    pub fn recovered(&self, component: &Digest) {
        if let Some(failures) = self.lock().failures.get_mut(component) {
            failures.not_before = None;
        }
    }
}
