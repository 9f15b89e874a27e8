//! The run as an HTML page.

use std::fmt::Write;

use super::marks::{Label, Set, Side, labels, sets};
use super::panels::{DOTTED, Line, Panel, Shape, Spot, gutter, panels};
use super::words::{mean, median, notes, verdict};
use crate::compare::axis::whole_ticks;
use crate::compare::page::{self, escape};
use crate::compare::{Table, brief, number};
use crate::train::metrics::Point;

/// Steps whose numbers are in the page as a table; of a longer run they are in the metrics file.
const LISTED: usize = 1000;
/// Sets of patches that are listed at once; more are folded away.
const AT_ONCE: usize = 12;
/// Digits that a chart has room for on a narrow screen.
const NARROW: f64 = 29.0;
/// More swaps than this are drawn faintly, or they would hide the line.
const FAINT: usize = 10;
/// Steps that are written below a chart, about.
const TICKS: u32 = 5;

/// The page of a run.
pub fn html(title: &str, points: &[Point]) -> String {
    let mut out = String::new();
    let sets = sets(points);
    page::verdict(title, &verdict(points), &mut out);
    page::notes(&notes(points, &sets), &mut out);
    if !points.is_empty() {
        legend(&sets, &mut out);
        let panels = panels(points);
        let gutter = gutter(&panels);
        for panel in &panels {
            figure(panel, points, &sets, gutter, &mut out);
        }
        every_step(points, &mut out);
    }
    page::page(title, &out)
}

/// The sets of patches by the numbers of their marks, and what came of each.
fn legend(sets: &[Set<'_>], out: &mut String) {
    let milliseconds = |v: f64| format!("{} ms", brief(v * 1000.0));
    let of = |set: &Set<'_>, of: fn(&Point) -> f64| mean(&set.points.iter().map(of).collect::<Vec<_>>());
    let row = |set: &Set<'_>| {
        let refit = median(set.points.iter().filter_map(|p| p.refit_seconds));
        let names = if set.patches.is_empty() { "-".to_owned() } else { set.patches.join(", ") };
        vec![
            format!("{}: {}", set.number, set.short()),
            set.from().to_string(),
            set.points.len().to_string(),
            brief(of(set, |p| p.reward)),
            format!("{} nats", brief(of(set, |p| p.k3_kl))),
            refit.map_or("-".to_owned(), milliseconds),
            names,
        ]
    };
    let full = |set: &Set<'_>| Some(format!("{}: {}", set.number, set.digest?));
    let head = vec!["mark and digest", "from step", "steps", "mean reward", "mean k3 KL", "median refit", "patches"];
    let title = if sets.len() == 1 { "Set of patches" } else { "Sets of patches: a dashed line marks each swap" };
    let table = Table { title: title.to_owned(), head, rows: sets.iter().map(row).collect(), notes: Vec::new() };
    match sets.len() <= AT_ONCE {
        true => page::section(&table, out),
        false => page::folded(&table, out),
    }
    let digests: Vec<String> = sets.iter().filter_map(full).collect();
    if !digests.is_empty() {
        out.push_str("<details>\n<summary>Whole digests</summary>\n");
        for digest in digests {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "<p><code>{}</code></p>", escape(&digest));
        }
        out.push_str("</details>\n");
    }
}

