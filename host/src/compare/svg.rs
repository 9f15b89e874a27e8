//! Small charts as inline SVG: no script, no font, no address. Colors come from the page's style sheet by class.

use std::fmt::Write;

use super::tables::number;

const WIDTH: f64 = 760.0;
const LABELS: f64 = 250.0;
const VALUES: f64 = 90.0;
const BAR: f64 = 12.0;
const GAP: f64 = 8.0;
const AXIS: f64 = 26.0;

/// Text that may stand in HTML and SVG.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Horizontal bars: of each category one bar per series (at most two). Values are zero or more.
pub(super) fn bars(label: &str, categories: &[(String, Vec<Option<f64>>)]) -> String {
    let values = categories.iter().flat_map(|(_, v)| v).flatten().copied().filter(|v| v.is_finite());
    let most = values.fold(0.0, f64::max);
    let plot = WIDTH - LABELS - VALUES;
    let tall = |v: &Vec<Option<f64>>| v.len().max(1) as f64 * BAR + GAP;
    let height: f64 = categories.iter().map(|(_, v)| tall(v)).sum::<f64>() + GAP;
    let mut out = open(label, height);
    let mut y = GAP;
    for (name, values) in categories {
        let middle = y + (tall(values) - GAP) / 2.0 + 4.0;
        let _ =
            write!(out, r#"<text x="{:.0}" y="{middle:.1}" text-anchor="end">{}</text>"#, LABELS - 8.0, shorten(name));
        for (series, value) in values.iter().enumerate() {
            let top = y + series as f64 * BAR;
            let Some(value) = value.filter(|v| v.is_finite()) else { continue };
            let wide = if most > 0.0 { value / most * plot } else { 0.0 };
            let _ = write!(
                out,
                r#"<rect class="s{series}" x="{LABELS:.0}" y="{top:.1}" width="{wide:.1}" height="{:.1}"><title>{}: {}</title></rect><text class="v" x="{:.1}" y="{:.1}">{}</text>"#,
                BAR - 2.0,
                escape(name),
                number(value),
                LABELS + wide + 6.0,
                top + BAR - 3.0,
                number(value),
            );
        }
        y += tall(values);
    }
    out.push_str("</svg>");
    out
}

/// A strip of dots for each category, on one axis from the least to the greatest value.
pub(super) fn dots(label: &str, unit: &str, categories: &[(String, Vec<(usize, f64)>)]) -> String {
    let all: Vec<f64> = categories.iter().flat_map(|(_, v)| v.iter().map(|(_, x)| *x)).collect();
    let (least, most) = (all.iter().copied().fold(f64::INFINITY, f64::min), all.iter().copied().fold(0.0, f64::max));
    let plot = WIDTH - LABELS - VALUES;
    let span = most - least;
    let at = |x: f64| LABELS + if span > 0.0 { (x - least) / span * plot } else { plot / 2.0 };
    let row = 2.0 * BAR + GAP;
    let height = categories.len() as f64 * row + AXIS;
    let mut out = open(label, height);
    for (i, (name, values)) in categories.iter().enumerate() {
        let y = i as f64 * row + GAP;
        let _ = write!(
            out,
            r#"<text x="{:.0}" y="{:.1}" text-anchor="end">{}</text><line x1="{LABELS:.0}" x2="{:.0}" y1="{:.1}" y2="{:.1}"/>"#,
            LABELS - 8.0,
            y + BAR + 2.0,
            shorten(name),
            LABELS + plot,
            y + BAR - 2.0,
            y + BAR - 2.0,
        );
        for (series, x) in values {
            let _ = write!(
                out,
                r#"<circle class="s{series}" cx="{:.1}" cy="{:.1}" r="3.5"/>"#,
                at(*x),
                y + BAR - 2.0 + (*series as f64 - 0.5) * 9.0,
            );
        }
    }
    if !all.is_empty() {
        let y = height - 8.0;
        let ends = if span > 0.0 { vec![least, (least + most) / 2.0, most] } else { vec![least] };
        for x in ends {
            let _ =
                write!(out, r#"<text class="v" x="{:.1}" y="{y:.1}" text-anchor="middle">{x:.2} {unit}</text>"#, at(x));
        }
    }
    out.push_str("</svg>");
    out
}

fn open(label: &str, height: f64) -> String {
    format!(r#"<svg viewBox="0 0 {WIDTH:.0} {height:.0}" role="img" aria-label="{}">"#, escape(label))
}

/// The end of a long name, which tells tensors apart.
fn shorten(name: &str) -> String {
    const MOST: usize = 38;
    let n = name.chars().count();
    if n <= MOST {
        return escape(name);
    }
    let end: String = name.chars().skip(n - MOST + 1).collect();
    format!("…{}", escape(&end))
}
