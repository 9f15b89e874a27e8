//! Which signatures count, by the policy.

use super::{PublicKey, Revocation, Revoked, Signature, Signer, TrustPolicy};
use crate::audit::trust_rules::{
    BAD_SIGNATURE, PARTIAL_SIGNATURE, REVOKED, SIGNER_NOT_ALLOWED, UNSIGNED, found, found_as,
};
use crate::audit::{Finding, Severity};
use crate::base::Day;
use crate::base::Hook;
use crate::base::text::clean;
use serde::Serialize;
use std::cell::OnceCell;
use std::time::SystemTime;

/// A signature that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signed {
    /// Who, as the policy calls him.
    pub name: String,
    /// His key.
    pub key: PublicKey,
    /// When, as he says.
    pub signed_at: String,
    /// The last day on which it counts.
    pub not_after: Option<Day>,
}

/// What the signatures of one file are worth.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// One per signer.
    pub good: Vec<Signed>,
    /// What is wrong, and what is missing.
    pub findings: Vec<Finding>,
}

/// What signatures are judged by.
pub struct Judge<'a> {
    /// Signers, threshold, and whether signatures are needed.
    pub policy: &'a TrustPolicy,
    /// What is revoked, wherever it is written down.
    pub revoked: &'a [Revocation],
    /// The hooks of the component. Asked for only where a signer is for some hooks only.
    pub hooks: &'a dyn Fn() -> Vec<Hook>,
    /// Something else vouches for the bytes: the host's own binary for bundled patches.
    pub vouched: bool,
    /// What time it is.
    pub now: SystemTime,
}

const SIGN: &str = "sign it with `patchhost sign X.wasm --key KEY`";

impl Judge<'_> {
    /// Judges all signatures of a file.
    pub fn judge(&self, file: &[u8], signatures: &[Signature]) -> Verdict {
        let mut verdict = Verdict::default();
        let hooks = OnceCell::new();
        let mut problems = Vec::new();
        for signature in signatures {
            match self.one(file, signature, &hooks) {
                // One key counts once, however often it signed.
                Ok(signed) if verdict.good.iter().all(|other| other.key != signed.key) => verdict.good.push(signed),
                Ok(_) => {}
                Err(finding) => problems.push(finding),
            }
        }
        let (count, needed) = (verdict.good.len(), self.policy.threshold);
        let enough = count >= needed;
        for mut problem in problems {
            // A file that enough signers signed stays good when others sign it too; but nobody needs forged signatures.
            if enough && problem.1 {
                problem.0.severity = problem.0.severity.min(Severity::Warn);
            }
            verdict.findings.push(problem.0);
        }
        let required = self.policy.require_signature && !self.vouched;
        let names = self.policy.signers.iter().map(|s| clean(&s.name, 60)).collect::<Vec<_>>().join(", ");
        if signatures.is_empty() && !self.vouched {
            let severity = if required { Severity::Error } else { Severity::Info };
            let asks = match required {
                true => format!("nobody signed it; the policy asks for {needed} of {names}"),
                false => "nobody signed it; no policy asks for it".to_owned(),
            };
            verdict.findings.push(found_as(severity, &UNSIGNED, asks, SIGN));
        } else if !enough && !signatures.is_empty() && !self.policy.signers.is_empty() {
            let severity = if required { Severity::Error } else { Severity::Warn };
            let message = format!("{count} of {needed} signers signed it; signers are {names}");
            verdict.findings.push(found_as(severity, &PARTIAL_SIGNATURE, message, SIGN));
        }
        verdict
    }

    /// The error says with `true` that enough other signatures make up for it.
    fn one(&self, file: &[u8], signature: &Signature, hooks: &OnceCell<Vec<Hook>>) -> Result<Signed, (Finding, bool)> {
        let key = signature.key;
        let signer = self.policy.signers.iter().find(|signer| signer.key == key);
        let who = signer.map_or_else(|| key.to_string(), |signer| format!("`{}`", clean(&signer.name, 60)));
        if let Err(why) = signature.verify(file) {
            let message = format!("the signature of {who} is not good: {why}");
            return Err((found(&BAD_SIGNATURE, message, "take the file that was signed, or sign this one"), false));
        }
        if let Some(revoked) = self.revoked.iter().find(|revoked| revoked.what == Revoked::Key(key)) {
            let message = format!("{who} signed it, whose key {key} is revoked: {}", clean(&revoked.reason, 200));
            return Err((
                found(&REVOKED, message, "have somebody review and sign it with a key that is not revoked"),
                true,
            ));
        }
        if let Some(day) = signature.not_after.filter(|day| day.is_over(self.now)) {
            let message = format!("the signature of {who} ended on {day}");
            return Err((found(&BAD_SIGNATURE, message, "have it signed anew"), true));
        }
        let Some(signer) = signer else { return Err((self.stranger(&key), true)) };
        let refuse = |why: String| (found(&SIGNER_NOT_ALLOWED, why, "have it signed by a signer of the policy"), true);
        if let Some(day) = signer.not_after.filter(|day| day.is_over(self.now)) {
            return Err(refuse(format!("{who} signed it, who is a signer until {day} only")));
        }
        if let Some(hook) = not_for(signer, hooks.get_or_init(|| self.hooks_if_needed())) {
            let for_ = signer.hooks.join(", ");
            return Err(refuse(format!("{who} signed it, who is a signer for {for_}, not for {hook}")));
        }
        Ok(Signed {
            name: signer.name.clone(),
            key,
            signed_at: clean(&signature.signed_at, 40),
            not_after: signature.not_after,
        })
    }

    fn stranger(&self, key: &PublicKey) -> Finding {
        let fix = "have it signed by a signer of the policy, or add the key to [[trust.signers]]";
        match self.policy.signers.is_empty() {
            true => {
                found_as(Severity::Info, &SIGNER_NOT_ALLOWED, format!("{key} signed it; no policy names signers"), fix)
            }
            false => found(&SIGNER_NOT_ALLOWED, format!("signed by {key}, which is none of the policy's signers"), fix),
        }
    }

    fn hooks_if_needed(&self) -> Vec<Hook> {
        match self.policy.signers.iter().all(Signer::for_all_hooks) {
            true => Vec::new(),
            false => (self.hooks)(),
        }
    }
}

fn not_for(signer: &Signer, hooks: &[Hook]) -> Option<Hook> {
    signer.not_for(hooks)
}
