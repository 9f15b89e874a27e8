//! Which functions of two versions are the same one, so that a call of another function is seen whatever it is called.

use super::body::{Body, Side};
use super::functions::Moved;
use crate::base::text;
use std::collections::{BTreeSet, HashMap};

/// Module and index of a function.
pub(super) type Id = (usize, u32);

pub(super) fn id(body: &Body) -> Id {
    (body.module, body.index)
}

/// Which functions of the two versions are the same one: pairs by name or by body. A name alone says nothing about what is
/// called: two functions may have the same one, or none.
pub(super) struct Which<'a> {
    now: HashMap<Id, Id>,
    old: HashMap<Id, &'a Body>,
    new: HashMap<Id, &'a Body>,
    /// Number of each different body, so that bodies are compared once.
    kinds: HashMap<&'a [u32], usize>,
    asked: HashMap<(Id, Id), bool>,
    moved: &'a Moved,
    sides: (&'a Side, &'a Side),
}

/// How many functions are looked at to see that two others do the same.
const TWINS: usize = 256;

impl<'a> Which<'a> {
    pub(super) fn new(known: Vec<(Id, Id)>, moved: &'a Moved, old: &'a Side, new: &'a Side) -> Self {
        let mut kinds = HashMap::new();
        for body in old.bodies.iter().chain(&new.bodies) {
            let next = kinds.len();
            kinds.entry(body.words.as_slice()).or_insert(next);
        }
        let by_id = |side: &'a Side| side.bodies.iter().map(|body| (id(body), body)).collect();
        Self {
            now: known.into_iter().collect(),
            old: by_id(old),
            new: by_id(new),
            kinds,
            asked: HashMap::new(),
            moved,
            sides: (old, new),
        }
    }

    /// The first call that goes to another function than before, before and now, though its text is the same.
    pub(super) fn elsewhere(&mut self, before: &Body, now: &Body) -> Option<(String, String)> {
        let Some(mut pairs) = callees(before, now) else {
            // The text of a call of an import may be the name of a function.
            return Some(("calls of imports and functions".to_owned(), "the same texts, other calls".to_owned()));
        };
        pairs.extend(positions(before, now));
        let (a, b) = pairs.into_iter().find(|(a, b)| !self.same((before.module, *a), (now.module, *b)))?;
        let shown = |all: &HashMap<Id, &Body>, id: Id| {
            let body = all.get(&id);
            body.map_or("a call".to_owned(), |b| text::clean(&format!("call {} ({})", b.name, b.place), 200))
        };
        Some((shown(&self.old, (before.module, a)), shown(&self.new, (now.module, b))))
    }

    fn same(&mut self, before: Id, now: Id) -> bool {
        if let Some(known) = self.asked.get(&(before, now)) {
            return *known;
        }
        let same = self.twins(before, now);
        self.asked.insert((before, now), same);
        same
    }

    /// Whether they are a pair; or two of several functions with the same instructions, which call the same ones and point
    /// to the same data.
    fn twins(&self, before: Id, now: Id) -> bool {
        let mut open = vec![(before, now)];
        let mut seen = BTreeSet::new();
        while let Some((before, now)) = open.pop() {
            if self.now.get(&before) == Some(&now) || !seen.insert((before, now)) {
                continue;
            }
            let (Some(old), Some(new)) = (self.old.get(&before), self.new.get(&now)) else { return false };
            let kind = |body: &Body| self.kinds.get(body.words.as_slice());
            let alike = kind(old) == kind(new) && seen.len() <= TWINS;
            if !alike || self.moved.elsewhere(old, new, self.sides.0, self.sides.1).is_some() {
                return false;
            }
            let Some(callees) = callees(old, new) else { return false };
            open.extend(callees.into_iter().map(|(a, b)| ((old.module, a), (new.module, b))));
        }
        true
    }
}

/// Which function each call names, before and now. None: they do not call at the same places.
fn callees(before: &Body, now: &Body) -> Option<Vec<(u32, u32)>> {
    let both = || before.callees.iter().zip(&now.callees);
    let aligned = before.callees.len() == now.callees.len() && both().all(|((a, _), (b, _))| a == b);
    aligned.then(|| both().map(|((_, a), (_, b))| (*a, *b)).collect())
}

/// Functions behind constants that are others than before and were taken for positions in the table. A constant that did not
/// change may be a mere number.
fn positions(before: &Body, now: &Body) -> Vec<(u32, u32)> {
    let changed = before.pointers.iter().filter(|(at, ..)| before.words[*at] != now.words[*at]);
    let there =
        |at: usize| now.pointers.binary_search_by_key(&at, |(at, ..)| *at).ok().map(|found| now.pointers[found].2);
    changed.filter_map(|(at, _, a)| Some((*a, there(*at)?))).collect()
}
