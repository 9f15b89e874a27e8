//! Charts as SVG: no script, no font, no address. Colors come from a style sheet by class: that of the page that the chart
//! stands in, or one inside a file of its own.

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

/// Where a text begins, ends, or has its middle.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A picture that is being drawn. Lengths are in its own units, from the top left. Texts are escaped here.
pub(crate) struct Svg(String);

impl Svg {
    /// A picture in a page, whose style sheet it uses. `label` says in words what it shows.
    pub(crate) fn inline(label: &str, width: f64, height: f64) -> Self {
        let label = escape(label);
        Self(format!(r#"<svg viewBox="0 0 {width:.0} {height:.0}" role="img" aria-label="{label}">"#))
    }

    /// A picture that is a file of its own, with its style sheet inside.
    pub(crate) fn file(title: &str, style: &str, width: f64, height: f64) -> Self {
        let title = escape(title);
        Self(format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" role="img" aria-label="{title}"><title>{title}</title><style>{style}</style>"#
        ))
    }

    pub(crate) fn finish(mut self) -> String {
        self.0.push_str("</svg>");
        self.0
    }

    /// Writes one element; what is not `None` of its words goes into it as text.
    fn element(&mut self, name: &str, class: &str, attributes: std::fmt::Arguments<'_>, words: Option<&str>) {
        let class = if class.is_empty() { String::new() } else { format!(r#" class="{class}""#) };
        // Writing to a String cannot fail.
        let _ = match words {
            Some(words) => write!(self.0, "<{name}{class} {attributes}>{words}</{name}>"),
            None => write!(self.0, "<{name}{class} {attributes}/>"),
        };
    }

    pub(crate) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, class: &str, words: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        self.element("text", class, format_args!(r#"x="{x:.1}" y="{y:.1}"{anchor}"#), Some(&escape(words)));
    }

    pub(crate) fn heading(&mut self, (x, y): (f64, f64), words: &str) {
        self.element("text", "", format_args!(r#"x="{x:.1}" y="{y:.1}" font-weight="600""#), Some(&escape(words)));
    }

    /// A line; `tip` is shown where a mouse rests on it.
    pub(crate) fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str, tip: Option<&str>) {
        let ends = format_args!(r#"x1="{x1:.1}" x2="{x2:.1}" y1="{y1:.1}" y2="{y2:.1}""#);
        self.element("line", class, ends, tipped(tip).as_deref());
    }

    pub(crate) fn circle(&mut self, (x, y): (f64, f64), radius: f64, class: &str, tip: Option<&str>) {
        let place = format_args!(r#"cx="{x:.1}" cy="{y:.1}" r="{radius}""#);
        self.element("circle", class, place, tipped(tip).as_deref());
    }

    fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), class: &str, tip: &str) {
        let place = format_args!(r#"x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}""#);
        self.element("rect", class, place, tipped(Some(tip)).as_deref());
    }

    pub(crate) fn polyline(&mut self, points: &[(f64, f64)], class: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.element("polyline", class, format_args!(r#"points="{}""#, points.join(" ")), None);
    }
}

fn tipped(tip: Option<&str>) -> Option<String> {
    tip.map(|tip| format!("<title>{}</title>", escape(tip)))
}

/// From values to places on an axis.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// The least and the greatest value.
    pub(crate) values: (f64, f64),
    /// Where these two lie.
    pub(crate) places: (f64, f64),
}

impl Scale {
    fn span(&self) -> f64 {
        self.values.1 - self.values.0
    }

    /// The middle, where all values are one.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let (from, to) = self.places;
        let share = if self.span() > 0.0 { (value - self.values.0) / self.span() } else { 0.5 };
        from + share * (to - from)
    }

    /// The values that are written at the axis.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        let (least, most) = self.values;
        if self.span() > 0.0 { vec![least, (least + most) / 2.0, most] } else { vec![least] }
    }
}

/// Horizontal bars: of each category one bar per series (at most two). Values are zero or more.
pub(super) fn bars(label: &str, categories: &[(String, Vec<Option<f64>>)]) -> String {
    let values = categories.iter().flat_map(|(_, v)| v).flatten().copied().filter(|v| v.is_finite());
    let most = values.fold(0.0, f64::max);
    let plot = WIDTH - LABELS - VALUES;
    let tall = |v: &Vec<Option<f64>>| v.len().max(1) as f64 * BAR + GAP;
    let height: f64 = categories.iter().map(|(_, v)| tall(v)).sum::<f64>() + GAP;
    let mut svg = Svg::inline(label, WIDTH, height);
    let mut y = GAP;
    for (name, values) in categories {
        let middle = y + (tall(values) - GAP) / 2.0 + 4.0;
        svg.text((LABELS - 8.0, middle), Anchor::End, "", &shorten(name));
        for (series, value) in values.iter().enumerate() {
            let top = y + series as f64 * BAR;
            let Some(value) = value.filter(|v| v.is_finite()) else { continue };
            let wide = if most > 0.0 { value / most * plot } else { 0.0 };
            let tip = format!("{name}: {}", number(value));
            svg.rect((LABELS, top), (wide, BAR - 2.0), &format!("s{series}"), &tip);
            svg.text((LABELS + wide + 6.0, top + BAR - 3.0), Anchor::Start, "v", &number(value));
        }
        y += tall(values);
    }
    svg.finish()
}

/// A strip of dots for each category, on one axis from the least to the greatest value.
pub(super) fn dots(label: &str, unit: &str, categories: &[(String, Vec<(usize, f64)>)]) -> String {
    let all: Vec<f64> = categories.iter().flat_map(|(_, v)| v.iter().map(|(_, x)| *x)).collect();
    let values = (all.iter().copied().fold(f64::INFINITY, f64::min), all.iter().copied().fold(0.0, f64::max));
    let right = WIDTH - VALUES;
    let scale = Scale { values, places: (LABELS, right) };
    let row = 2.0 * BAR + GAP;
    let height = categories.len() as f64 * row + AXIS;
    let mut svg = Svg::inline(label, WIDTH, height);
    for (i, (name, values)) in categories.iter().enumerate() {
        let middle = i as f64 * row + GAP + BAR - 2.0;
        svg.text((LABELS - 8.0, middle + 4.0), Anchor::End, "", &shorten(name));
        svg.line((LABELS, middle), (right, middle), "", None);
        for (series, x) in values {
            let place = (scale.at(*x), middle + (*series as f64 - 0.5) * 9.0);
            svg.circle(place, 3.5, &format!("s{series}"), None);
        }
    }
    if !all.is_empty() {
        for x in scale.ticks() {
            svg.text((scale.at(x), height - 8.0), Anchor::Middle, "v", &format!("{x:.2} {unit}"));
        }
    }
    svg.finish()
}

/// The end of a long name, which tells tensors apart.
fn shorten(name: &str) -> String {
    const MOST: usize = 38;
    let n = name.chars().count();
    if n <= MOST {
        return name.to_owned();
    }
    let end: String = name.chars().skip(n - MOST + 1).collect();
    format!("…{end}")
}
