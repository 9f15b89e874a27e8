//! One patch of the lock.

use crate::audit::{Report, Severity, catalogue};
use crate::base::Day;
use crate::base::{Digest, Grants};
use crate::patch::{Limits, identity};
use crate::trust::Signature;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// What was decided about one patch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// How it is called; the stem of its file unless somebody chose another name.
    pub name: String,
    /// Its file when it was locked, relative to the lock where it lies below; for bundled patches their name.
    pub file: String,
    /// Digest of the component.
    pub digest: Digest,
    /// How many bytes the component has.
    pub size: u64,
    /// Digest of component, settings, limits and grants: what may run.
    pub generation: Digest,
    /// Digest of the settings.
    pub config: Digest,
    /// Digest of everything else that stands in this entry, the review too; none in locks of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Digest>,
    /// The version that the patch gives itself.
    pub version: String,
    /// Version of the interface that it was built for.
    pub interface: String,
    /// Names of the hooks that it exports.
    pub hooks: Vec<String>,
    /// Names of what it imports from the host.
    pub imports: Vec<String>,
    /// Proposals beyond the first WebAssembly that its code uses.
    pub features: Vec<String>,
    /// In the order in which it gets them.
    pub settings: Vec<Setting>,
    /// Digest of the policy when it was locked.
    pub policy: Digest,
    /// The limits that were set for this patch; the others follow the policy.
    pub limits_set: Vec<String>,
    /// What it may use.
    pub limits: Limits,
    /// What it may reach.
    #[serde(default, skip_serializing_if = "Grants::is_none")]
    pub grants: Grants,
    /// What the audit said.
    pub audit: AuditRecord,
    /// Who looked at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub review: Option<Review>,
    /// The signatures that counted when it was locked. They are verified again whenever it is loaded.
    #[serde(default, rename = "signature", skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<Signature>,
}

/// One setting, written `key=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting(pub String, pub String);

/// What an audit said, short enough for a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditRecord {
    /// Version of the host.
    pub tool: String,
    /// Digest of its rules.
    pub rules: Digest,
    /// Findings that were errors: always 0, or it would not be here.
    pub errors: usize,
    /// How many findings were warnings.
    pub warnings: usize,
    /// How many findings were notes.
    pub infos: usize,
    /// Digest of the report as JSON.
    pub report: Digest,
}

/// Somebody looked at it and said so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Review {
    /// Name of the reviewer, as it was given.
    pub who: String,
    /// Day of the review.
    pub date: Day,
    /// What the reviewer has to say about the component.
    pub note: String,
    /// The bytes that he looked at.
    pub digest: Digest,
}

impl Entry {
    /// The settings as the patch gets them.
    pub fn pairs(&self) -> Vec<(String, String)> {
        self.settings.iter().map(|Setting(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The identity of what stands here now. Another one than `generation`: somebody changed it by hand.
    pub fn identity(&self) -> Digest {
        identity(&self.digest, &self.pairs(), &self.limits, &self.imports, &self.grants)
    }

    /// Whether it is as it was locked.
    pub fn is_untouched(&self) -> bool {
        self.fits() && self.seal.is_none_or(|seal| seal == self.seal_now())
    }

    /// Whether what runs is what was locked: component, settings, limits and grants.
    pub(crate) fn fits(&self) -> bool {
        self.identity() == self.generation && config_digest(&self.pairs()) == self.config
    }

    /// The digest of what stands here now: as JSON, in the order of the fields above, without the seal itself.
    pub(crate) fn seal_now(&self) -> Digest {
        let bare = Self { seal: None, ..self.clone() };
        Digest::of(serde_json::json!(["patchhost lock entry 2", bare]).to_string().as_bytes())
    }

    /// The same with a seal over all of it.
    #[must_use]
    pub(crate) fn sealed(self) -> Self {
        Self { seal: Some(self.seal_now()), ..self }
    }
}

/// The digest of settings, in their order.
pub fn config_digest(settings: &[(String, String)]) -> Digest {
    Digest::of(serde_json::json!(settings).to_string().as_bytes())
}

impl AuditRecord {
    /// The summary of a report, as it is written into the lock.
    pub fn of(report: &Report) -> Self {
        let text = |value: serde_json::Result<String>| value.unwrap_or_default();
        Self {
            tool: env!("CARGO_PKG_VERSION").to_owned(),
            rules: Digest::of(text(serde_json::to_string(&catalogue())).as_bytes()),
            errors: report.errors(),
            warnings: report.count(Severity::Warn),
            infos: report.count(Severity::Info),
            report: Digest::of(text(serde_json::to_string(report)).as_bytes()),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.0, self.1)
    }
}

impl Serialize for Setting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Setting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let pair = text.split_once('=').map(|(key, value)| Self(key.to_owned(), value.to_owned()));
        pair.ok_or_else(|| serde::de::Error::custom("a setting is KEY=VALUE"))
    }
}
