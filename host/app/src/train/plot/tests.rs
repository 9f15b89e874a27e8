#![allow(clippy::unwrap_used)]
use super::marks::{Side, labels, sets};
use super::{html, svg, verdict};
use crate::train::metrics::{Point, Swap};

const LONG: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A run whose rewards rise, with a swap at each of `swaps`.
fn run(steps: u64, swaps: &[u64]) -> Vec<Point> {
    let digest = |step: u64| format!("sha256:{:064x}", step * 0x1234_5678_9abc);
    let point = |step: u64| {
        let swap = swaps.contains(&step).then(|| Swap { from: digest(step - 1), to: digest(step) });
        let wave = (step * 7919 % 13) as f64 / 13.0;
        Point {
            step,
            reward: step as f64 / steps as f64 * 0.9 + wave * 0.05,
            kl: 0.0,
            k3_kl: 1e-4 * (1.0 + wave),
            grad_norm: Some(2.0 + wave),
            response_length: Some(20.0 + wave),
            refit_seconds: Some(0.01 + wave * 0.001),
            patch_set: (step == 1).then(|| LONG.to_owned()),
            patches: if step == 1 { vec!["fp8_block".to_owned()] } else { Vec::new() },
            swap,
        }
    };
    (1..=steps).map(point).collect()
}

