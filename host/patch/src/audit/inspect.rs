//! The audit itself: cheap rules first, and nothing costly on what they refuse.

use super::input::Input;
use super::report::{Finding, Kind, Report, Severity};
use super::scan::{Scan, scan};
use super::{AuditOptions, burden, levels, rules, validate};
use crate::base::Digest;
use crate::base::{Hook, text};
use patchhost_runtime::caught::caught;

/// Audits a file with the default options. Never compiles, never panics on any bytes.
pub fn inspect(bytes: &[u8]) -> Report {
    inspect_with(bytes, &AuditOptions::default())
}

/// Audits a file: the same code for the loader and for `patchhost audit`. Never compiles, never panics on any bytes.
pub fn inspect_with(bytes: &[u8], options: &AuditOptions) -> Report {
    let caps = &options.policy.caps;
    let mut findings = options.more.clone();
    let kind = rules::file::kind(bytes);
    rules::file::check(bytes, kind, caps, &mut findings);
    let mut found = Scan::default();
    let mut validated = false;
    if kind == Kind::Component && bytes.len() <= caps.bytes {
        // The readers are written for components that tools make; others may make them panic.
        match caught(|| look_inside(bytes, options, has_errors_of_ours(&findings, options))) {
            Ok((scan, own, whole)) => {
                (found, validated) = (scan, whole);
                findings.extend(own);
            }
            Err(panic) => findings.push(rules::file::gave_up(&panic)),
        }
    }
    let digest = Digest::of(bytes);
    levels::apply(&options.policy, &digest, &mut findings);
    finish(bytes, digest, kind, found, findings, validated)
}

/// What a component is made of, what is found in it, and whether all of it is valid: not asked where the file is `refused`
/// already.
fn look_inside(bytes: &[u8], options: &AuditOptions, refused: bool) -> (Scan, Vec<Finding>, bool) {
    let caps = &options.policy.caps;
    let (mut own, mut validated) = (Vec::new(), false);
    let mut found = match scan(bytes, caps) {
        Ok(scan) => scan,
        Err((scan, error)) => {
            own.push(rules::file::invalid(&error));
            *scan
        }
    };
    rules::before_validation(&Input::new(bytes, options, &found), &mut own);
    own.extend(burden::before_validation(bytes, caps).into_iter().map(rules::costs_too_much));
    if !has_errors(&own) && !refused {
        match burden::validate(bytes) {
            Ok((types, burden)) => {
                validated = true;
                found.facts.type_depth = validate::type_depth(&types);
                found.facts.leaks = validate::leaks(&types, &found.facts.lifted);
                own.extend(burden::after_validation(&burden, caps).into_iter().map(rules::costs_too_much));
                rules::after_validation(&Input::new(bytes, options, &found), &mut own);
            }
            Err(error) => rules::features::explain(bytes, &error, &mut own),
        }
    }
    (found, own, validated)
}

fn finish(
    bytes: &[u8],
    digest: Digest,
    kind: Kind,
    found: Scan,
    mut findings: Vec<Finding>,
    validated: bool,
) -> Report {
    findings.sort_by(|a, b| (b.severity, a.id, &a.message).cmp(&(a.severity, b.id, &b.message)));
    findings.dedup();
    let Scan { facts, imports, exports, .. } = found;
    Report {
        digest,
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

/// Findings of others (lock, signatures) say nothing about whether the bytes can be validated.
fn has_errors_of_ours(findings: &[Finding], options: &AuditOptions) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error && !options.more.contains(finding))
}
