//! The report for a terminal.

use std::fmt::Write;

use super::report::Report;
use super::tables::{Table, tables};
use super::verdict::Verdict;

/// The whole report, the verdict first; of the tensors every one, or the `most` worst lines after tensors that are alike were folded.
pub fn render(report: &Report, most: Option<usize>) -> String {
    let mut out = String::new();
    let architecture = report.architecture.as_ref().map(|a| format!(" ({a})")).unwrap_or_default();
    let verdict = Verdict::of(report);
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}", verdict.text);
    for note in &verdict.notes {
        let _ = writeln!(out, "  {note}");
    }
    let _ = writeln!(out, "\nmodel {}{architecture}", report.model);
    let _ = writeln!(out, "  A  {}", report.a.line());
    let _ = writeln!(out, "  B  {}", report.b.line());
    for table in tables(report, most) {
        let _ = writeln!(out, "\n{}", table.title);
        render_table(&mut out, &table);
        for note in &table.notes {
            let _ = writeln!(out, "  {note}");
        }
    }
    out
}

fn render_table(out: &mut String, table: &Table) {
    let head: Vec<String> = table.head.iter().map(|h| h.to_string()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&head).chain(&table.rows).collect();
    let width = |i: usize| all.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in all {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match i {
                0 => write!(line, "  {cell:width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}
