//! Charts of a page as HTML: bars and strips of dots whose words are text of the page, so that they wrap and are never cut.
//! Where all values are one, a sentence stands in the place of the chart.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::axis::Axis;
use super::page::{escape, escape_name, ticks};
use super::tables::{brief, number};

/// Ticks of an axis, about.
const TICKS: u32 = 4;
/// Digits that an axis has room for on a narrow screen.
const NARROW: f64 = 22.0;
/// Names that a sentence lists before it only counts them.
const LISTED: usize = 6;
/// Places of a strip that are told apart; dots that fall together are drawn once.
const PLACES: f64 = 500.0;

/// What a chart says above its bars.
#[derive(Clone, Copy)]
pub(super) struct Words {
    pub(super) title: &'static str,
    /// What the numbers are, in a sentence below the title.
    pub(super) under: &'static str,
    /// Written after each number.
    pub(super) unit: &'static str,
}

impl Words {
    fn value(&self, v: f64) -> String {
        [&brief(v), self.unit].join(" ").trim_end().to_owned()
    }

    fn figure(&self, inside: &str) -> String {
        let (title, under) = (escape(self.title), escape(self.under));
        format!(
            "<figure aria-label=\"{title}\">\n<figcaption><h2>{title}</h2>\n<p class=\"under\">{under}</p></figcaption>\n{inside}</figure>\n"
        )
    }

    fn sentence(&self, sentence: &str) -> String {
        self.figure(&format!("<p class=\"same\">{}</p>\n", escape(sentence)))
    }
}

/// A bar's name, and its length for each series: at most two, of which the first is A and the second is B.
pub(super) type Category = (String, Vec<Option<f64>>);

/// Whose bar it is: the key before it, and the class of its color.
#[derive(Clone, Copy)]
struct Lane {
    who: &'static str,
    class: &'static str,
    series: usize,
}

const A: Lane = Lane { who: "A", class: "s0", series: 0 };
const B: Lane = Lane { who: "B", class: "s1", series: 1 };
const BOTH: Lane = Lane { who: "A B", class: "both", series: 0 };
const NOBODY: Lane = Lane { who: "", class: "s0", series: 0 };

impl Lane {
    fn key(&self) -> String {
        format!("<span class=\"who {}\">{}</span>", self.class, self.who)
    }
}

/// Bars of both sides; values are zero or more.
pub(super) fn bars(words: Words, categories: &[Category]) -> String {
    let two = categories.iter().any(|(_, v)| v.len() > 1);
    let alike = |v: &Vec<Option<f64>>| v.len() == 2 && v[0].map(number) == v[1].map(number);
    match (two, categories.iter().all(|(_, v)| alike(v))) {
        (false, _) => drawn(words, categories, &[A]),
        (true, true) => drawn(words, categories, &[BOTH]),
        (true, false) => drawn(words, categories, &[A, B]),
    }
}

/// Bars of something that A and B have between them.
pub(super) fn plain_bars(words: Words, categories: &[Category]) -> String {
    drawn(words, categories, &[NOBODY])
}

fn drawn(words: Words, categories: &[Category], lanes: &[Lane]) -> String {
    let seen: Vec<f64> = categories.iter().flat_map(|(_, v)| v).flatten().copied().filter(|v| v.is_finite()).collect();
    if let Some(sentence) = same(&words, categories, lanes, &seen) {
        return words.sentence(&sentence);
    }
    let axis = Axis::from_zero(seen.iter().copied().fold(0.0, f64::max), TICKS);
    let longest = seen.iter().map(|v| words.value(*v).chars().count()).max().unwrap_or(0);
    // A digit of room on each side of the number.
    let mut out = format!("<div class=\"bars\" style=\"--value:{}ch;--names:{}ch\">\n", longest + 2, names(categories));
    for (name, values) in categories {
        let _ = write!(out, "<div class=\"row\"><div class=\"name\">{}</div><div>", escape_name(name));
        for lane in lanes {
            let value = values.get(lane.series).copied().flatten();
            let _ = write!(out, "<div class=\"lane\">{}<div class=\"rail\">", lane.key());
            let _ = match value.filter(|v| v.is_finite()) {
                Some(v) => write!(
                    out,
                    "<i class=\"bar {}\" style=\"width:{:.2}%\"></i><span class=\"value\">{}</span>",
                    lane.class,
                    axis.map_or(0.0, |axis| axis.share(v)) * 100.0,
                    escape(&words.value(v))
                ),
                None => write!(
                    out,
                    "<span class=\"value\">{}</span>",
                    if value.is_some() { "no number" } else { "not quantized" }
                ),
            };
            out.push_str("</div></div>");
        }
        out.push_str("</div></div>\n");
    }
    out.push_str(&axis_row(axis));
    out.push_str("</div>\n");
    if lanes.len() == 1 && lanes[0].who == BOTH.who {
        out.push_str("<p class=\"note\">A and B are equal here: each bar stands for both.</p>\n");
    }
    words.figure(&out)
}

