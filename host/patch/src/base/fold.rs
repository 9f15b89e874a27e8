//! Names that differ only in the numbers of layers and experts, folded into one:
//! `layers.{0..47}.mlp.experts.{0,2,5..7}.up_proj.weight`. A number is a whole part of a name between dots; `{0..47}` has
//! both its ends. What is folded can be unfolded: one folded name stands for every combination of its numbers, and for
//! nothing else.

use std::collections::HashMap;
use std::hash::Hash;

/// Rows of a list whose names were folded into one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// The folded name. The name itself where nothing was folded.
    pub name: String,
    /// Places of the rows in the list, in order. There is at least one.
    pub rows: Vec<usize>,
}

/// Sets of numbers, one for each part of a name that is a number: stands for every combination.
type Sets = Vec<Vec<u64>>;

/// Folds the rows that have equal keys, where their names allow it. The folds come in the order of their first rows.
pub fn fold<'n, K: Eq + Hash>(rows: impl IntoIterator<Item = (&'n str, K)>) -> Vec<Fold> {
    // Rows that may be folded together, by number of the group: the same words around the numbers, the same key, and the
    // same count of equal rows before (so that a name that comes twice is not lost).
    let mut groups: HashMap<(String, K, usize), usize> = HashMap::new();
    let mut boxes: Vec<Vec<(Sets, Vec<usize>)>> = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut seen: HashMap<&'n str, usize> = HashMap::new();
    for (row, (name, key)) in rows.into_iter().enumerate() {
        let (around, numbers) = parts(name);
        let before = seen.entry(name).and_modify(|n| *n += 1).or_insert(0);
        let group = *groups.entry((around, key, *before)).or_insert_with_key(|(around, ..)| {
            words.push(around.clone());
            boxes.push(Vec::new());
            words.len() - 1
        });
        boxes[group].push((numbers.into_iter().map(|n| vec![n]).collect(), vec![row]));
    }
    let mut folds: Vec<Fold> = Vec::new();
    for (around, boxes) in words.iter().zip(boxes) {
        folds.extend(merged(boxes).into_iter().map(|(sets, rows)| Fold { name: written(around, &sets), rows }));
    }
    folds.sort_unstable_by_key(|fold| fold.rows[0]);
    folds
}

/// What stands for a number in the words around it. A name that has this character itself is not taken apart.
const HOLE: &str = "\u{0}";

/// The words of a name with a hole for each number, and the numbers. A name with braces keeps its numbers: folded, it could
/// not be told from one that folding made.
fn parts(name: &str) -> (String, Vec<u64>) {
    if name.contains(['{', '}', '\u{0}']) {
        return (name.to_owned(), Vec::new());
    }
    let mut numbers = Vec::new();
    let words = name.split('.').map(|word| match number(word) {
        Some(n) => {
            numbers.push(n);
            HOLE
        }
        None => word,
    });
    (words.collect::<Vec<_>>().join("."), numbers)
}

