//! The `--policy` file (TOML): the rules that the board follows, whom to trust, what the audit asks for, and what a patch
//! may use. Nothing is guessed: what the file does not say has a default, and unknown keys are errors.

use super::{Places, TrustPolicy};
use crate::audit::AuditPolicy;
use crate::base::{Code, Digest, Exit, Hook, explain};
use crate::patch::{FailurePolicy, HookPolicy, Limits, OnFailure, Rules, ShadowPolicy, SwapPolicy, has_native};
use patchhost_runtime::error::Refusal;
use patchhost_runtime::refit::{Differs, NonFinite, RefitRules};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Its name where nobody gives another.
pub const POLICY_FILE: &str = "patchhost.toml";
/// Largest policy file.
const MOST_BYTES: u64 = 1 << 20;

/// The whole file. Ledgers and locks name it by [`Policy::digest`], which depends on the order of these fields.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Per hook, by its WIT name: `[hooks.block-quant]`.
    pub hooks: BTreeMap<String, HookPolicy>,
    /// When a patch that failed is asked again, and when no more.
    pub failure: FailurePolicy,
    /// What a candidate in shadow or canary may do.
    pub shadow: ShadowPolicy,
    /// How many sets are kept, and for how long.
    pub swap: SwapPolicy,
    /// Caps and rules of the audit.
    pub audit: AuditPolicy,
    /// Lock file, signers, revocations.
    pub trust: TrustPolicy,
    /// What a patch may use, where the lock gives it no limits of its own.
    pub limits: Limits,
    /// Weights that are NaN or infinite.
    #[serde(skip_serializing_if = "is_default")]
    pub quant: QuantPolicy,
    /// Where a loader map may put tensors.
    #[serde(skip_serializing_if = "is_default")]
    pub loader: LoaderPolicy,
}

/// `[quant]`: what holds whatever a patch's scheme says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantPolicy {
    /// What becomes of a refit with weights that are NaN or infinite.
    pub non_finite: NonFinite,
}

/// `[loader]`: what holds whatever a loader map says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderPolicy {
    /// What becomes of placements that differ from the host's own map.
    pub differs: Differs,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A policy file was refused.
#[derive(Debug, thiserror::Error)]
#[error("refused: {}", self.parts())]
pub struct PolicyError {
    path: String,
    why: String,
    next: String,
}

impl Exit for PolicyError {
    fn exit(&self) -> Code {
        Code::Usage
    }

    fn parts(&self) -> Refusal {
        let what = format!("policy file `{}`", self.path);
        Refusal { what, why: self.why.clone(), next: self.next.clone() }
    }
}

impl Policy {
    /// The policy that somebody named, else that of the working directory, else the defaults; and where lock and revocations
    /// lie by it. `lock`: a lock file that somebody named.
    pub fn found(policy: Option<&Path>, lock: Option<&Path>) -> Result<(Self, Places), PolicyError> {
        let here = Path::new(POLICY_FILE);
        // A link to nowhere is meant to be a policy too.
        let file = policy.or_else(|| here.symlink_metadata().is_ok().then_some(here));
        let read = file.map(Self::read).transpose()?.unwrap_or_default();
        let places = Places::of(&read.trust, file, lock);
        Ok((read, Places { policy: policy.map(Path::to_path_buf), ..places }))
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let shown = crate::base::text::clean(&path.display().to_string(), 200);
        let fail = |why: String, next: &str| PolicyError { path: shown.clone(), why, next: next.to_owned() };
        let unreadable = |e: std::io::Error| fail(e.to_string(), "give a TOML file that can be read");
        let text = patchhost_runtime::files::read_text(path, MOST_BYTES).map_err(unreadable)?;
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
        self.rules().check()?;
        self.trust.check()?;
        self.audit.check().map_err(|fault| fault.to_string())?;
        self.limits.check().map_err(|why| format!("limits.{why}"))
    }

    /// The part that a board follows.
    pub fn rules(&self) -> Rules {
        let (hooks, failure, shadow, swap) = (self.hooks.clone(), self.failure, self.shadow, self.swap);
        Rules { hooks, failure, shadow, swap, file: Some(self.digest()) }
    }

    /// The part that every refit keeps to.
    pub fn refit_rules(&self) -> RefitRules {
        RefitRules { non_finite: self.quant.non_finite, differs: self.loader.differs }
    }

    /// The digest of all that it says, defaults included: what the ledger and the lock call it.
    pub fn digest(&self) -> Digest {
        Digest::of(serde_json::json!(self).to_string().as_bytes())
    }

    /// For patches in child processes: native code stands in while a process that died is started again, for the hooks that
    /// have native code and of which the file says nothing.
    #[must_use]
    pub fn isolated(mut self) -> Self {
        for hook in Hook::ALL.into_iter().filter(|hook| has_native(*hook)) {
            let native = HookPolicy { on_failure: OnFailure::Native };
            self.hooks.entry(hook.name().to_owned()).or_insert(native);
        }
        self
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
        assert_eq!(policy.rules().on_failure(Hook::BlockQuant), OnFailure::Native);
        assert_eq!(policy.rules().on_failure(Hook::BlockQuantRows), OnFailure::Native);
        assert_eq!(policy.rules().on_failure(Hook::Layout), OnFailure::Closed);
        assert_eq!((policy.failure.restart_budget, policy.shadow.max_scale_ulp), (5, Some(2)));
        assert_eq!(Policy::parse("").unwrap(), Policy::default());
    }

    #[test]
    fn the_operator_speaks_about_refits() {
        assert_eq!(Policy::default().refit_rules(), RefitRules::default());
        let policy = Policy::parse("[quant]\nnon_finite = \"allow\"\n[loader]\ndiffers = \"refuse\"\n").unwrap();
        let rules = RefitRules { non_finite: NonFinite::Allow, differs: Differs::Refuse };
        assert_eq!(policy.refit_rules(), rules);
        assert_ne!(policy.digest(), Policy::default().digest());
    }

    #[test]
    fn what_the_file_says_stays_when_isolated() {
        let policy = Policy::parse("[hooks.layout]\non_failure = \"closed\"\n").unwrap().isolated();
        assert_eq!(policy.rules().on_failure(Hook::BlockQuant), OnFailure::Native);
        assert_eq!(policy.rules().on_failure(Hook::Layout), OnFailure::Closed);
        assert_eq!(policy.rules().on_failure(Hook::LoaderMap), OnFailure::Closed, "it has no native code");
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
            ("[quant]\nnon_finite = \"maybe\"\n", "maybe"),
            ("[quant]\nnonfinite = \"allow\"\n", "nonfinite"),
            ("[loader]\ndiffers = true\n", "line 2"),
        ];
        for (text, named) in bad {
            let why = Policy::parse(text).unwrap_err();
            assert!(why.contains(named), "{text}: {why}");
        }
    }

    #[test]
    fn ledgers_and_locks_of_before_name_the_same_digest() {
        let policy = serde_json::json!(Policy::default());
        let fields: Vec<&String> = policy.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["hooks", "failure", "shadow", "swap", "audit", "trust", "limits"]);
        assert_eq!(Policy::default().rules().file, Some(Digest::of(policy.to_string().as_bytes())));
    }
}