/// What to say where every bar has one length; none where they differ.
fn same(words: &Words, categories: &[Category], lanes: &[Lane], seen: &[f64]) -> Option<String> {
    let Some(first) = seen.first() else { return Some("There is no number to show.".to_owned()) };
    let complete = categories.iter().all(|(_, v)| lanes.iter().all(|l| v.get(l.series).is_some_and(Option::is_some)));
    let equal = seen.iter().all(|v| number(*v) == number(*first));
    if !equal || !complete && seen.len() > 1 {
        return None;
    }
    let value = words.value(*first);
    let whose = match lanes {
        [lane] if lane.who == BOTH.who => " with A and with B",
        [_, _] if complete => " with A and with B",
        _ => "",
    };
    let names: Vec<&str> = categories.iter().map(|(name, _)| name.as_str()).collect();
    Some(match names.as_slice() {
        [name] => format!("{name}: {value}{whose}."),
        _ => format!("The same everywhere: {value}{whose} ({}).", listed(&names)),
    })
}

/// `a, b and c`; of many names the first ones and how many more there are.
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] if names.len() <= LISTED => format!("{} and {last}", first.join(", ")),
        _ => {
            let (shown, more) = names.split_at(LISTED.min(names.len()));
            format!("{} and {} more", shown.join(", "), more.len())
        }
    }
}

/// Digits that the longest name takes; it wraps where the page has less room.
fn names<T>(categories: &[(String, T)]) -> usize {
    categories.iter().map(|(name, _)| name.chars().count() + 1).max().unwrap_or(0).max(10)
}

fn axis_row(axis: Option<Axis>) -> String {
    let Some(axis) = axis else { return String::new() };
    let ticks = ticks(&axis.ticks(), NARROW);
    format!(
        "<div class=\"row axis\" aria-hidden=\"true\"><div class=\"name\"></div><div class=\"lane\"><span></span><div class=\"ticks\">{ticks}</div></div></div>\n"
    )
}

/// The dots of one strip.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Dots {
    /// A dot for each.
    pub(super) values: Vec<f64>,
    /// Things that have no such number because nothing was lost.
    pub(super) exact: usize,
}

impl Dots {
    /// As it is read without looking at the dots.
    fn summary(&self, unit: &str) -> String {
        let mut sorted = self.values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let exact = match self.exact {
            0 => String::new(),
            n if sorted.is_empty() => format!("{n} exact"),
            n => format!(", {n} exact"),
        };
        let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else { return exact };
        let middle = sorted.get(sorted.len() / 2).unwrap_or(most);
        match format!("{least:.2}") == format!("{most:.2}") {
            true => format!("{most:.2} {unit}{exact}"),
            false => format!("{middle:.2} {unit} ({least:.2} to {most:.2}){exact}"),
        }
    }
}

/// A strip of dots for each category and side.
pub(super) fn strips(words: Words, categories: &[(String, [Dots; 2])]) -> String {
    let all = || categories.iter().flat_map(|(_, sides)| sides);
    let mut values = all().flat_map(|dots| &dots.values).copied();
    let exact: usize = all().map(|dots| dots.exact).sum();
    let Some(first) = values.next() else {
        return words.sentence(&format!("Nothing is lost: all {exact} are exact."));
    };
    let (least, most) = values.fold((first, first), |(least, most), v| (least.min(v), most.max(v)));
    let told = format!("{first:.2}");
    if exact == 0 && all().flat_map(|dots| &dots.values).all(|v| format!("{v:.2}") == told) {
        return words.sentence(&format!("The same for every tensor: {told} {}.", words.unit));
    }
    let equal = categories.iter().all(|(_, [a, b])| a == b);
    let empty = |side: usize| categories.iter().all(|(_, sides)| sides[side] == Dots::default());
    let lanes: &[Lane] = match (equal, empty(1), empty(0)) {
        (true, ..) => &[BOTH],
        (_, true, _) => &[A],
        (_, _, true) => &[B],
        _ => &[A, B],
    };
    let axis = Axis::around(least, most, TICKS);
    let mut out = format!("<div class=\"strips\" style=\"--names:{}ch\">\n", names(categories));
    for (name, sides) in categories {
        let _ = write!(out, "<div class=\"row\"><div class=\"name\">{}</div><div>", escape_name(name));
        for lane in lanes {
            let dots = &sides[lane.series];
            let _ = write!(
                out,
                "<div class=\"lane\">{}<div class=\"strip\" aria-hidden=\"true\"><svg viewBox=\"0 0 1000 10\" preserveAspectRatio=\"none\">{}</svg></div><span class=\"value\">{}</span></div>",
                lane.key(),
                path(axis, &dots.values, lane.class),
                escape(&dots.summary(words.unit))
            );
        }
        out.push_str("</div></div>\n");
    }
    out.push_str(&axis_row(axis));
    out.push_str("</div>\n");
    if lanes.len() == 1 && lanes[0].who == BOTH.who {
        out.push_str("<p class=\"note\">A and B are equal here: each strip stands for both.</p>\n");
    }
    words.figure(&out)
}