/// A number as it would be written again: `007` is a word.
fn number(word: &str) -> Option<u64> {
    let plain = word.bytes().all(|b| b.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    plain.then(|| word.parse().ok()).flatten()
}

/// Joins what is equal in all numbers but one, for one number after the other, the last one first: experts are joined
/// within their layers, then layers. What is joined stays exactly every combination of its sets.
fn merged(mut boxes: Vec<(Sets, Vec<usize>)>) -> Vec<(Sets, Vec<usize>)> {
    let numbers = boxes.first().map_or(0, |(sets, _)| sets.len());
    for at in (0..numbers).rev() {
        let mut joined: Vec<(Sets, Vec<usize>)> = Vec::new();
        let mut known: HashMap<Sets, usize> = HashMap::new();
        for (mut sets, rows) in boxes {
            let own = std::mem::take(&mut sets[at]);
            let next = joined.len();
            let place = *known.entry(sets).or_insert_with_key(|others| {
                joined.push((others.clone(), Vec::new()));
                next
            });
            let (all, members) = &mut joined[place];
            all[at].extend(own);
            members.extend(rows);
        }
        for (sets, rows) in &mut joined {
            sets[at].sort_unstable();
            rows.sort_unstable();
        }
        boxes = joined;
    }
    boxes
}

fn written(around: &str, sets: &Sets) -> String {
    if sets.is_empty() {
        return around.to_owned();
    }
    let mut words = around.split(HOLE);
    let mut out = words.next().unwrap_or_default().to_owned();
    for (set, word) in sets.iter().zip(words) {
        match &set[..] {
            [one] => out.push_str(&one.to_string()),
            several => out.push_str(&format!("{{{}}}", ranges(several))),
        }
        out.push_str(word);
    }
    out
}

/// `0,2,5..7` of sorted numbers.
fn ranges(sorted: &[u64]) -> String {
    let runs = sorted.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    let run = |run: &[u64]| match run {
        [first, .., last] => format!("{first}..{last}"),
        _ => run.iter().map(u64::to_string).collect(),
    };
    runs.map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Fold, fold};
    use std::collections::BTreeSet;

    fn folded(rows: &[(&str, u8)]) -> Vec<String> {
        fold(rows.iter().copied()).into_iter().map(|fold| fold.name).collect()
    }

    /// The names that a folded one stands for, read from its text alone.
    fn unfold(name: &str) -> Vec<String> {
        let Some((before, rest)) = name.split_once('{') else { return vec![name.to_owned()] };
        let (set, after) = rest.split_once('}').unwrap();
        let numbers = set.split(',').flat_map(|run| match run.split_once("..") {
            Some((first, last)) => first.parse::<u64>().unwrap()..=last.parse().unwrap(),
            None => run.parse().unwrap()..=run.parse().unwrap(),
        });
        let tails = unfold(after);
        numbers.flat_map(|n| tails.iter().map(move |tail| format!("{before}{n}{tail}"))).collect()
    }

    #[test]
    fn experts_and_layers_are_one_name_and_their_order_stays() {
        let mut names = vec!["embed.weight".to_owned()];
        for layer in 0..48 {
            names.push(format!("layers.{layer}.norm.weight"));
            for expert in 0..128 {
                for part in ["gate", "up"] {
                    names.push(format!("layers.{layer}.experts.{expert}.{part}.weight"));
                }
            }
        }
        names.push("norm.weight".to_owned());
        let all = fold(names.iter().map(|name| (name.as_str(), ())));
        let shown: Vec<(&str, usize)> = all.iter().map(|f| (f.name.as_str(), f.rows.len())).collect();
        let expected = [
            ("embed.weight", 1),
            ("layers.{0..47}.norm.weight", 48),
            ("layers.{0..47}.experts.{0..127}.gate.weight", 48 * 128),
            ("layers.{0..47}.experts.{0..127}.up.weight", 48 * 128),
            ("norm.weight", 1),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn only_equal_rows_are_folded_and_gaps_are_shown() {
        let rows = ["a.0", "a.1", "a.2", "a.3", "a.5", "a.6", "a.7", "a.9"].map(|name| (name, u8::from(name == "a.1")));
        assert_eq!(folded(&rows), ["a.{0,2..3,5..7,9}", "a.1"]);
        // One expert that differs leaves the others of its layer, and the other layers, folded.
        let names: Vec<String> = (0..3).flat_map(|l| (0..3).map(move |e| format!("{l}.x.{e}"))).collect();
        let rows: Vec<(&str, u8)> = names.iter().map(|n| (n.as_str(), u8::from(n == "1.x.2"))).collect();
        assert_eq!(folded(&rows), ["{0,2}.x.{0..2}", "1.x.{0..1}", "1.x.2"]);
    }

    #[test]
    fn what_is_no_number_between_dots_is_left_alone() {
        for names in [
            &["w13_weight", "w2_weight"][..],
            &["a1.b", "a2.b"],
            &["a.01", "a.02"],
            &["a.-1", "a.+2"],
            &["a.99999999999999999999", "a.99999999999999999998"],
            &["{0..3}.1", "{0..3}.2"],
            &["a.1", "b.1", ""],
            &["a.\u{0}.1", "a.\u{0}.2"],
        ] {
            assert_eq!(folded(&names.iter().map(|n| (*n, 0)).collect::<Vec<_>>()), names);
        }
        // A name that comes twice is two rows.
        assert_eq!(folded(&[("a.1", 0), ("a.2", 0), ("a.1", 0)]), ["a.{1..2}", "a.1"]);
        assert_eq!(fold(Vec::<(&str, ())>::new()), Vec::<Fold>::new());
    }

    /// Small numbers, in an order that is the same every time.
    struct Dice(u64);

    impl Dice {
        fn next(&mut self, below: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) % below
        }
    }

    #[test]
    fn unfolding_gives_the_names_back_whatever_they_are() {
        let mut dice = Dice(7);
        for case in 0..2000 {
            let (layers, experts) = (1 + dice.next(6), 1 + dice.next(6));
            let names: BTreeSet<String> = (0..dice.next(40))
                .map(|_| {
                    let (l, e) = (dice.next(layers), dice.next(experts));
                    match dice.next(4) {
                        0 => format!("m.layers.{l}.mlp.experts.{e}.up.weight"),
                        1 => format!("m.layers.{l}.norm.weight"),
                        2 => format!("{l}.{e}"),
                        _ => format!("head{l}"),
                    }
                })
                .collect();
            // In any order, with a few different keys.
            let mut rows: Vec<(String, u64)> = names.into_iter().map(|name| (name, dice.next(1 + case % 3))).collect();
            for i in (1..rows.len()).rev() {
                rows.swap(i, dice.next(i as u64 + 1) as usize);
            }
            let folds = fold(rows.iter().map(|(name, key)| (name.as_str(), *key)));
            assert!(folds.is_sorted_by_key(|f| f.rows[0]), "{folds:?}");
            let mut places: Vec<usize> = Vec::new();
            for Fold { name, rows: members } in &folds {
                assert!(members.is_sorted(), "{members:?}");
                let mine: BTreeSet<&str> = members.iter().map(|at| rows[*at].0.as_str()).collect();
                let unfolded = unfold(name);
                assert_eq!(unfolded.len(), members.len(), "{name}");
                assert_eq!(unfolded.iter().map(String::as_str).collect::<BTreeSet<_>>(), mine, "{name}");
                assert!(members.iter().all(|at| rows[*at].1 == rows[members[0]].1), "{name}: keys differ");
                places.extend(members);
            }
            places.sort_unstable();
            assert_eq!(places, (0..rows.len()).collect::<Vec<_>>(), "each row is in one fold");
        }
    }

    #[test]
    fn long_lists_take_no_time_that_anybody_notices() {
        let names: Vec<String> = (0..50)
            .flat_map(|l| (0..2_000).flat_map(move |e| [format!("l.{l}.e.{e}.a"), format!("l.{l}.e.{e}.b")]))
            .collect();
        let folds = fold(names.iter().map(|name| (name.as_str(), 0)));
        assert_eq!(
            folds.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(),
            ["l.{0..49}.e.{0..1999}.a", "l.{0..49}.e.{0..1999}.b"]
        );
        // And one that cannot be folded in a second direction: every layer has its own experts.
        let ragged = fold(names.iter().enumerate().map(|(i, name)| (name.as_str(), i * 7 % 13)));
        assert_eq!(ragged.iter().map(|f| f.rows.len()).sum::<usize>(), names.len());
    }
}
