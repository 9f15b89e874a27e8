//! What happens when a patch fails, how much a candidate may differ, and how long things may take: the `--policy` file
//! (TOML). Nothing is guessed: what the file does not say has the default written here, and unknown keys are errors.

use super::Limits;
use crate::base::{Code, Digest, Exit, Hook};
use crate::base::{explain, nearest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Its name where nobody gives another.
pub const POLICY_FILE: &str = "patchhost.toml";
/// Largest policy file.
const MOST_BYTES: u64 = 1 << 20;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Per hook, by its WIT name: `[hooks.block-quant]`.
    pub hooks: BTreeMap<String, HookPolicy>,
    /// Failures in general.
    pub failure: FailurePolicy,
    /// What a candidate in shadow or canary may do.
    pub shadow: ShadowPolicy,
    /// Swaps.
    pub swap: SwapPolicy,
    /// Caps and rules of the audit.
    pub audit: crate::audit::AuditPolicy,
    /// Lock file, signers, revocations.
    pub trust: crate::trust::TrustPolicy,
    /// What a patch may use, where the lock gives it no limits of its own.
    pub limits: Limits,
}

/// What happens when the patch of one hook fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HookPolicy {
    /// `closed`, `last-good` or `native`.
    pub on_failure: OnFailure,
}

/// Where an answer comes from after a failure. Never from nowhere: there is no policy that fails open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// From nobody: the refit is refused, the old weights serve on.
    #[default]
    Closed,
    /// From the patch set before, if there is one.
    LastGood,
    /// From the host's own code, if it has any for the hook.
    Native,
}

/// Failures in general.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailurePolicy {
    /// After a first failure the patch is not asked for so long; each further failure doubles it.
    pub backoff_ms: u64,
    /// It never grows beyond this.
    pub backoff_max_ms: u64,
    /// Each backoff is longer or shorter by up to this share, so that ranks do not retry all at once.
    pub jitter: f64,
    /// So many failures within the window put the component into quarantine.
    pub restart_budget: u32,
    /// The window, in seconds.
    pub window_s: u64,
}

impl Default for FailurePolicy {
    fn default() -> Self {
        Self { backoff_ms: 500, backoff_max_ms: 60_000, jitter: 0.25, restart_budget: 3, window_s: 600 }
    }
}

/// What a candidate in shadow or canary may do before it is thrown out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShadowPolicy {
    /// Share of the FP8 bytes of a tensor that may differ from the live set's.
    pub max_bytes_changed: f64,
    /// Share of its scales that may differ.
    pub max_scales_changed: f64,
    /// Largest distance of two scales of one block, in ulp of f32; none: any.
    pub max_scale_ulp: Option<u64>,
    /// How many dB of signal-to-noise ratio (against the source weights) a tensor may lose against the live set.
    pub max_snr_loss_db: f64,
    /// Share of a tensor's values that may saturate beyond those of the live set.
    pub max_saturated: f64,
    /// Share of the tensors that are compared, by a hash of their names: the same on every rank.
    pub sample: f64,
}

impl Default for ShadowPolicy {
    fn default() -> Self {
        // Another recipe may change every byte; what it must not do is make the weights worse.
        Self {
            max_bytes_changed: 1.0,
            max_scales_changed: 1.0,
            max_scale_ulp: None,
            max_snr_loss_db: 1.0,
            max_saturated: 0.01,
            sample: 1.0,
        }
    }
}

/// Swaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SwapPolicy {
    /// A superseded set that is still in use after so many seconds is reported.
    pub drain_deadline_s: u64,
    /// Sets that stay instantiable besides the active one, for an instant rollback.
    pub retain: usize,
    /// Staged patches that are kept; the oldest goes first.
    pub max_staged: usize,
}

impl Default for SwapPolicy {
    fn default() -> Self {
        Self { drain_deadline_s: 60, retain: 2, max_staged: 16 }
    }
}

/// A policy file was refused.
#[derive(Debug, thiserror::Error)]
#[error("refused: policy file `{path}`\n  why: {why}\n  next: {next}")]
pub struct PolicyError {
    path: String,
    why: String,
    next: String,
}

impl Exit for PolicyError {
    fn exit(&self) -> Code {
        Code::Usage
    }
}

