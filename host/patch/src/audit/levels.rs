//! What a policy makes of findings: other severities, and findings that were looked at and accepted.

use super::policy::{AuditPolicy, Ignore, Level};
use super::report::{Finding, Severity};
use super::rules::{Rule, catalogue};
use crate::base::text;
use crate::base::{Day, Digest, nearest};
use std::time::SystemTime;

const IGNORE: Rule = Rule::warn(
    "PH717",
    "ignore-unused",
    "The policy accepts a finding that is not there, or no longer: the line should go.",
);

pub(super) const RULES: [Rule; 1] = [IGNORE];

/// A policy that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}; {next}")]
pub struct PolicyFault {
    /// Which line of the policy cannot be followed, and why.
    pub why: String,
    /// What to do about it.
    pub next: String,
}

/// Rules that protect the host itself from what it reads, links and compiles: no policy can lower them.
fn protects_the_host(id: &str) -> bool {
    matches!(id, "PH001" | "PH002" | "PH003" | "PH004" | "PH005" | "PH506" | "PH802" | "PH803" | "PH714")
        || ["PH1", "PH2", "PH3", "PH4"].iter().any(|group| id.starts_with(group))
}

impl AuditPolicy {
    /// Refuses rules that do not exist, rules that may not be lowered, and ignores without reason or end.
    pub fn check(&self) -> Result<(), PolicyFault> {
        let fault = |why: String, next: String| Err(PolicyFault { why, next });
        let all = catalogue();
        for (name, level) in &self.rules {
            let Some(rule) = find(&all, name) else {
                let shown = text::clean(name, 60);
                let next = match nearest(name, all.iter().flat_map(|rule| [rule.id, rule.slug])) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "`patchhost audit --rules` lists every rule".to_owned(),
                };
                return fault(format!("[audit.rules] `{shown}` is no rule"), next);
            };
            let lowers = rule.severity == Severity::Error && *level != Level::Deny;
            if lowers && protects_the_host(rule.id) {
                let why = format!("[audit.rules] {} `{}` protects the host and cannot be lowered", rule.id, rule.slug);
                return fault(why, "mend the component instead; WASI is granted by `patchhost grant`".to_owned());
            }
        }
        for ignore in &self.ignore {
            let shown = text::clean(&ignore.rule, 60);
            let Some(rule) = find(&all, &ignore.rule) else {
                return fault(format!("[[audit.ignore]] `{shown}` is no rule"), "give an id such as PH503".to_owned());
            };
            if rule.severity == Severity::Error && protects_the_host(rule.id) {
                let why =
                    format!("[[audit.ignore]] {} `{}` protects the host and cannot be ignored", rule.id, rule.slug);
                return fault(why, "mend the component instead".to_owned());
            }
            if ignore.reason.trim().is_empty() {
                return fault(
                    format!("[[audit.ignore]] of `{shown}` has no reason"),
                    "say why it is accepted".to_owned(),
                );
            }
            if ignore.expires.parse::<Day>().is_err() {
                let why = format!("[[audit.ignore]] of `{shown}` expires `{}`", text::clean(&ignore.expires, 40));
                return fault(why, "give a day: 2026-12-31".to_owned());
            }
        }
        Ok(())
    }
}

fn find<'a>(all: &'a [Rule], name: &str) -> Option<&'a Rule> {
    all.iter().find(|rule| rule.id == name || rule.slug == name)
}

/// Gives findings the policy's severities, and takes out those that it accepts for this file.
pub(super) fn apply(policy: &AuditPolicy, digest: &Digest, findings: &mut Vec<Finding>) {
    let level = |finding: &Finding| policy.rules.get(finding.id).or_else(|| policy.rules.get(finding.slug)).copied();
    findings.retain_mut(|finding| {
        let bound = finding.severity == Severity::Error && protects_the_host(finding.id);
        match level(finding) {
            Some(Level::Deny) => finding.severity = Severity::Error,
            _ if bound => {}
            Some(Level::Allow) => return false,
            Some(Level::Info) => finding.severity = Severity::Info,
            Some(Level::Warn) => finding.severity = Severity::Warn,
            None => {}
        }
        true
    });
    let now = SystemTime::now();
    for ignore in policy.ignore.iter().filter(|ignore| ignore.digest == *digest) {
        accept(ignore, now, findings);
    }
}

fn accept(ignore: &Ignore, now: SystemTime, findings: &mut Vec<Finding>) {
    let rule = text::clean(&ignore.rule, 60);
    let mut say = |message: String| findings.push(IGNORE.finding(message, "take the line out of the policy"));
    if ignore.expires.parse::<Day>().ok().is_none_or(|last| last.is_over(now)) {
        say(format!("the policy accepted {rule} until {}", text::clean(&ignore.expires, 40)));
        return;
    }
    let before = findings.len();
    let named = |finding: &Finding| finding.id == ignore.rule || finding.slug == ignore.rule;
    let bound = |finding: &Finding| finding.severity == Severity::Error && protects_the_host(finding.id);
    findings.retain(|finding| !named(finding) || bound(finding));
    if findings.len() == before {
        let message = format!("the policy accepts {rule}, which is not there");
        findings.push(IGNORE.finding(message, "take the line out of the policy"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn finding(id: &'static str, severity: Severity) -> Finding {
        let rule = *find(&catalogue(), id).unwrap();
        Finding { severity, ..rule.finding("x", "y") }
    }

    fn applied(policy: &str, findings: &[Finding]) -> Vec<(&'static str, Severity)> {
        let policy: AuditPolicy = toml::from_str(policy).unwrap();
        policy.check().unwrap();
        let mut findings = findings.to_vec();
        apply(&policy, &Digest::ZERO, &mut findings);
        findings.iter().map(|f| (f.id, f.severity)).collect()
    }

    #[test]
    fn levels_and_ignores() {
        let found = [finding("PH503", Severity::Info), finding("PH504", Severity::Warn)];
        assert_eq!(applied("[rules]\nPH503 = \"allow\"\nrecursion = \"deny\"", &found), [("PH504", Severity::Error)]);
        let ignore = |rule: &str, expires: &str| {
            let zero = Digest::ZERO;
            format!("[[ignore]]\nrule = \"{rule}\"\ndigest = \"{zero}\"\nreason = \"seen\"\nexpires = \"{expires}\"\n")
        };
        assert_eq!(applied(&ignore("PH504", "2999-01-01"), &found), [("PH503", Severity::Info)]);
        assert_eq!(applied(&ignore("PH504", "2020-01-01"), &found).last().unwrap().0, "PH717");
        assert_eq!(applied(&ignore("PH510", "2999-01-01"), &found).last().unwrap().0, "PH717");
    }

    #[test]
    fn what_protects_the_host_stays() {
        for (text, word) in [
            ("[rules]\nPH506 = \"allow\"", "cannot be lowered"),
            ("[rules]\nfilesystem = \"warn\"", "cannot be lowered"),
            ("[rules]\nPH999 = \"warn\"", "is no rule"),
            ("[rules]\nrecursoin = \"warn\"", "did you mean `recursion`"),
            (
                "[[ignore]]\nrule = \"PH504\"\ndigest = \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"\nreason = \" \"\nexpires = \"2999-01-01\"",
                "no reason",
            ),
            (
                "[[ignore]]\nrule = \"PH504\"\ndigest = \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"\nreason = \"r\"\nexpires = \"soon\"",
                "give a day",
            ),
        ] {
            let policy: AuditPolicy = toml::from_str(text).unwrap();
            assert!(policy.check().unwrap_err().to_string().contains(word), "{text}: {:?}", policy.check());
        }
    }
}
