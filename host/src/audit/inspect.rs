//! The audit itself: cheap rules first, and nothing costly on what they refuse.

use super::input::Input;
use super::report::{Finding, Kind, Report, Severity};
use super::scan::{Scan, scan};
use super::{AuditOptions, Facts, burden, rules, validate};
use crate::abi::{Hook, text};
use crate::patch::Digest;

/// Audits a file with the default options. Never compiles, never panics on any bytes.
pub fn inspect(bytes: &[u8]) -> Report {
    inspect_with(bytes, &AuditOptions::default())
}

/// Audits a file: the same code for the loader and for `patchhost audit`. Never compiles, never panics on any bytes.
pub fn inspect_with(bytes: &[u8], options: &AuditOptions) -> Report {
    let caps = options.policy.caps.clone();
    let mut findings = options.more.clone();
    let kind = rules::file::kind(bytes);
    rules::file::check(bytes, kind, &caps, &mut findings);
    let mut found = Scan { facts: Facts::default(), imports: Vec::new(), exports: Vec::new() };
    let mut validated = false;
    if kind == Kind::Component && bytes.len() <= caps.bytes {
        match scan(bytes, &caps) {
            Ok(scan) => found = scan,
            Err(error) => findings.push(rules::file::invalid(&error)),
        }
        rules::before_validation(&Input::new(bytes, &caps, &found), &mut findings);
        findings.extend(burden::before_validation(bytes, &caps).into_iter().map(rules::costs_too_much));
        if options.grants.wasi.is_some() {
            findings.retain(|finding| !["PH102", "PH104", "PH105"].contains(&finding.id));
        }
        if !has_errors(&findings) {
            match validate::validate(bytes) {
                Ok(types) => {
                    validated = true;
                    found.facts.type_depth = validate::type_depth(&types);
                    findings.extend(burden::after_validation(bytes, &caps).into_iter().map(rules::costs_too_much));
                    rules::after_validation(&Input::new(bytes, &caps, &found), &mut findings);
                }
                Err(error) => rules::features::explain(bytes, &error, &mut findings),
            }
        }
    }
    finish(bytes, kind, found, findings, validated)
}

fn finish(bytes: &[u8], kind: Kind, found: Scan, mut findings: Vec<Finding>, validated: bool) -> Report {
    findings.sort_by(|a, b| (b.severity, a.id).cmp(&(a.severity, b.id)));
    findings.dedup();
    let Scan { facts, imports, exports } = found;
    Report {
        digest: Digest::of(bytes),
        size: bytes.len(),
        kind,
        imports: imports.iter().map(|import| text::clean(&import.name, 120)).collect(),
        hooks: Hook::ALL
            .into_iter()
            .filter(|hook| exports.iter().any(|export| Hook::of_interface(&export.name) == Some(*hook)))
            .collect(),
        exports: exports.iter().map(|export| text::clean(&export.name, 120)).collect(),
        findings,
        facts,
        validated,
    }
}

fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}
