//! What happens when a patch fails, how much a candidate may differ, and how long things may take: the part of the policy
//! file that the board follows. The file itself, which also says whom to trust, is `trust::Policy`.

use crate::base::{Digest, Hook, nearest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a board follows for its life. `Rules::default()` is what holds where there is no policy file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules {
    /// Per hook, by its WIT name: `[hooks.block-quant]`.
    pub hooks: BTreeMap<String, HookPolicy>,
    /// When a patch that failed is asked again, and when no more.
    pub failure: FailurePolicy,
    /// What a candidate in shadow or canary may do.
    pub shadow: ShadowPolicy,
    /// How many sets are kept, and for how long.
    pub swap: SwapPolicy,
    /// Digest of the whole policy file, which the board writes to its ledger; none: these rules come from no file.
    pub file: Option<Digest>,
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

impl std::fmt::Display for OnFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::LastGood => "last-good",
            Self::Native => "native",
        })
    }
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

impl Rules {
    /// What the types do not say: names of hooks, and numbers that make no sense.
    pub(crate) fn check(&self) -> Result<(), String> {
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
        if !(1..=256).contains(&self.swap.max_staged) {
            return Err(format!("swap.max_staged is {}; it must be from 1 to 256", self.swap.max_staged));
        }
        Ok(())
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
    use super::*;

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
