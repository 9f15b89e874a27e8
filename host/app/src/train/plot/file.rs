//! The run as one SVG file.

use super::marks::{Label, Set, Side, labels, sets};
use super::panels::{DOTTED, Line, Panel, Shape, gutter, panels};
use super::words::{notes, verdict};
use crate::compare::axis::whole_ticks;
use crate::compare::svg::{Anchor, Svg};
use crate::train::metrics::Point;

const WIDTH: f64 = 860.0;
const EDGE: f64 = 28.0;
/// A line of text.
const TEXT: f64 = 20.0;
/// What a digit takes, with something to spare.
const DIGIT: f64 = 8.4;
/// Where the lines of a panel are drawn.
const PLOT: f64 = 150.0;
/// Above it: the heading and the labels of marks. Below it: the steps.
const ABOVE: f64 = 52.0;
const BELOW: f64 = 44.0;
/// Sets of patches that are listed below the panels.
const LISTED: usize = 24;
/// Steps that are written below a panel, about.
const TICKS: u32 = 8;

/// Colors of the house, light and dark.
const STYLE: &str = "
svg { font: 14px system-ui, sans-serif; --ink: #1c2430; --soft: #556275; --line: #d5dbe3; --paper: #fff; --s0: #2563ab; --s1: #b9551a; background: var(--paper); }
@media (prefers-color-scheme: dark) { svg { --ink: #e4e9f0; --soft: #a3afbf; --line: #39434f; --paper: #14191f; --s0: #6aa5e8; --s1: #eb9a5c; } }
text { fill: var(--ink); } text.h { font-weight: 600; } text.v { fill: var(--soft); } text.m { fill: var(--s1); font-weight: 600; }
line { stroke: var(--line); } line.swap { stroke: var(--s1); stroke-dasharray: 5 4; }
polyline { fill: none; stroke: var(--s0); stroke-width: 2; stroke-linejoin: round; } circle { fill: var(--s0); } polygon { fill: var(--s0); fill-opacity: .2; }
";

/// The run as an SVG file.
pub fn svg(title: &str, points: &[Point]) -> String {
    let sets = sets(points);
    let panels = if points.is_empty() { Vec::new() } else { panels(points) };
    let mut head = wrapped(title, "v");
    head.extend(wrapped(&verdict(points), "h"));
    head.extend(notes(points, &sets).iter().flat_map(|note| wrapped(note, "v")));
    let legend = legend(&sets);
    let heights: f64 = panels.iter().map(|panel| height(panel, points.len())).sum();
    let all = EDGE + (head.len() + legend.len()) as f64 * TEXT + heights + EDGE;
    let mut svg = Svg::new(title, &verdict(points), STYLE, WIDTH, all);
    let mut y = EDGE;
    for (line, class) in &head {
        svg.text((EDGE, y), Anchor::Start, class, line);
        y += TEXT;
    }
    let gutter = gutter(&panels) as f64 * DIGIT;
    for panel in &panels {
        draw(&mut svg, panel, (gutter, y), points, &sets);
        y += height(panel, points.len());
    }
    for (line, class) in &legend {
        y += TEXT;
        svg.text((EDGE, y), Anchor::Start, class, line);
    }
    svg.finish()
}

fn height(panel: &Panel, steps: usize) -> f64 {
    let notes = panel.notes(steps).iter().flat_map(|note| wrapped(note, "v")).count();
    match panel.shape {
        Shape::Line(_) => ABOVE + notes as f64 * TEXT + PLOT + BELOW,
        _ => ABOVE,
    }
}

/// A text in lines that are no wider than the picture.
fn wrapped(text: &str, class: &'static str) -> Vec<(String, &'static str)> {
    let most = ((WIDTH - 2.0 * EDGE) / DIGIT) as usize;
    // What is not Latin may be twice as wide.
    let wide = |c: char| if (c as u32) < 0x1100 { 1 } else { 2 };
    let mut lines = vec![String::new()];
    let mut used = 0;
    let end = |lines: &mut Vec<String>, used: &mut usize| {
        lines.push(String::new());
        *used = 0;
    };
    for word in text.split_whitespace() {
        let length: usize = word.chars().map(wide).sum();
        if used > 0 && used + 1 + length > most {
            end(&mut lines, &mut used);
        }
        if used > 0 {
            lines.last_mut().into_iter().for_each(|line| line.push(' '));
            used += 1;
        }
        for c in word.chars() {
            if used + wide(c) > most {
                end(&mut lines, &mut used);
            }
            lines.last_mut().into_iter().for_each(|line| line.push(c));
            used += wide(c);
        }
    }
    lines.into_iter().filter(|line| !line.is_empty()).map(|line| (line, class)).collect()
}

fn legend(sets: &[Set<'_>]) -> Vec<(String, &'static str)> {
    if sets.is_empty() {
        return Vec::new();
    }
    let mut out = vec![("Sets of patches".to_owned(), "h")];
    for set in sets.iter().take(LISTED) {
        let names = if set.patches.is_empty() { String::new() } else { format!(" ({})", set.patches.join(", ")) };
        let from = set.from();
        out.extend(wrapped(&format!("{}: from step {from}, {}{names}", set.number, set.short()), "v"));
    }
    if let Some(more) = sets.len().checked_sub(LISTED).filter(|more| *more > 0) {
        out.push((format!("and {more} more"), "v"));
    }
    out
}

fn draw(svg: &mut Svg, panel: &Panel, (gutter, y): (f64, f64), points: &[Point], sets: &[Set<'_>]) {
    let Shape::Line(line) = &panel.shape else {
        let sentence = panel.sentence(points.len()).unwrap_or_default();
        svg.text((EDGE, y + TEXT), Anchor::Start, "h", &panel.heading());
        svg.text((EDGE, y + 2.0 * TEXT), Anchor::Start, "v", &sentence);
        return;
    };
    svg.text((EDGE, y + TEXT), Anchor::Start, "h", &panel.heading());
    let mut y = y + ABOVE;
    for (note, class) in panel.notes(points.len()).iter().flat_map(|note| wrapped(note, "v")) {
        svg.text((EDGE, y - ABOVE + 2.0 * TEXT), Anchor::Start, class, &note);
        y += TEXT;
    }
    lines(svg, line, panel, (gutter, y), points, sets);
}

fn lines(svg: &mut Svg, line: &Line, panel: &Panel, (gutter, top): (f64, f64), points: &[Point], sets: &[Set<'_>]) {
    let (first, last) = (points.first().map_or(0, |p| p.step), points.last().map_or(0, |p| p.step));
    let span = (last as f64 - first as f64).max(1.0);
    let ticks = line.axis.ticks();
    let (left, right) = (EDGE + gutter, WIDTH - EDGE);
    let share = |step: f64| (step - first as f64) / span;
    let x = |step: f64| left + share(step) * (right - left);
    let y = |v: f64| top + (1.0 - line.axis.share(v)) * PLOT;
    let bottom = top + PLOT;
    for (at, label) in &ticks {
        let height = bottom - at * PLOT;
        svg.line((left, height), (right, height), "", None);
        svg.text((left - DIGIT, height + 5.0), Anchor::End, "v", label);
    }
    for set in sets.iter().skip(1) {
        let tip = format!("patch set {} from step {}: {}", set.number, set.from(), set.short());
        let at = x(set.from() as f64);
        svg.line((at, top), (at, bottom), "swap", Some(&tip));
    }
    for label in labels(sets, &|step| share(step as f64)) {
        mark(svg, &label, left + label.at * (right - left), top - 8.0);
    }
    for part in &line.parts {
        if line.thinned && part.len() > 1 {
            let upper = part.iter().map(|s| (x(s.step), y(s.most)));
            let lower = part.iter().rev().map(|s| (x(s.step), y(s.least)));
            svg.polygon(&upper.chain(lower).collect::<Vec<_>>(), "");
        }
        if part.len() > 1 {
            let places: Vec<(f64, f64)> = part.iter().map(|s| (x(s.step), y(s.mean))).collect();
            svg.polyline(&places, "");
        }
    }
    // A point without neighbors has a dot in a long run too: it would not be seen as a line.
    let few = line.spots().count() <= DOTTED;
    for spot in line.parts.iter().filter(|part| few || part.len() == 1).flatten() {
        let tip = format!("step {}: {}", spot.step, panel.value(spot.mean));
        svg.circle((x(spot.step), y(spot.mean)), 3.0, "", Some(&tip));
    }
    for (i, step) in whole_ticks(first, last, TICKS).iter().enumerate() {
        let words = if i == 0 { format!("step {step}") } else { step.to_string() };
        svg.text((x(*step as f64), bottom + TEXT), Anchor::Middle, "v", &words);
    }
}

fn mark(svg: &mut Svg, label: &Label<'_>, x: f64, y: f64) {
    let (anchor, words) = match label.digest {
        Some((Side::Left, digest)) => (Anchor::End, format!("{}: {digest}", label.numbers)),
        Some((Side::Right, digest)) => (Anchor::Start, format!("{}: {digest}", label.numbers)),
        None if label.at > 0.97 => (Anchor::End, label.numbers.clone()),
        None => (Anchor::Start, label.numbers.clone()),
    };
    svg.text((x, y), anchor, "m", &words);
}
