//! Reward and mismatch over the steps, with a mark for each swap: one SVG, or the same in an HTML page. Neither needs
//! anything else.

use std::fmt::Write;

use super::metrics::Point;
use crate::compare::chart::{Anchor, Scale, Svg, escape};
use crate::compare::number;

const WIDTH: f64 = 860.0;
const PANEL: f64 = 210.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 30.0;

/// Colors of the house, light and dark.
const STYLE: &str = "
svg { font: 12px system-ui, sans-serif; --ink: #1c2430; --soft: #5d6a7b; --line: #d5dbe3; --paper: #fff; --s0: #2563ab; --s1: #c2621c; background: var(--paper); }
@media (prefers-color-scheme: dark) { svg { --ink: #e4e9f0; --soft: #98a5b6; --line: #39434f; --paper: #14191f; --s0: #6aa5e8; --s1: #eb9a5c; } }
text { fill: var(--ink); } text.v { fill: var(--soft); } line { stroke: var(--line); } line.swap { stroke: var(--ink); stroke-dasharray: 4 3; }
polyline { fill: none; stroke-width: 2; } polyline.s0 { stroke: var(--s0); } polyline.s1 { stroke: var(--s1); } circle.s0 { fill: var(--s0); } circle.s1 { fill: var(--s1); }
";

/// The chart as an SVG file.
pub fn svg(title: &str, points: &[Point]) -> String {
    type Of = fn(&Point) -> f64;
    let panels: [(&str, Of); 2] = [
        ("mean reward", |p| p.reward),
        ("mismatch of rollout engine and trainer: rollout_corr/k3_kl, nats per token", |p| p.k3_kl),
    ];
    let height = TOP + panels.len() as f64 * PANEL;
    let mut svg = Svg::file(title, STYLE, WIDTH, height);
    svg.heading((LEFT, 20.0), title);
    for (i, (label, of)) in panels.iter().enumerate() {
        let values: Vec<(u64, f64)> = points.iter().map(|p| (p.step, of(p))).filter(|(_, v)| v.is_finite()).collect();
        panel(&mut svg, i, label, &values, points);
    }
    svg.finish() + "\n"
}

/// The chart as an HTML page, with the swaps in words.
pub fn html(title: &str, points: &[Point]) -> String {
    let mut out = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    // Writing to a String cannot fail.
    let _ = writeln!(out, "<title>{}</title>", escape(title));
    out.push_str(
        "<style>:root { color-scheme: light dark; } body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; \
         font: 15px/1.5 system-ui, sans-serif; } code { overflow-wrap: anywhere; }</style>\n</head>\n<body>\n",
    );
    out.push_str(&svg(title, points));
    let swaps: Vec<&Point> = points.iter().filter(|p| p.swap.is_some()).collect();
    if !swaps.is_empty() {
        out.push_str("<h2>Swaps</h2>\n<ul>\n");
        for point in swaps {
            let Some(swap) = &point.swap else { continue };
            let (from, to) = (escape(&swap.from), escape(&swap.to));
            let _ = writeln!(out, "<li>step {}: <code>{from}</code> to <code>{to}</code></li>", point.step);
        }
        out.push_str("</ul>\n");
    }
    let _ = writeln!(out, "<p>Made by patchhost {}.</p>\n</body>\n</html>", env!("CARGO_PKG_VERSION"));
    out
}

fn panel(svg: &mut Svg, index: usize, label: &str, values: &[(u64, f64)], points: &[Point]) {
    let top = TOP + index as f64 * PANEL + 26.0;
    let (right, bottom) = (WIDTH - RIGHT, top + PANEL - 26.0 - BOTTOM);
    svg.text((LEFT, top - 8.0), Anchor::Start, "", label);
    let least = values.iter().map(|v| v.1).fold(f64::INFINITY, f64::min);
    let most = values.iter().map(|v| v.1).fold(f64::NEG_INFINITY, f64::max);
    let (Some(first), Some(last)) = (points.first().map(|p| p.step), points.last().map(|p| p.step)) else { return };
    if values.is_empty() {
        return;
    }
    let steps = Scale { values: (first as f64, last as f64), places: (LEFT, right) };
    let x = |step: u64| steps.at(step as f64);
    let y = Scale { values: (least, most), places: (bottom, top) };
    for v in y.ticks() {
        svg.line((LEFT, y.at(v)), (right, y.at(v)), "", None);
        svg.text((LEFT - 8.0, y.at(v) + 4.0), Anchor::End, "v", &number(v));
    }
    for point in points {
        let Some(swap) = &point.swap else { continue };
        let tip = format!("swap at step {}: {} to {}", point.step, swap.from, swap.to);
        svg.line((x(point.step), top), (x(point.step), bottom), "swap", Some(&tip));
    }
    let class = format!("s{index}");
    let line: Vec<(f64, f64)> = values.iter().map(|(step, v)| (x(*step), y.at(*v))).collect();
    svg.polyline(&line, &class);
    for ((step, v), place) in values.iter().zip(line) {
        svg.circle(place, 2.5, &class, Some(&format!("step {step}: {}", number(*v))));
    }
    for step in if first == last { vec![first] } else { vec![first, last] } {
        svg.text((x(step), bottom + 18.0), Anchor::Middle, "v", &format!("step {step}"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{Point, Swap};
    use super::{html, svg};

    fn point(step: u64, reward: f64) -> Point {
        let swap = (step == 2).then(|| Swap { from: "sha256:aa".into(), to: "<b>".into() });
        Point { step, reward, kl: 0.0, k3_kl: 1e-4 * step as f64, swap }
    }

    #[test]
    fn a_swap_has_a_mark_in_each_panel_and_texts_are_escaped() {
        let points: Vec<Point> = (1..=4).map(|s| point(s, 0.25 * s as f64)).collect();
        let made = svg("a < b", &points);
        assert_eq!(made.matches(r#"class="swap""#).count(), 2);
        assert_eq!(made.matches("<circle").count(), 8);
        assert!(made.contains("a &lt; b") && made.contains("to &lt;b&gt;") && !made.contains("<b>"));
        assert!(html("t", &points).contains("<li>step 2: <code>sha256:aa</code> to <code>&lt;b&gt;</code></li>"));
        // The least reward stands at the bottom of its panel, the greatest at the top.
        assert!(made.contains(r#"points="76.0,214.0 "#) && made.contains("840.0,60.0\""), "{made}");
    }

    #[test]
    fn nothing_and_one_step_do_not_divide_by_zero() {
        assert!(!svg("t", &[]).contains("NaN"));
        assert!(!svg("t", &[point(1, 0.5)]).contains("NaN"));
    }
}
