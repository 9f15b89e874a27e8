//! Which functions are the same, which changed, which came and went.

use super::body::{Body, Image, Side, Words};
use super::callees::{Id, Which, id};
use crate::base::text;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Bytes of a thing in memory that are compared.
const LOOK: usize = 256;

/// Functions of both versions.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FunctionDiff {
    /// Functions of this version.
    pub total: usize,
    /// How many of them the version before had.
    pub same: usize,
    /// Those whose body is another.
    pub changed: Vec<Changed>,
    /// Those that are new.
    pub added: Vec<String>,
    /// Those that are gone.
    pub removed: Vec<String>,
}

/// One function that changed.
#[derive(Debug, Clone, Serialize)]
pub struct Changed {
    /// Its name; without names, its place.
    pub name: String,
    /// Where it is now.
    pub place: String,
    /// Instructions, before and now.
    pub instructions: (usize, usize),
    /// The first instructions that differ, before and now; or the data that they point to.
    pub first: (String, String),
    /// Constants that it did not have before.
    pub constants: Vec<String>,
    /// Calls that it did not make before.
    pub calls: Vec<String>,
}

type Pair<'a> = (&'a Body, &'a Body);

/// Per module and address: where functions say that it is in the other version, and how many.
type Votes = HashMap<(usize, u64), BTreeMap<u64, usize>>;

/// Compares the functions of two versions: by name where they have names, else by body.
pub(super) fn compare(old: &Side, new: &Side, words: &Words) -> FunctionDiff {
    let mut by_name: BTreeMap<&str, (Vec<&Body>, Vec<&Body>)> = BTreeMap::new();
    old.bodies.iter().for_each(|body| by_name.entry(&body.name).or_default().0.push(body));
    new.bodies.iter().for_each(|body| by_name.entry(&body.name).or_default().1.push(body));
    let mut diff = FunctionDiff { total: new.bodies.len(), ..FunctionDiff::default() };
    // Same instructions; what their addresses point to is looked at when all pairs are known.
    let mut alike: Vec<Pair<'_>> = Vec::new();
    // Which function is which, by name or by body.
    let mut known: Vec<(Id, Id)> = Vec::new();
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for (_, (mut before, mut now)) in by_name {
        pair(&mut before, &mut now, &mut alike);
        let pairs = before.len().min(now.len());
        let found = before.iter().zip(&now).take(pairs);
        diff.changed.extend(found.clone().map(|(before, now)| changed(before, now, words)));
        known.extend(found.map(|(before, now)| (id(before), id(now))));
        gone.extend_from_slice(&before[pairs..]);
        come.extend_from_slice(&now[pairs..]);
    }
    // One that was only renamed is the same.
    pair(&mut gone, &mut come, &mut alike);
    diff.removed = gone.iter().map(|body| name(body)).collect();
    diff.added = come.iter().map(|body| name(body)).collect();
    let moved = Moved::of(&alike, old, new);
    known.extend(alike.iter().map(|(before, now)| (id(before), id(now))));
    let mut which = Which::new(known, &moved, old, new);
    for (before, now) in alike {
        match moved.elsewhere(before, now, old, new).or_else(|| which.elsewhere(before, now)) {
            None => diff.same += 1,
            Some(first) => diff.changed.push(Changed { first, ..changed(before, now, words) }),
        }
    }
    diff
}

/// Takes out pairs with the same instructions.
fn pair<'a>(before: &mut Vec<&'a Body>, now: &mut Vec<&'a Body>, pairs: &mut Vec<Pair<'a>>) {
    let mut known: HashMap<&[u32], Vec<usize>> = HashMap::new();
    for (at, body) in before.iter().enumerate().rev() {
        known.entry(&body.words).or_default().push(at);
    }
    let mut matched = BTreeSet::new();
    now.retain(|body| match known.get_mut(body.words.as_slice()).and_then(Vec::pop) {
        Some(at) => {
            matched.insert(at);
            pairs.push((before[at], body));
            false
        }
        None => true,
    });
    // What is left may differ in positions of the table only: it was sorted anew. Few are left, or it is a rewrite.
    if now.len().saturating_mul(before.len()) <= 1 << 20 {
        now.retain(|body| {
            let found =
                before.iter().enumerate().find(|(at, other)| !matched.contains(at) && same_but_table(other, body));
            match found.map(|(at, other)| (at, *other)) {
                Some((at, other)) => {
                    matched.insert(at);
                    pairs.push((other, body));
                    false
                }
                None => true,
            }
        });
    }
    let mut at = 0;
    before.retain(|_| {
        at += 1;
        !matched.contains(&(at - 1))
    });
}

/// Whether two bodies differ in nothing but positions of the same functions in the table.
fn same_but_table(old: &Body, new: &Body) -> bool {
    let there = |body: &Body, at: usize| {
        let found = body.pointers.binary_search_by_key(&at, |(at, ..)| *at).ok()?;
        Some(body.pointers[found].1)
    };
    old.words.len() == new.words.len()
        && (0..old.words.len()).all(|at| {
            old.words[at] == new.words[at] || matches!((there(old, at), there(new, at)), (Some(a), Some(b)) if a == b)
        })
}