/// Dots as lines without a length: their round ends stay round however the strip is stretched.
fn path(axis: Option<Axis>, values: &[f64], class: &str) -> String {
    let place = |v: &f64| (axis.map_or(0.5, |axis| axis.share(*v)) * PLACES).round() as u32;
    let places: BTreeSet<u32> = values.iter().map(place).collect();
    if places.is_empty() {
        return String::new();
    }
    let dots: String = places.iter().map(|p| format!("M{} 5h0", f64::from(*p) / PLACES * 1000.0)).collect();
    format!("<path class=\"{class}\" d=\"{dots}\"/>")
}

#[cfg(test)]
mod tests {
    use super::{Category, Dots, Words, bars, plain_bars, strips};

    const WORDS: Words = Words { title: "t", under: "u", unit: "nats" };

    fn both(values: &[(&str, f64, f64)]) -> Vec<Category> {
        values.iter().map(|(name, a, b)| ((*name).to_owned(), vec![Some(*a), Some(*b)])).collect()
    }

    #[test]
    fn bars_that_are_all_equal_are_a_sentence() {
        let made = bars(WORDS, &both(&[("attention", 0.5, 0.5), ("experts", 0.5, 0.5)]));
        assert!(
            !made.contains("class=\"bar")
                && made.contains("The same everywhere: 0.500 nats with A and with B (attention and experts)")
        );
        assert!(bars(WORDS, &both(&[("attention", 0.0, 0.0)])).contains("attention: 0 nats with A and with B."));
        // Equal in all digits that are shown is equal.
        assert!(!bars(WORDS, &both(&[("a", 0.5, 0.500_000_1), ("b", 0.5, 0.5)])).contains("class=\"bar"));
        assert!(bars(WORDS, &both(&[("a", 0.5, 0.6)])).contains("class=\"bar"));
        let many: Vec<Category> = (0..9).map(|i| (format!("t{i}"), vec![Some(100.0)])).collect();
        assert!(plain_bars(WORDS, &many).contains("t5 and 3 more"));
        assert!(bars(WORDS, &[("a".to_owned(), vec![Some(f64::NAN)])]).contains("no number"));
    }

    #[test]
    fn sides_that_are_equal_share_their_bars() {
        let made = bars(WORDS, &both(&[("a", 0.5, 0.5), ("b", 0.25, 0.25)]));
        assert_eq!(made.matches("<i class=\"bar").count(), 2);
        assert!(made.contains("A and B are equal here"));
        // The axis ends at a round value, and lengths are shares of it.
        assert!(made.contains("width:83.33%") && made.contains("width:41.67%") && made.contains(">0.6<"), "{made}");
    }

    #[test]
    fn what_one_side_does_not_quantize_is_said() {
        let made =
            bars(WORDS, &[("a".to_owned(), vec![Some(0.5), None]), ("b".to_owned(), vec![Some(0.5), Some(0.5)])]);
        assert_eq!((made.matches("<i class=\"bar").count(), made.matches("not quantized").count()), (3, 1));
    }

    #[test]
    fn names_are_escaped_and_whole() {
        let name = format!("{}.<script>", "model.layers".repeat(20));
        let made = bars(WORDS, &both(&[(&name, 0.5, 0.6)])).replace("<wbr>", "");
        assert!(!made.contains("<script") && made.contains(&format!("{}.&lt;script&gt;", "model.layers".repeat(20))));
    }

    #[test]
    fn strips_say_their_numbers_and_equal_ones_are_a_sentence() {
        let dots = |values: &[f64], exact| Dots { values: values.to_vec(), exact };
        let made = strips(WORDS, &[("a".to_owned(), [dots(&[31.0, 33.0, 32.0], 0), dots(&[30.0], 2)])]);
        assert!(made.contains("32.00 nats (31.00 to 33.00)") && made.contains("30.00 nats, 2 exact"), "{made}");
        assert_eq!(made.matches("<path").count(), 2);
        let equal = strips(WORDS, &[("a".to_owned(), [dots(&[31.0, 31.001], 0), dots(&[31.0], 0)])]);
        assert!(!equal.contains("<path") && equal.contains("The same for every tensor: 31.00 nats."), "{equal}");
        let exact = strips(WORDS, &[("a".to_owned(), [dots(&[], 3), dots(&[], 3)])]);
        assert!(exact.contains("Nothing is lost: all 6 are exact."), "{exact}");
        // Ten thousand dots are drawn where they can be told apart.
        let values: Vec<f64> = (0..10_000).map(|i| 30.0 + f64::from(i) * 1e-3).collect();
        let many = strips(WORDS, &[("a".to_owned(), [dots(&values, 0), Dots::default()])]);
        assert!(many.matches("h0").count() <= 501 && !many.contains(">B<"));
    }
}