/// Every element that is opened is closed, and nothing is written that is no number.
#[track_caller]
fn whole(made: &str) {
    for tag in ["svg", "text", "title", "div", "span", "p", "h1", "h2", "table", "tr", "td", "th", "figure", "details"]
    {
        let opened = made.matches(&format!("<{tag}>")).count() + made.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, made.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    for word in ["NaN\"", "NaN,", "NaN ", "inf ", "inf,", "\"NaN", "NaN%"] {
        let drawn = made.split("d=\"").chain(made.split("points=\"")).skip(1).filter_map(|rest| rest.split('"').next());
        assert!(drawn.into_iter().all(|path| !path.contains(word.trim_matches(['"', ' ']))), "{word}");
    }
    for address in ["http:", "https:", "<script", "src=", "href=", "url(", "@import"] {
        let made = made.replace("http://www.w3.org/2000/svg", "");
        assert!(!made.contains(address), "{address}");
    }
}

#[test]
fn the_verdict_stands_before_the_first_chart() {
    let points = run(40, &[20]);
    let said = verdict(&points);
    assert!(said.starts_with("The mean reward rose: 0.1") && said.contains("last 10"), "{said}");
    let page = html("t", &points);
    assert!(page.find(&said).unwrap() < page.find("<figure").unwrap());
    assert!(svg("t", &points).find("The mean reward rose").unwrap() < svg("t", &points).find("<polyline").unwrap());
    whole(&page);
    whole(&svg("t", &points));
    for panel in
        ["Mean reward", "k3 KL, nats per token", "Norm of the gradients", "length, tokens", "Refit time, milli"]
    {
        assert!(page.contains(panel) && svg("t", &points).contains(panel), "{panel}");
    }
}

#[test]
fn a_swap_has_a_mark_in_each_panel_and_a_line_in_the_legend() {
    let points = run(40, &[10, 30]);
    let page = html("t", &points);
    assert_eq!(page.matches("<path class=\"swap\"").count(), 2 * 5);
    assert_eq!(svg("t", &points).matches("<line class=\"swap\"").count(), 2 * 5);
    for set in sets(&points) {
        assert!(page.contains(&format!("{}: {}", set.number, set.short())), "{}", set.number);
        assert!(svg("t", &points).contains(set.short()));
    }
    // The first set is known by its own digest, and the names of its patches are there.
    assert!(page.contains("1: 0123456789ab") && page.contains("<td>fp8_block</td>"));
    assert!(page.contains("2 swaps of patches, at the steps 10 and 30."));
    // Without a swap there is nothing to mark.
    assert!(!html("t", &run(40, &[])).contains("class=\"swap\""));
}

#[test]
fn labels_of_marks_never_touch() {
    for swaps in [vec![2], vec![2, 3, 4, 5], vec![39, 40], (2..=40).collect::<Vec<_>>(), vec![10, 20, 30], vec![40]] {
        let points = run(40, &swaps);
        let sets = sets(&points);
        assert_eq!(sets.len(), swaps.len() + 1);
        let made = labels(&sets, &|step| (step - 1) as f64 / 39.0);
        let mut end = -1.0;
        for label in &made {
            // A narrow screen has 250 pixels for the chart.
            let (from, to) = match label.digest {
                Some((Side::Left, _)) => (label.at - 0.22, label.at),
                Some((Side::Right, _)) => (label.at, label.at + 0.22),
                None => (label.at, label.at + (label.numbers.chars().count() as f64 + 1.0) * 8.0 / 250.0),
            };
            assert!(from >= end && to <= 1.2, "{swaps:?}: {made:?}");
            end = to;
        }
        let named: Vec<&str> = made.iter().map(|l| l.numbers.as_str()).collect();
        assert!(named[0].starts_with('1') && named[named.len() - 1].ends_with(&sets.len().to_string()), "{named:?}");
    }
}

#[test]
fn nothing_one_step_and_no_numbers_are_sentences() {
    for page in [html("t", &[]), svg("t", &[])] {
        assert!(page.contains("No step was made") && !page.contains("<path") && !page.contains("<polyline"));
        whole(&page);
    }
    let one = run(1, &[]);
    for page in [html("t", &one), svg("t", &one)] {
        assert!(page.contains("One step: its mean reward is") && page.contains("in the one step."), "{page}");
        assert!(!page.contains("class=\"line\"") && !page.contains("<polyline"));
        whole(&page);
    }
    let mut none = run(5, &[]);
    none.iter_mut().for_each(|p| p.reward = f64::NAN);
    assert_eq!(verdict(&none), "No step has a reward that is a number.");
    assert!(html("t", &none).contains("No step has a number here."));
    whole(&html("t", &none));
}

#[test]
fn values_that_are_all_equal_are_a_sentence() {
    let mut points = run(8, &[]);
    points.iter_mut().for_each(|p| p.grad_norm = Some(1.0));
    assert!(html("t", &points).contains("1.000 in each of the 8 steps."));
    assert!(svg("t", &points).contains("1.000 in each of the 8 steps."));
    points[2].grad_norm = None;
    assert!(html("t", &points).contains("1.000 in each of the 7 steps that have a number."));
}

#[test]
fn a_step_without_a_number_is_a_gap() {
    let mut points = run(20, &[]);
    points[7].reward = f64::NAN;
    points[8].reward = f64::INFINITY;
    let page = html("t", &points);
    assert!(page.contains("2 of 20 steps have no number here; the line has a gap there."));
    // Two lines in the first panel, one in each of the others.
    assert_eq!(page.matches("<path class=\"line\"").count(), 6);
    assert_eq!(svg("t", &points).matches("<polyline").count(), 6);
    whole(&page);
    whole(&svg("t", &points));
}

#[test]
fn a_long_run_is_thinned_and_says_so() {
    let points = run(10_000, &[2_000]);
    let page = html("t", &points);
    assert!(page.contains("is the mean of about 21 steps"), "{}", page.len());
    assert!(page.contains("class=\"band\"") && page.len() < 200_000, "{}", page.len());
    // The least and the greatest value are in the band, and no dot is drawn for each step.
    assert!(!page.contains("class=\"dot\"") && page.contains("--metrics-out"));
    whole(&page);
    whole(&svg("t", &points));
}

#[test]
fn ticks_are_round() {
    let page = html("t", &run(40, &[]));
    for label in [">0<", ">0.5<", ">1.0<", ">step 10<", ">20<", ">30<", ">40<"] {
        assert!(page.contains(label), "{label}");
    }
}

#[test]
fn what_comes_from_files_is_escaped_and_wrapped() {
    let mut points = run(4, &[3]);
    points[0].patches = vec!["<script>".to_owned()];
    points[2].swap = Some(Swap { from: "a".to_owned(), to: "<b>é".to_owned() });
    let title = format!("patchhost train: <script>{}", "/very/long/folder".repeat(30));
    for made in [html(&title, &points), svg(&title, &points)] {
        assert!(!made.contains("<script") && !made.contains("<b>é") && made.contains("&lt;b&gt;"), "{made}");
        whole(&made);
    }
    // In the SVG no line of text is longer than the picture is wide.
    for text in svg(&title, &points).split("<text ").skip(1) {
        let words = text.split_once('>').unwrap().1.split_once("</text>").unwrap().0;
        assert!(words.chars().count() < 130, "{words}");
    }
}

#[test]
fn verdicts_say_only_what_the_numbers_show() {
    let flat = |steps: u64, of: &dyn Fn(u64) -> f64| {
        let mut points = run(steps, &[]);
        points.iter_mut().for_each(|p| p.reward = of(p.step));
        verdict(&points)
    };
    assert!(flat(40, &|_| 0.5).starts_with("The mean reward did not change: 0.500"));
    assert!(flat(40, &|step| 0.5 + (step % 5) as f64 * 0.1).starts_with("The mean reward did not"));
    assert!(flat(40, &|step| 0.5 - step as f64 * 0.01).starts_with("The mean reward fell"));
    assert!(flat(4, &|step| step as f64).starts_with("These are too few steps to show a trend"));
}
