//! What the pages of all reports share: one HTML file that needs nothing else. No script, no font, no address; light and
//! dark; narrow screens too. Widths follow the text or the text wraps, so that nothing is cut off.

use std::fmt::Write;

use super::tables::Table;

const STYLE: &str = include_str!("page.css");

/// Digits that the first column of a table has at most; longer names wrap.
const FIRST: usize = 44;
/// Space between two columns, in digits.
const BETWEEN: f64 = 2.7;
/// How wide a letter is beside a digit, in the mean.
const LETTER: f64 = 0.95;
/// Names longer than this may be broken after their dots.
const LONG: usize = 20;

/// Text that may stand in HTML and SVG. Controls become spaces, and marks that turn the direction of text go: they would
/// show it in another order than it has.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The same, with places where a long name may be broken.
pub(crate) fn escape_name(name: &str) -> String {
    let escaped = escape(name);
    if name.chars().count() <= LONG {
        return escaped;
    }
    let mut out = String::with_capacity(escaped.len() + 64);
    let mut inside = false;
    for c in escaped.chars() {
        out.push(c);
        // `{0..127}` stays in one piece.
        inside = c == '{' || inside && c != '}';
        if !inside && matches!(c, '.' | '_' | '/' | '-') {
            out.push_str("<wbr>");
        }
    }
    out
}

/// A page. `body` is HTML, `title` is text.
pub(crate) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{body}</main>\n<footer><p>Made by patchhost {}.</p></footer>\n</body>\n</html>\n",
        escape(title),
        env!("CARGO_PKG_VERSION")
    )
}

/// The head of a page: what it is about, and what it comes to.
pub(crate) fn verdict(about: &str, verdict: &str, out: &mut String) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "<header>\n<p class=\"about\">{}</p>", escape_name(about));
    let _ = writeln!(out, "<h1>{}</h1>\n</header>", escape(verdict));
}

/// The values at a horizontal axis. On a screen on which the axis has only room for `narrow` digits, some are left out, so that
/// they never run into one another.
pub(crate) fn ticks(ticks: &[(f64, String)], narrow: f64) -> String {
    let touch = |(a, b): (&(f64, String), &(f64, String))| {
        let widths = (a.1.chars().count() + b.1.chars().count()) as f64 / 2.0;
        (b.0 - a.0) * narrow < widths + 1.0
    };
    let fits = |stride: &usize| {
        let kept: Vec<_> = ticks.iter().step_by(*stride).collect();
        !kept.windows(2).any(|pair| touch((pair[0], pair[1])))
    };
    let stride = (1..=ticks.len()).find(fits).unwrap_or(1);
    let mut out = String::new();
    for (i, (share, label)) in ticks.iter().enumerate() {
        let class = if i.is_multiple_of(stride) { "" } else { " class=\"more\"" };
        let _ = write!(out, "<span{class} style=\"left:{:.2}%\">{}</span>", share * 100.0, escape(label));
    }
    out
}

/// A heading, a table and its notes.
pub(crate) fn section(table: &Table, out: &mut String) {
    let _ = writeln!(out, "<section>\n<h2>{}</h2>", escape(&table.title));
    bare_table(table, out);
    notes(&table.notes, out);
    out.push_str("</section>\n");
}

/// A table that is shown when it is asked for.
pub(crate) fn folded(table: &Table, out: &mut String) {
    let _ = writeln!(out, "<details>\n<summary>{}</summary>", escape(&table.title));
    bare_table(table, out);
    notes(&table.notes, out);
    out.push_str("</details>\n");
}

/// Sentences below a table or a chart.
pub(crate) fn notes(notes: &[String], out: &mut String) {
    for note in notes {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(note));
    }
}

