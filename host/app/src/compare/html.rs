//! The report as one HTML file that needs nothing else: style, tables and charts are inside.

use std::fmt::Write;

use super::chart::{bars, dots, escape};
use super::report::Report;
use super::tables::{Table, kl_by_class, tables};

/// Tensors in the chart of differing bytes.
const CHARTED: usize = 30;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6a7b; --line: #d5dbe3; --paper: #fff; --s0: #2563ab; --s1: #c2621c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9f0; --soft: #98a5b6; --line: #39434f; --paper: #14191f; --s0: #6aa5e8; --s1: #eb9a5c; }
}
body { margin: 2rem auto; max-width: 76rem; padding: 0 1.25rem; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: .25rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p, li { color: var(--soft); } code { font: 13px ui-monospace, monospace; color: var(--ink); overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
svg { width: 100%; max-width: 62rem; height: auto; font: 11px system-ui, sans-serif; } svg text { fill: var(--ink); } svg text.v { fill: var(--soft); }
svg line { stroke: var(--line); } .s0 { fill: var(--s0); } .s1 { fill: var(--s1); }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; } .key.s0 { background: var(--s0); } .key.s1 { background: var(--s1); }
";

/// The page. Every tensor is in it.
pub fn render(report: &Report) -> String {
    let mut out = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    let title = format!("patchhost compare: {}", report.model);
    // Writing to a String cannot fail.
    let _ = write!(out, "<title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n", escape(&title));
    let _ = writeln!(out, "<h1>{}</h1>", escape(&title));
    let architecture = report.architecture.as_deref().unwrap_or("a plain file of matrices");
    let _ = writeln!(out, "<p>{}; activations: {}</p>\n<ul>", escape(architecture), report.fp8_activation);
    for (series, label, side) in [(0, "A", &report.a), (1, "B", &report.b)] {
        let _ = writeln!(
            out,
            "<li><span class=\"key s{series}\"></span>{label}: <code>{}</code></li>",
            escape(&side.line())
        );
    }
    out.push_str("</ul>\n");
    charts(report, &mut out);
    for table in tables(report, None) {
        render_table(&table, &mut out);
    }
    let _ = writeln!(out, "<p>Made by patchhost {}.</p>\n</body>\n</html>", env!("CARGO_PKG_VERSION"));
    out
}

fn chart(out: &mut String, title: &str, svg: &str) {
    let _ = writeln!(out, "<h2>{}</h2>\n{svg}", escape(title));
}

fn charts(report: &Report, out: &mut String) {
    if let Some(ablation) = &report.ablation {
        let candidates = [Some(&ablation.a), ablation.b.as_ref()];
        let series = |of: &dyn Fn(usize) -> Vec<(String, f64)>| merge([of(0), of(1)]);
        let of = |i: usize| candidates.get(i).copied().flatten();
        let classes = series(&|i| of(i).map(kl_by_class).unwrap_or_default());
        let title = "Mean KL from the unquantized model when only one class is quantized";
        chart(out, title, &bars(title, &with_whole(classes, candidates.map(|c| c.map(|c| c.all.kl_vocab)))));
        let layers = series(&|i| {
            let effects = of(i).map(|c| c.layers.as_slice()).unwrap_or_default();
            effects.iter().map(|e| (layer_name(e.only), e.distance.kl_vocab)).collect()
        });
        if !layers.is_empty() {
            let title = "Mean KL when only one layer is quantized";
            chart(out, title, &bars(title, &layers));
        }
    }
    let strips: Vec<(String, Vec<(usize, f64)>)> = report
        .classes
        .iter()
        .map(|c| {
            let rows = report.tensors.iter().filter(|r| r.class == c.class);
            let dots = rows.flat_map(|r| {
                let snr = |s: &Option<super::tensors::SideRow>| s.as_ref().and_then(|s| s.snr_db);
                [snr(&r.a).map(|x| (0, x)), snr(&r.b).map(|x| (1, x))].into_iter().flatten()
            });
            (c.class.name().to_string(), dots.collect())
        })
        .collect();
    let title = "Signal-to-noise ratio of each tensor against its source";
    chart(out, title, &dots(title, "dB", &strips));
    let differing: Vec<(String, Vec<Option<f64>>)> = report
        .tensors
        .iter()
        .filter_map(|r| r.weight_bytes.filter(|w| w.differing > 0).map(|w| (r.name.clone(), vec![Some(w.share())])))
        .take(CHARTED)
        .collect();
    if !differing.is_empty() {
        let title = "Share of weight bytes that differ between A and B, the worst tensors";
        chart(out, title, &bars(title, &differing));
    }
}

fn layer_name(only: super::subset::Subset) -> String {
    match only {
        super::subset::Subset::Layer(layer) => format!("layer {layer}"),
        super::subset::Subset::Class(class) => class.name().to_string(),
    }
}

/// Two series over the categories of both, in their order.
fn merge([a, b]: [Vec<(String, f64)>; 2]) -> Vec<(String, Vec<Option<f64>>)> {
    let mut out: Vec<(String, Vec<Option<f64>>)> = Vec::new();
    let two = !b.is_empty();
    for (series, values) in [a, b].into_iter().enumerate() {
        for (name, value) in values {
            let known = out.iter().position(|(n, _)| *n == name);
            let at = known.unwrap_or_else(|| {
                out.push((name, vec![None; if two { 2 } else { 1 }]));
                out.len() - 1
            });
            if let Some(slot) = out.get_mut(at).and_then(|(_, v)| v.get_mut(series)) {
                *slot = Some(value);
            }
        }
    }
    out
}

fn with_whole(
    mut categories: Vec<(String, Vec<Option<f64>>)>,
    whole: [Option<f64>; 2],
) -> Vec<(String, Vec<Option<f64>>)> {
    let [a, b] = whole;
    let values = if b.is_some() { vec![a, b] } else { vec![a] };
    categories.push(("all together".to_string(), values));
    categories
}

fn render_table(table: &Table, out: &mut String) {
    let _ = write!(out, "<h2>{}</h2>\n<div class=\"scroll\"><table>\n<thead><tr>", escape(&table.title));
    table.head.iter().for_each(|h| {
        let _ = write!(out, "<th>{}</th>", escape(h));
    });
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        out.push_str("<tr>");
        row.iter().for_each(|cell| {
            let _ = write!(out, "<td>{}</td>", escape(cell));
        });
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
    table.notes.iter().for_each(|note| {
        let _ = writeln!(out, "<p>{}</p>", escape(note));
    });
}