fn figure(panel: &Panel, points: &[Point], sets: &[Set<'_>], gutter: usize, out: &mut String) {
    let heading = escape(&panel.heading());
    let _ =
        writeln!(out, "<figure class=\"plot\" aria-label=\"{heading}\">\n<figcaption><h2>{heading}</h2></figcaption>");
    match (&panel.shape, panel.sentence(points.len())) {
        (Shape::Line(line), _) => frame(panel, line, points, sets, gutter, out),
        (_, sentence) => {
            let _ = writeln!(out, "<p class=\"same\">{}</p>", escape(&sentence.unwrap_or_default()));
        }
    }
    page::notes(&panel.notes(points.len()), out);
    out.push_str("</figure>\n");
}

fn frame(panel: &Panel, line: &Line, points: &[Point], sets: &[Set<'_>], gutter: usize, out: &mut String) {
    let (first, last) = (points.first().map_or(0, |p| p.step), points.last().map_or(0, |p| p.step));
    let span = (last as f64 - first as f64).max(1.0);
    let at = |step: f64| (step - first as f64) / span;
    let many = if sets.len() > FAINT { " many" } else { "" };
    let _ = writeln!(out, "<div class=\"frame{many}\" style=\"--gutter:{gutter}ch\">");
    mark_row(&labels(sets, &|step| at(step as f64)), out);
    out.push_str("<div class=\"y\" aria-hidden=\"true\">");
    for (share, label) in line.axis.ticks() {
        let _ = write!(out, "<span style=\"bottom:{:.2}%\">{label}</span>", share * 100.0);
    }
    let said = format!(
        "{}, steps {first} to {last}: from {} to {}",
        panel.title,
        panel.value(line.least),
        panel.value(line.most)
    );
    let _ = write!(
        out,
        "</div>\n<div class=\"area\"><svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">\n",
        escape(&said)
    );
    let grid: String =
        line.axis.ticks().iter().map(|(share, _)| format!("M0 {:.1}H1000", (1.0 - share) * 1000.0)).collect();
    let _ = writeln!(out, "<path class=\"grid\" d=\"{grid}\"/>");
    for set in sets.iter().skip(1) {
        let tip = format!("patch set {} from step {}: {}", set.number, set.from(), set.short());
        let _ = writeln!(
            out,
            "<path class=\"swap\" d=\"M{:.1} 0V1000\"><title>{}</title></path>",
            at(set.from() as f64) * 1000.0,
            escape(&tip)
        );
    }
    let place = |step: f64, v: f64| format!("{:.1} {:.1}", at(step) * 1000.0, (1.0 - line.axis.share(v)) * 1000.0);
    for part in &line.parts {
        draw(part, line.thinned, &place, out);
    }
    if line.spots().count() <= DOTTED {
        for spot in line.spots() {
            let tip = escape(&format!("step {}: {}", spot.step, panel.value(spot.mean)));
            let _ = writeln!(
                out,
                "<path class=\"dot\" d=\"M{}h0\"><title>{tip}</title></path>",
                place(spot.step, spot.mean)
            );
        }
    }
    out.push_str("</svg></div>\n<div class=\"x\" aria-hidden=\"true\">");
    let word = |i: usize| if i == 0 { "step " } else { "" };
    let steps = whole_ticks(first, last, TICKS).into_iter().enumerate();
    let steps: Vec<(f64, String)> = steps.map(|(i, step)| (at(step as f64), format!("{}{step}", word(i)))).collect();
    out.push_str(&page::ticks(&steps, NARROW));
    out.push_str("</div>\n</div>\n");
}

/// One part of a line: a band where points stand for several steps, then the line; a dot where it is a single point.
fn draw(part: &[Spot], thinned: bool, place: &dyn Fn(f64, f64) -> String, out: &mut String) {
    let path = |spots: &mut dyn Iterator<Item = (f64, f64)>| {
        let places: Vec<String> = spots.map(|(step, v)| place(step, v)).collect();
        places.join("L")
    };
    if thinned && part.len() > 1 {
        let upper = part.iter().map(|s| (s.step, s.most));
        let lower = part.iter().rev().map(|s| (s.step, s.least));
        let _ = writeln!(out, "<path class=\"band\" d=\"M{}Z\"/>", path(&mut upper.chain(lower)));
    }
    let _ = match part {
        [one] => writeln!(out, "<path class=\"dot\" d=\"M{}h0\"/>", place(one.step, one.mean)),
        _ => writeln!(out, "<path class=\"line\" d=\"M{}\"/>", path(&mut part.iter().map(|s| (s.step, s.mean)))),
    };
}

fn mark_row(labels: &[Label<'_>], out: &mut String) {
    if labels.is_empty() {
        return;
    }
    out.push_str("<div class=\"marks\" aria-hidden=\"true\">");
    for label in labels {
        let key = format!("<b class=\"key\">{}</b>", label.numbers);
        let (class, inside) = match label.digest {
            Some((Side::Right, digest)) => ("", format!("{key}<code>{}</code>", escape(digest))),
            Some((Side::Left, digest)) => (" class=\"left\"", format!("<code>{}</code>{key}", escape(digest))),
            None => ("", key),
        };
        let _ = write!(out, "<span{class} style=\"left:{:.2}%\">{inside}</span>", label.at * 100.0);
    }
    out.push_str("</div>\n");
}

/// The numbers of every step, for those who do not look at lines.
fn every_step(points: &[Point], out: &mut String) {
    if points.len() > LISTED {
        let note = format!("The numbers of all {} steps are in the file that --metrics-out names.", points.len());
        page::notes(&[note], out);
        return;
    }
    let optional = |v: Option<f64>| v.map_or("-".to_owned(), number);
    let row = |p: &Point| {
        vec![
            p.step.to_string(),
            number(p.reward),
            number(p.k3_kl),
            optional(p.grad_norm),
            optional(p.response_length),
            optional(p.refit_seconds),
            p.swap.as_ref().map_or("-".to_owned(), |swap| super::short(&swap.to).to_owned()),
        ]
    };
    let head =
        vec!["step", "mean reward", "k3 KL, nats", "gradient norm", "response length, tokens", "refit, s", "swap to"];
    let table = Table {
        title: format!("The numbers of every step ({})", points.len()),
        head,
        rows: points.iter().map(row).collect(),
        notes: Vec::new(),
    };
    page::folded(&table, out);
}