impl Policy {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let shown = crate::base::text::clean(&path.display().to_string(), 200);
        let fail = |why: String, next: &str| PolicyError { path: shown.clone(), why, next: next.to_owned() };
        let unreadable = |e: std::io::Error| fail(e.to_string(), "give a TOML file that can be read");
        let data = std::fs::metadata(path).map_err(unreadable)?;
        if !data.is_file() {
            return Err(fail("it is not a file".to_owned(), "give the policy file"));
        }
        let size = data.len();
        if size > MOST_BYTES {
            return Err(fail(format!("it has {size} bytes, at most {MOST_BYTES} are read"), "give the policy file"));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text)
            .map_err(|why| fail(why, "correct the key or value; docs/trust.md and the README name every key"))
    }

    /// From text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let policy: Self = toml::from_str(text).map_err(|e| explain(text, &e))?;
        policy.check()?;
        Ok(policy)
    }

    fn check(&self) -> Result<(), String> {
        let names: Vec<&str> = Hook::ALL.iter().map(|hook| hook.name()).collect();
        for name in self.hooks.keys() {
            if !names.contains(&name.as_str()) {
                let shown = crate::base::text::clean(name, 60);
                let hint = nearest(name, names.iter().copied()).map(|known| format!(" (did you mean `{known}`?)"));
                let hint = hint.unwrap_or_default();
                return Err(format!("[hooks.{shown}] is no hook{hint}; hooks are {}", names.join(", ")));
            }
        }
        let share = |what: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(format!("{what} is {value}; it must be from 0 to 1")),
        };
        share("failure.jitter", self.failure.jitter)?;
        share("shadow.max_bytes_changed", self.shadow.max_bytes_changed)?;
        share("shadow.max_scales_changed", self.shadow.max_scales_changed)?;
        share("shadow.max_saturated", self.shadow.max_saturated)?;
        share("shadow.sample", self.shadow.sample)?;
        if self.shadow.max_snr_loss_db.is_nan() || self.shadow.max_snr_loss_db < 0.0 {
            return Err(format!("shadow.max_snr_loss_db is {}; it must be 0 or more", self.shadow.max_snr_loss_db));
        }
        if self.failure.restart_budget == 0 {
            return Err("failure.restart_budget is 0; it must be at least 1".to_owned());
        }
        if !(1..=16).contains(&self.swap.retain) {
            return Err(format!("swap.retain is {}; it must be from 1 to 16", self.swap.retain));
        }
        self.trust.check()?;
        self.audit.check().map_err(|fault| fault.to_string())?;
        self.limits.check().map_err(|why| format!("limits.{why}"))?;
        if !(1..=256).contains(&self.swap.max_staged) {
            return Err(format!("swap.max_staged is {}; it must be from 1 to 256", self.swap.max_staged));
        }
        Ok(())
    }

    /// The digest of all that it says, defaults included: what the ledger and the lock call it.
    pub fn digest(&self) -> Digest {
        Digest::of(serde_json::json!(self).to_string().as_bytes())
    }

    /// For patches in child processes: native code stands in while a process that died is started again, for the hooks that
    /// have native code and of which the file says nothing.
    #[must_use]
    pub fn isolated(mut self) -> Self {
        for hook in Hook::ALL.into_iter().filter(|hook| super::has_native(*hook)) {
            let native = HookPolicy { on_failure: OnFailure::Native };
            self.hooks.entry(hook.name().to_owned()).or_insert(native);
        }
        self
    }

    /// What happens when the patch of `hook` fails.
    pub fn on_failure(&self, hook: Hook) -> OnFailure {
        // The rows are a part of the block-quant hook.
        let hook = if hook == Hook::BlockQuantRows { Hook::BlockQuant } else { hook };
        self.hooks.get(hook.name()).copied().unwrap_or_default().on_failure
    }
}

impl FailurePolicy {
    /// How long the patch is left alone after its `failures`-th failure; `random` is from 0 to 1.
    pub fn backoff(&self, failures: u32, random: f64) -> Duration {
        let doubled = self.backoff_ms.saturating_mul(1 << failures.saturating_sub(1).min(32)).min(self.backoff_max_ms);
        let factor = 1.0 + self.jitter * (2.0 * random.clamp(0.0, 1.0) - 1.0);
        Duration::from_millis((doubled as f64 * factor) as u64)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_policy_is_read() {
        let text = "[hooks.block-quant]\non_failure = \"native\"\n[failure]\nrestart_budget = 5\n[shadow]\nmax_scale_ulp = 2\n";
        let policy = Policy::parse(text).unwrap();
        assert_eq!(policy.on_failure(Hook::BlockQuant), OnFailure::Native);
        assert_eq!(policy.on_failure(Hook::BlockQuantRows), OnFailure::Native);
        assert_eq!(policy.on_failure(Hook::Layout), OnFailure::Closed);
        assert_eq!((policy.failure.restart_budget, policy.shadow.max_scale_ulp), (5, Some(2)));
        assert_eq!(Policy::parse("").unwrap(), Policy::default());
    }

    #[test]
    fn what_the_file_says_stays_when_isolated() {
        let policy = Policy::parse("[hooks.layout]\non_failure = \"closed\"\n").unwrap().isolated();
        assert_eq!(policy.on_failure(Hook::BlockQuant), OnFailure::Native);
        assert_eq!(policy.on_failure(Hook::Layout), OnFailure::Closed);
        assert_eq!(policy.on_failure(Hook::LoaderMap), OnFailure::Closed, "it has no native code");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bad = [
            ("[hooks.block-qant]\n", "block-qant"),
            ("[hooks.layout]\non_failure = \"open\"\n", "open"),
            ("[failure]\nbudget = 1\n", "budget"),
            ("[failure]\njitter = 2.0\n", "failure.jitter is 2"),
            ("[failure]\nrestart_budget = 0\n", "restart_budget"),
            ("[shadow]\nmax_snr_loss_db = nan\n", "max_snr_loss_db"),
            ("[swap]\nretain = 0\n", "swap.retain"),
            ("surprise = 1\n", "surprise"),
        ];
        for (text, named) in bad {
            let why = Policy::parse(text).unwrap_err();
            assert!(why.contains(named), "{text}: {why}");
        }
    }

    #[test]
    fn backoff_doubles_and_is_bounded() {
        let failure = FailurePolicy { jitter: 0.0, backoff_ms: 100, backoff_max_ms: 1000, ..FailurePolicy::default() };
        let ms = |n| failure.backoff(n, 0.9).as_millis();
        assert_eq!((ms(1), ms(2), ms(3), ms(4), ms(5), ms(60)), (100, 200, 400, 800, 1000, 1000));
        let jittery = FailurePolicy { jitter: 0.25, ..failure };
        assert_eq!(jittery.backoff(1, 0.0).as_millis(), 75);
        assert_eq!(jittery.backoff(1, 1.0).as_millis(), 125);
    }
}