/// Where things in memory moved to, by the votes of all functions with the same instructions.
pub(super) struct Moved {
    to: HashMap<(usize, u64), u64>,
    from: HashMap<(usize, u64), u64>,
}

impl Moved {
    fn of(alike: &[Pair<'_>], before: &Side, now: &Side) -> Self {
        let mut to = Votes::new();
        let mut from = to.clone();
        for (old, new) in alike {
            for ((_, a), (_, b)) in old.addresses.iter().zip(&new.addresses) {
                *to.entry((old.module, *a)).or_default().entry(*b).or_default() += 1;
                *from.entry((new.module, *b)).or_default().entry(*a).or_default() += 1;
            }
        }
        // Where the same thing lies counts more than any number of votes for another one.
        let same = |module: usize, a: u64, b: u64| match (before.images.get(module), now.images.get(module)) {
            (Some(old), Some(new)) => same_thing(old, a, new, b),
            _ => false,
        };
        let most = |votes: Votes, forward: bool| {
            let best = |(module, key): (usize, u64), votes: BTreeMap<u64, usize>| {
                let pair = |other: u64| if forward { (key, other) } else { (other, key) };
                let worth = |(other, count): &(u64, usize)| (same(module, pair(*other).0, pair(*other).1), *count);
                votes.into_iter().max_by_key(worth).map(|(to, _)| to)
            };
            votes.into_iter().filter_map(|(key, votes)| Some((key, best(key, votes)?))).collect()
        };
        Self { to: most(to, true), from: most(from, false) }
    }

    /// What a function points to that is another thing than before, before and now.
    pub(super) fn elsewhere(&self, before: &Body, now: &Body, old: &Side, new: &Side) -> Option<(String, String)> {
        let (old, new) = (old.images.get(before.module)?, new.images.get(now.module)?);
        for ((_, a), (_, b)) in before.addresses.iter().zip(&now.addresses) {
            let agreed = self.to.get(&(before.module, *a)) == Some(b) && self.from.get(&(now.module, *b)) == Some(a);
            if !agreed || !same_thing(old, *a, new, *b) {
                return Some((shown(old, *a), shown(new, *b)));
            }
        }
        None
    }
}

/// Whether the same lies at both addresses, but for what moves: pointers to other things, and line and column of the source
/// positions that panics carry.
fn same_thing(old: &Image, a: u64, new: &Image, b: u64) -> bool {
    let (before, now) = (old.at(a, LOOK), new.at(b, LOOK));
    if before == now {
        return true;
    }
    // Where a thing ends is not always known: a name after it may be gone.
    let length = before.len().min(now.len());
    let (before, now) = (&before[..length], &now[..length]);
    if before == now {
        return length > 0;
    }
    if !a.is_multiple_of(4) || !b.is_multiple_of(4) {
        return false;
    }
    let words = before.as_chunks::<4>().0.iter().zip(now.as_chunks::<4>().0);
    let mut since_pointer = usize::MAX;
    for (x, y) in words {
        let (x, y) = (u32::from_le_bytes(*x), u32::from_le_bytes(*y));
        let pointers = old.has(x.into()) && new.has(y.into());
        since_pointer = if pointers { 0 } else { since_pointer.saturating_add(1) };
        // file pointer, file length, line, column
        let position = matches!(since_pointer, 2 | 3) && x < 1 << 20 && y < 1 << 20;
        if x != y && !pointers && !position {
            return false;
        }
    }
    before[length / 4 * 4..] == now[length / 4 * 4..]
}

fn shown(image: &Image, address: u64) -> String {
    let bytes = image.at(address, 32);
    if bytes.is_empty() {
        return format!("zeros at {address:#x}");
    }
    format!("\"{}\" at {address:#x}", text::clean(&String::from_utf8_lossy(bytes), 80))
}

fn name(body: &Body) -> String {
    if body.name.is_empty() { body.place.clone() } else { body.name.clone() }
}

fn changed(old: &Body, new: &Body, words: &Words) -> Changed {
    let at = old.words.iter().zip(&new.words).take_while(|(a, b)| a == b).count();
    let word = |body: &Body| body.words.get(at).map_or("(the end)".to_owned(), |w| text::clean(words.text(*w), 120));
    let had: BTreeSet<u32> = old.words.iter().copied().collect();
    let fresh: BTreeSet<u32> = new.words.iter().copied().filter(|word| !had.contains(word)).collect();
    let that_begin = |begins: &[&str]| {
        let texts = fresh.iter().map(|word| words.text(*word));
        texts.filter(|text| begins.iter().any(|b| text.starts_with(b))).take(8).map(|t| text::clean(t, 120)).collect()
    };
    Changed {
        name: name(new),
        place: new.place.clone(),
        instructions: (old.words.len(), new.words.len()),
        first: (word(old), word(new)),
        constants: that_begin(&["const ", "I64Const", "F32Const", "F64Const", "V128Const"]),
        calls: that_begin(&["call ", "ref.func "]),
    }
}
