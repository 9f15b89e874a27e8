//! Elements of a picture that is a file of its own: no script, no font, no address.

use std::fmt::Write;

use super::page::escape;

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
    /// A picture with its style sheet inside. `label` says in words what it shows.
    pub(crate) fn new(title: &str, label: &str, style: &str, width: f64, height: f64) -> Self {
        let (title, label) = (escape(title), escape(label));
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" \
             aria-label=\"{label}\"><title>{title}</title><style>{style}</style>\n"
        ))
    }

    pub(crate) fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }

    pub(crate) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, class: &str, words: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        self.element("text", class, format_args!(r#"x="{x:.1}" y="{y:.1}"{anchor}"#), Some(&escape(words)));
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

    pub(crate) fn polyline(&mut self, points: &[(f64, f64)], class: &str) {
        self.points("polyline", points, class);
    }

    pub(crate) fn polygon(&mut self, points: &[(f64, f64)], class: &str) {
        self.points("polygon", points, class);
    }

    fn points(&mut self, name: &str, points: &[(f64, f64)], class: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.element(name, class, format_args!(r#"points="{}""#, points.join(" ")), None);
    }

    /// Writes one element; what is not `None` of its words goes into it as markup.
    fn element(&mut self, name: &str, class: &str, attributes: std::fmt::Arguments<'_>, words: Option<&str>) {
        let class = if class.is_empty() { String::new() } else { format!(r#" class="{class}""#) };
        // Writing to a String cannot fail.
        let _ = match words {
            Some(words) => writeln!(self.0, "<{name}{class} {attributes}>{words}</{name}>"),
            None => writeln!(self.0, "<{name}{class} {attributes}/>"),
        };
    }
}

fn tipped(tip: Option<&str>) -> Option<String> {
    tip.map(|tip| format!("<title>{}</title>", escape(tip)))
}
