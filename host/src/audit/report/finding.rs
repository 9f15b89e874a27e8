//! What an audit found.

use crate::audit::Facts;
use crate::base::Digest;
use crate::base::{Hook, is_state};
use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Worth a look.
    Warn,
    /// The component is refused.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `PHnnn`.
    pub id: &'static str,
    /// Name of the rule.
    pub slug: &'static str,
    /// How bad.
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
    /// A WebAssembly component.
    Component,
    /// A core module.
    CoreModule,
    /// Native code: ELF, which is what `.cwasm` is too.
    Native,
    /// Something else.
    Unknown,
}

/// Everything an audit says about one file.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Digest of the bytes.
    pub digest: Digest,
    /// How many.
    pub size: usize,
    /// What they are.
    pub kind: Kind,
    /// Imported names, escaped.
    pub imports: Vec<String>,
    /// Exported names, escaped.
    pub exports: Vec<String>,
    /// The hooks among the exports.
    pub hooks: Vec<Hook>,
    /// Sorted by severity, worst first, then by rule.
    pub findings: Vec<Finding>,
    /// What was counted.
    pub facts: Facts,
    /// Whether it was validated: not where a cost rule refused it before.
    pub validated: bool,
}

impl Report {
    /// Findings in order again, after some were added.
    pub(crate) fn sort(&mut self) {
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
