//! PH705 to PH714: who said that these bytes may run. `crate::trust` decides; here is what it calls its findings.

use super::Rule;
use crate::audit::report::{Finding, Severity};

pub(crate) const UNSIGNED: Rule =
    Rule::info("PH705", "unsigned", "Nobody signed the file. An error where the policy requires signatures.");
pub(crate) const BAD_SIGNATURE: Rule =
    Rule::error("PH706", "bad-signature", "A signature that its key did not make for these bytes, or that has ended.");
pub(crate) const SIGNER_NOT_ALLOWED: Rule = Rule::error(
    "PH707",
    "signer-not-allowed",
    "A signature by a key that the policy does not name, not for these hooks, or not any more.",
);
pub(crate) const PARTIAL_SIGNATURE: Rule =
    Rule::error("PH708", "partial-signature", "Fewer different signers than the policy's threshold.");
pub(crate) const NOT_IN_LOCK: Rule =
    Rule::error("PH709", "not-in-lock", "There is a lock, and it does not know the patch.");
pub(crate) const DIGEST_MISMATCH: Rule = Rule::error(
    "PH710",
    "digest-mismatch",
    "The lock has the patch with other bytes, settings, limits or grants: it is another generation.",
);
pub(crate) const DOWNGRADE: Rule =
    Rule::error("PH711", "downgrade", "A lower version than the one in the lock: old errors would come back.");
pub(crate) const NO_REVIEW: Rule =
    Rule::warn("PH712", "no-review", "Nobody wrote down a review of these bytes, or it is too old.");
pub(crate) const NOT_REPRODUCIBLE: Rule =
    Rule::warn("PH713", "not-reproducible", "Its declared sources and tools give other bytes.");
pub(crate) const REVOKED: Rule = Rule::error("PH714", "revoked", "The bytes, or a key that signed them, are revoked.");

pub(super) const RULES: [Rule; 10] = [
    UNSIGNED,
    BAD_SIGNATURE,
    SIGNER_NOT_ALLOWED,
    PARTIAL_SIGNATURE,
    NOT_IN_LOCK,
    DIGEST_MISMATCH,
    DOWNGRADE,
    NO_REVIEW,
    NOT_REPRODUCIBLE,
    REVOKED,
];

/// A finding of one of these rules.
pub(crate) fn found(rule: &Rule, message: impl Into<String>, fix: impl Into<String>) -> Finding {
    rule.finding(message, fix)
}

/// The same with the severity that the policy gives it.
pub(crate) fn found_as(severity: Severity, rule: &Rule, message: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { severity, ..rule.finding(message, fix) }
}
