//! `patchhost lock --check`: every entry against its file.

use super::super::args::Format;
use super::super::failure::{Failure, Result};
use super::super::output::json;
use super::super::trust_args::TrustFiles;
use super::read;
use crate::base::Code;
use crate::base::text::clean;
use crate::patch::resolve;
use crate::trust::{Gate, TrustError};
use serde::Serialize;
use std::path::Path;

/// What became of one entry.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    file: String,
    good: bool,
    why: String,
    next: String,
}

pub(super) fn run(files: &TrustFiles, format: Format) -> Result {
    let (path, lock) = read(files)?;
    let gate = files.for_writing()?;
    gate.check()?;
    if let Some(remark) = gate.remark() {
        errln!("note: {remark}");
    }
    let base = gate.lock_path().parent().map(Path::to_path_buf).unwrap_or_default();
    let mut rows = Vec::new();
    for entry in &lock.patches {
        rows.push(row(&gate, &base, entry)?);
    }
    let bad = rows.iter().filter(|row| !row.good).count();
    if format == Format::Json {
        json(&serde_json::json!({ "lock": path, "good": bad == 0, "patches": rows }))?;
    } else {
        for row in &rows {
            outln!("{} {}  {}", if row.good { "good" } else { "BAD " }, row.name, row.file);
            if !row.good {
                outln!("  why: {}\n  next: {}", row.why, row.next);
            }
        }
    }
    if bad == 0 {
        if format == Format::Text {
            outln!("{} of {} good in {path}", rows.len(), rows.len());
        }
        return Ok(());
    }
    let why = format!("{bad} of {} entries are not what their files are", rows.len());
    // In JSON the object above says everything, and standard output holds one object only.
    if format == Format::Json {
        return Err(Failure::said(Code::Refused));
    }
    Err(TrustError::refused(format!("lock file `{path}`"), why, "see above; each has the command that would accept it")
        .into())
}

fn row(gate: &Gate, base: &Path, entry: &crate::trust::Entry) -> Result<Row> {
    let below = base.join(&entry.file);
    let given = if below.is_file() { below.display().to_string() } else { entry.file.clone() };
    let (name, file) = (clean(&entry.name, 120), clean(&entry.file, 200));
    let bad = |why: String, next: String| Row { name: name.clone(), file: file.clone(), good: false, why, next };
    let candidate = match resolve(&given) {
        Ok(candidate) => candidate,
        Err(error) => {
            return Ok(bad(error.why(), "bring the file back, or `patchhost lock --remove` the entry".to_owned()));
        }
    };
    let judgement = gate.judge(&candidate, Some(&entry.pairs()))?;
    let error = judgement.findings.iter().find(|finding| finding.severity == crate::audit::Severity::Error);
    Ok(match error {
        Some(finding) => bad(finding.line(), finding.fix.clone()),
        None if judgement.entry.as_ref().is_some_and(|found| found.name == entry.name) => {
            Row { name: name.clone(), file: file.clone(), good: true, why: String::new(), next: String::new() }
        }
        None => bad("another entry has the same bytes and settings".to_owned(), "remove one of the two".to_owned()),
    })
}
