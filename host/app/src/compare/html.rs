//! The report as one HTML file that needs nothing else: the verdict, then what it rests on, then everything that was measured.

use std::fmt::Write;

use super::chart::{Category, Dots, Words, bars, plain_bars, strips};
use super::groups::{By, Group, groups, table};
use super::page::{escape, escape_name, folded, notes, page, section, verdict};
use super::report::Report;
use super::subset::Subset;
use super::tables::{Table, classes, kl_by_class, predictions};
use super::tensors::SideRow;
use super::verdict::{Better, Measure, Verdict};

/// Bars in the chart of differing bytes.
const CHARTED: usize = 12;
/// Lines of tensors that are shown at once; more are folded away.
const AT_ONCE: usize = 25;

/// The page. `all`: every tensor has a line of its own, beside the lines that sum up layers and experts.
pub fn render(report: &Report, all: bool) -> String {
    let mut out = String::new();
    let found = Verdict::of(report);
    verdict(&format!("patchhost compare: {}", report.model), &found.text, &mut out);
    sides(report, &mut out);
    evidence(report, &found, &mut out);
    charts(report, &mut out);
    section(&classes(report), &mut out);
    all_tensors(report, all, &mut out);
    predictions(report).iter().for_each(|table| section(table, &mut out));
    page(&format!("patchhost compare: {}", report.model), &out)
}

fn sides(report: &Report, out: &mut String) {
    out.push_str("<ul class=\"sides\">\n");
    for (series, label, side) in [(0, "A", &report.a), (1, "B", &report.b)] {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "<li><span class=\"key s{series}\">{label}</span><code>{}</code></li>",
            escape_name(&side.line())
        );
    }
    let architecture = report.architecture.as_deref().unwrap_or("a plain file of matrices");
    let _ = write!(out, "</ul>\n<p class=\"note\">{}", escape(architecture));
    if report.ablation.is_some() {
        let _ = write!(out, "; activations: {}", report.fp8_activation);
    }
    out.push_str("</p>\n");
}

fn evidence(report: &Report, found: &Verdict, out: &mut String) {
    if found.measures.is_empty() && found.notes.is_empty() {
        return;
    }
    let row = |m: &Measure| {
        let mark = |side: Better| if m.better == Some(side) { " ✓" } else { "" };
        let [a, b] = &m.shown;
        let what = if m.unit.is_empty() { m.what.to_owned() } else { format!("{}, {}", m.what, m.unit) };
        vec![what, format!("{a}{}", mark(Better::A)), format!("{b}{}", mark(Better::B))]
    };
    let title = match report.b.kind {
        "bf16" => "What it costs",
        _ => "Why",
    };
    let rows: Vec<Vec<String>> = found.measures.iter().map(row).collect();
    if rows.is_empty() {
        notes(&found.notes, out);
        return;
    }
    let mut table = Table { title: title.to_owned(), head: vec!["measure", "A", "B"], rows, notes: Vec::new() };
    if found.measures.iter().any(|m| m.better.is_some()) {
        table.notes.push("✓ marks the better side; without it there is no clear difference.".to_owned());
    }
    table.notes.extend(found.notes.iter().cloned());
    section(&table, out);
}

fn charts(report: &Report, out: &mut String) {
    if let Some(ablation) = &report.ablation {
        let candidates = [Some(&ablation.a), ablation.b.as_ref()];
        let series = |of: &dyn Fn(usize) -> Vec<(String, f64)>| merge([of(0), of(1)], ablation.b.is_some());
        let of = |i: usize| candidates.get(i).copied().flatten();
        let mut classes = series(&|i| of(i).map(kl_by_class).unwrap_or_default());
        let whole = candidates.iter().flatten().map(|c| Some(c.all.kl_vocab)).collect();
        classes.push(("all together".to_owned(), whole));
        let words = Words {
            title: "Which class of layers costs how much",
            under: "Mean KL from the unquantized model, in nats per token, when only one class is quantized. Shorter is better.",
            unit: "nats",
        };
        out.push_str(&bars(words, &classes));
        let layers = series(&|i| {
            let effects = of(i).map(|c| c.layers.as_slice()).unwrap_or_default();
            effects.iter().map(|e| (layer_name(e.only), e.distance.kl_vocab)).collect()
        });
        if !layers.is_empty() {
            let words = Words {
                title: "Which layer costs how much",
                under: "Mean KL from the unquantized model, in nats per token, when only one layer is quantized. Shorter is better.",
                unit: "nats",
            };
            out.push_str(&bars(words, &layers));
        }
    }
    if report.total.tensors > 0 {
        out.push_str(&snr(report));
        differing(&groups(report, By::Experts), out);
    }
}