/// A table that scrolls by itself where it is wider than the page, with a shadow at the end that hides more and a line that
/// says so. Columns that say nothing in any row are left out.
fn bare_table(table: &Table, out: &mut String) {
    let told =
        |i: usize| i == 0 || table.rows.iter().any(|row| row.get(i).is_some_and(|c| !matches!(c.as_str(), "-" | "")));
    let columns: Vec<usize> = (0..table.head.len()).filter(|i| told(*i)).collect();
    let title = escape(&table.title);
    let others = columns.iter().skip(1).map(|i| BETWEEN + widest(table, *i) as f64 * LETTER).sum::<f64>();
    let _ = writeln!(
        out,
        "<div class=\"wide\" style=\"--first:{}ch;--others:{:.0}ch\"><p class=\"hint\" aria-hidden=\"true\">{} columns: scroll sideways →</p>",
        widest(table, 0).min(FIRST),
        others + BETWEEN,
        columns.len()
    );
    let _ = writeln!(out, "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{title}\"><table>");
    let _ = write!(out, "<caption>{title}</caption>\n<thead><tr>");
    for i in &columns {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(table.head.get(*i).copied().unwrap_or_default()));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        out.push_str("<tr>");
        for (i, cell) in columns.iter().filter_map(|i| Some((*i, row.get(*i)?))) {
            let _ = match i {
                0 => write!(out, "<th scope=\"row\">{}</th>", escape_name(cell)),
                _ => write!(out, "<td>{}</td>", escape(cell)),
            };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div></div>\n");
}

/// The characters of the widest cell of a column.
fn widest(table: &Table, column: usize) -> usize {
    let cells = table.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count());
    cells.chain(table.head.get(column).map(|h| h.chars().count())).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{escape, escape_name, page, section, ticks};
    use crate::compare::tables::Table;

    fn table(cells: [&str; 3]) -> String {
        let row = cells.iter().map(|c| (*c).to_owned()).collect();
        let table = Table {
            title: "a <b> title".to_owned(),
            head: vec!["name", "left <out>", "kept"],
            rows: vec![row],
            notes: vec!["1 < 2".to_owned()],
        };
        let mut out = String::new();
        section(&table, &mut out);
        out
    }

    #[test]
    fn what_comes_from_files_is_never_markup() {
        assert_eq!(escape("<script>&\"'\n\u{202e}x"), "&lt;script&gt;&amp;&quot;&#39; x");
        let made = table(["<img src=x>", "-", "\"><script>"]);
        assert!(!made.contains("<img") && !made.contains("<script") && !made.contains("<b>"), "{made}");
        assert!(made.contains("a &lt;b&gt; title") && made.contains("1 &lt; 2"), "{made}");
        assert!(!page("</title><script>", "").contains("<script"));
    }

    #[test]
    fn long_names_wrap_after_dots_and_keep_their_text() {
        let name = "model.layers.{0..47}.mlp.experts.{0..127}.up_proj.weight";
        assert_eq!(escape_name(name).replace("<wbr>", ""), name);
        assert!(escape_name(name).contains("experts.<wbr>{0..127}.<wbr>up"), "{}", escape_name(name));
        assert_eq!(escape_name("attention"), "attention");
    }

    #[test]
    fn ticks_that_would_touch_on_a_narrow_screen_are_left_out_there() {
        let labels = |n: usize| (0..n).map(|i| (i as f64 / (n - 1) as f64, format!("0.000{i}"))).collect::<Vec<_>>();
        assert_eq!(ticks(&labels(3), 22.0).matches("more").count(), 0);
        assert_eq!(ticks(&labels(5), 22.0).matches("more").count(), 2);
        assert_eq!(ticks(&labels(9), 22.0).matches("<span style").count(), 3);
    }

    #[test]
    fn a_column_of_dashes_is_left_out_and_the_first_column_never() {
        let made = table(["-", "-", "1.5 dB"]);
        assert!(!made.contains("left") && made.contains("<td>1.5 dB</td>"), "{made}");
        assert!(made.contains("<th scope=\"row\">-</th>") && made.contains("2 columns"), "{made}");
        // The table says that it scrolls, can be reached by keyboard, and has a caption.
        for part in ["class=\"hint\"", "tabindex=\"0\"", "<caption>", "role=\"region\""] {
            assert!(made.contains(part), "{part}");
        }
    }
}
