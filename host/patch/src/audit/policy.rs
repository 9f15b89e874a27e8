//! What a policy file says about audits: `[audit]`.

use super::Caps;
use super::report::Finding;
use crate::base::Digest;
use crate::base::Grants;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The `[audit]` table of a policy file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditPolicy {
    /// Caps on what may reach the compiler.
    pub caps: Caps,
    /// Tools that may have made a component, by name or `name version`: `rustc 1.96`; none: any.
    pub toolchains: Vec<String>,
    /// Other severities of rules, by id or slug: `PH503 = "allow"`.
    pub rules: BTreeMap<String, Level>,
    /// Findings that were looked at and accepted.
    pub ignore: Vec<Ignore>,
}

/// What a rule's findings count as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Not shown at all.
    Allow,
    /// A note.
    Info,
    /// A warning.
    Warn,
    /// The component is refused.
    Deny,
}

/// One accepted finding. It is for one file, and it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ignore {
    /// Id or slug of the rule.
    pub rule: String,
    /// Digest of the component.
    pub digest: Digest,
    /// Why it is accepted.
    pub reason: String,
    /// Day on which it ends: `2026-12-31`.
    pub expires: String,
}

/// What an audit is made with.
#[derive(Debug, Clone, Default)]
pub struct AuditOptions {
    /// Of the policy file.
    pub policy: AuditPolicy,
    /// What was granted to the component.
    pub grants: Grants,
    /// Findings of others about the same bytes: lock, signatures, revocations.
    pub more: Vec<Finding>,
}