fn snr(report: &Report) -> String {
    let dots = |of: &dyn Fn(&super::tensors::TensorRow) -> Option<&SideRow>, class| {
        let mut dots = Dots::default();
        for side in report.tensors.iter().filter(|r| r.class == class).filter_map(of) {
            match side.snr_db {
                Some(snr) => dots.values.push(snr),
                None => dots.exact += 1,
            }
        }
        dots
    };
    let rows = report.classes.iter().map(|c| {
        let sides = [dots(&|r| r.a.as_ref(), c.class), dots(&|r| r.b.as_ref(), c.class)];
        (c.class.name().to_owned(), sides)
    });
    let words = Words {
        title: "How close each tensor stays to its source",
        under: "Signal-to-noise ratio in dB: a dot for each tensor, and the median. Further right is better.",
        unit: "dB",
    };
    strips(words, &rows.collect::<Vec<_>>())
}

/// The groups of tensors whose bytes differ most; nothing where no byte does.
fn differing(groups: &[Group], out: &mut String) {
    let share = |g: &Group| {
        let bytes = &g.totals.weight_bytes;
        (bytes.differing > 0).then(|| (g.name.clone(), bytes.share() * 100.0))
    };
    let mut found: Vec<(String, f64)> = groups.iter().filter_map(share).collect();
    if found.is_empty() {
        return;
    }
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    let words = Words {
        title: "Where A and B differ",
        under: "Share of the weight bytes that are not the same, in the tensors with the largest share.",
        unit: "%",
    };
    let left = found.len().saturating_sub(CHARTED);
    let shown: Vec<Category> = found.into_iter().take(CHARTED).map(|(name, share)| (name, vec![Some(share)])).collect();
    out.push_str(&plain_bars(words, &shown));
    if left > 0 {
        notes(&[format!("{left} more differ less; they are in the tables.")], out);
    }
}

/// Tensors that differ in numbers alone on one line, then the experts of each layer on one, then every one if asked for.
fn all_tensors(report: &Report, all: bool, out: &mut String) {
    let kinds = groups(report, By::Numbers);
    let by_layer = groups(report, By::Experts);
    let every = report.tensors.len();
    if every == 0 {
        return;
    }
    let put = |table: &Table, out: &mut String| match table.rows.len() <= AT_ONCE {
        true => section(table, out),
        false => folded(table, out),
    };
    let title = if kinds.len() == every { "Tensors, the worst first" } else { "Kinds of tensors, the worst first" };
    put(&table(title.to_owned(), &kinds), out);
    if by_layer.len() > kinds.len() {
        let what = if by_layer.len() == every { "Every tensor" } else { "Layer by layer, experts summed up" };
        folded(&table(format!("{what} ({} lines)", by_layer.len()), &by_layer), out);
    }
    if all && every > by_layer.len() {
        let table = table(format!("Every tensor ({every} lines)"), &groups(report, By::Tensor));
        folded(&table, out);
    } else if every > by_layer.len() {
        notes(&[format!("{every} tensors in all; --all gives each a line of its own.")], out);
    }
}

fn layer_name(only: Subset) -> String {
    match only {
        Subset::Layer(layer) => format!("layer {layer}"),
        Subset::Class(class) => class.name().to_owned(),
    }
}

/// Two series over the categories of both, in their order.
fn merge([a, b]: [Vec<(String, f64)>; 2], two: bool) -> Vec<Category> {
    let mut out: Vec<Category> = Vec::new();
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
