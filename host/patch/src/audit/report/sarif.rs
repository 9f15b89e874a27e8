//! The report for code scanning: SARIF 2.1.0, one run, every rule listed.

use super::{Finding, Report, Severity};
use crate::audit::catalogue;
use crate::base::Digest;
use serde_json::{Value, json};

/// What SARIF says it is.
const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

/// The log of one audit of several files: their names and reports.
pub fn sarif(files: &[(String, &Report)]) -> Value {
    let all = catalogue();
    let rules: Vec<Value> = all
        .iter()
        .map(|rule| {
            json!({
                "id": rule.id,
                "name": rule.slug,
                "shortDescription": { "text": rule.about },
                "helpUri": "https://github.com/patchhost/patchhost/blob/main/docs/audit.md",
                "defaultConfiguration": { "level": level(rule.severity) },
                "properties": {
                    "security-severity": score(rule.severity), "precision": rule.precision(), "tags": ["security", "webassembly"],
                },
            })
        })
        .collect();
    let artifacts: Vec<Value> = files
        .iter()
        .map(|(name, report)| {
            json!({
                "location": { "uri": uri(name) },
                "length": report.size,
                "mimeType": "application/wasm",
                "hashes": { "sha-256": report.digest.hex() },
            })
        })
        .collect();
    let result = |at: usize, name: &str, finding: &Finding| {
        let index = all.iter().position(|rule| rule.id == finding.id);
        let mut location = json!({
            "physicalLocation": { "artifactLocation": { "uri": uri(name), "index": at }, "region": region(finding) },
        });
        if let Some(function) = function(finding) {
            location["logicalLocations"] = json!([{ "fullyQualifiedName": function, "kind": "function" }]);
        }
        let mut result = json!({
            "ruleId": finding.id,
            "level": level(finding.severity),
            "message": { "text": format!("{}. {}", finding.message, finding.fix) },
            "locations": [location],
            "partialFingerprints": { "patchhost/v1": fingerprint(name, finding) },
        });
        if let Some(index) = index {
            result["ruleIndex"] = index.into();
        }
        result
    };
    let results: Vec<Value> = files
        .iter()
        .enumerate()
        .flat_map(|(at, (name, report))| report.findings.iter().map(move |finding| (at, name, finding)))
        .map(|(at, name, finding)| result(at, name, finding))
        .collect();
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "patchhost audit",
                "informationUri": "https://github.com/patchhost/patchhost",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            }},
            "columnKind": "utf16CodeUnits",
            "artifacts": artifacts,
            "results": results,
        }],
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warn => "warning",
        Severity::Info => "note",
    }
}

/// GitHub sorts by this number.
fn score(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "8.0",
        Severity::Warn => "5.0",
        Severity::Info => "1.0",
    }
}

/// A path as a URI reference.
fn uri(name: &str) -> String {
    let mut uri = String::new();
    for byte in name.replace('\\', "/").bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => uri.push(byte.into()),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}

/// Where in the bytes: the last offset that the finding names.
fn region(finding: &Finding) -> Value {
    let offset = finding.where_.rfind("0x").and_then(|at| {
        let digits: String = finding.where_[at + 2..].chars().take_while(char::is_ascii_hexdigit).collect();
        u64::from_str_radix(&digits, 16).ok()
    });
    match offset {
        Some(offset) => json!({ "byteOffset": offset, "byteLength": 1 }),
        None => json!({ "byteOffset": 0, "byteLength": 1 }),
    }
}

/// The function that the finding names, by name or by number.
fn function(finding: &Finding) -> Option<String> {
    let place = &finding.where_;
    let at = place.find("function ")?;
    let named = place.split('`').nth(1);
    Some(named.map_or_else(|| place[at..].split(" at ").next().unwrap_or(place).to_owned(), str::to_owned))
}

/// The same for the same finding in another build: without offsets.
fn fingerprint(name: &str, finding: &Finding) -> String {
    let what = function(finding).unwrap_or_default();
    let message: String = finding.message.split("0x").next().unwrap_or_default().to_owned();
    Digest::of(format!("{name}\n{}\n{what}\n{message}", finding.id).as_bytes()).hex()[..32].to_owned()
}
