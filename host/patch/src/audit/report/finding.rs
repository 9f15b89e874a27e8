//! What an audit found.

use crate::audit::Facts;
use crate::base::Digest;
use crate::base::{Hook, is_state};
use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A note: nothing is wrong, and a reviewer may want to know.
    Info,
    /// A warning: somebody should look before it is used. It refuses nothing.
    Warn,
    /// The component is refused.
    Error,
}

/// One thing that a rule found: what, where, how bad, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Id of the rule: `PHnnn`.
    pub id: &'static str,
    /// Name of the rule.
    pub slug: &'static str,
    /// How bad it is, after the policy had its say.
    pub severity: Severity,
    /// What was found. Names out of the component are escaped.
    pub message: String,
    /// Function or section, and byte offset, where there is one.
    #[serde(rename = "where", skip_serializing_if = "String::is_empty")]
    pub where_: String,
    /// What to do about it.
    pub fix: String,
}

impl Finding {
    /// `PH802 nested-components: message (where)`.
    pub fn line(&self) -> String {
        let Finding { id, slug, message, where_, .. } = self;
        if where_.is_empty() { format!("{id} {slug}: {message}") } else { format!("{id} {slug}: {message} ({where_})") }
    }
}

/// What kind of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A WebAssembly component: the only kind that can be a patch.
    Component,
    /// A core module of WebAssembly, which is not yet a component.
    CoreModule,
    /// Native code: ELF, which is what `.cwasm` is too.
    Native,
    /// Anything else: it does not begin like any of these.
    Unknown,
}

/// Everything an audit says about one file.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Digest of the bytes.
    pub digest: Digest,
    /// How many bytes the file has.
    pub size: usize,
    /// What kind of file it is, by its first bytes.
    pub kind: Kind,
    /// Names of what it imports, escaped to be shown.
    pub imports: Vec<String>,
    /// Names of what it exports, escaped to be shown.
    pub exports: Vec<String>,
    /// The hooks among the exports.
    pub hooks: Vec<Hook>,
    /// Sorted by severity, worst first, then by rule.
    pub findings: Vec<Finding>,
    /// The numbers that the rules looked at.
    pub facts: Facts,
    /// Whether it was validated: not where a cost rule refused it before.
    pub validated: bool,
}

impl Report {
    /// Findings in order again, after some were added.
    pub fn sort(&mut self) {
        self.findings.sort_by(|a, b| (b.severity, a.id, &a.message).cmp(&(a.severity, b.id, &b.message)));
    }

    /// How many findings refuse the component.
    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    /// Whether the component exports `state`: what it remembers can be handed over at a swap.
    pub fn has_state(&self) -> bool {
        self.exports.iter().any(|name| is_state(name))
    }

    /// How many findings have this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}
