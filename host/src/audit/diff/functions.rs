//! Which functions are the same, which changed, which came and went.

use super::body::Body;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

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
    /// The first instructions that differ, before and now.
    pub first: (String, String),
    /// Constants that it did not have before.
    pub constants: Vec<String>,
    /// Calls that it did not make before.
    pub calls: Vec<String>,
}

/// Compares the functions of two versions: by name where they have names, else by body.
pub(super) fn compare(old: &[Body], new: &[Body]) -> FunctionDiff {
    let mut by_name: BTreeMap<&str, (Vec<&Body>, Vec<&Body>)> = BTreeMap::new();
    old.iter().for_each(|body| by_name.entry(&body.name).or_default().0.push(body));
    new.iter().for_each(|body| by_name.entry(&body.name).or_default().1.push(body));
    let mut diff = FunctionDiff { total: new.len(), ..FunctionDiff::default() };
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for (_, (mut before, mut now)) in by_name {
        diff.same += take_equal(&mut before, &mut now);
        let pairs = before.len().min(now.len());
        diff.changed.extend(before.iter().zip(&now).take(pairs).map(|(before, now)| changed(before, now)));
        gone.extend_from_slice(&before[pairs..]);
        come.extend_from_slice(&now[pairs..]);
    }
    // One that was only renamed is the same.
    diff.same += take_equal(&mut gone, &mut come);
    diff.removed = gone.iter().map(|body| name(body)).collect();
    diff.added = come.iter().map(|body| name(body)).collect();
    diff
}

/// Takes out what both have, and counts it.
fn take_equal<'a>(before: &mut Vec<&'a Body>, now: &mut Vec<&'a Body>) -> usize {
    let mut known: BTreeMap<&[String], Vec<usize>> = BTreeMap::new();
    for (at, body) in before.iter().enumerate().rev() {
        known.entry(&body.tokens).or_default().push(at);
    }
    let mut matched = BTreeSet::new();
    now.retain(|body| match known.get_mut(body.tokens.as_slice()).and_then(Vec::pop) {
        Some(at) => {
            matched.insert(at);
            false
        }
        None => true,
    });
    // What is left may differ in positions of the table only: it was sorted anew.
    now.retain(|body| {
        let found = before.iter().enumerate().find(|(at, other)| !matched.contains(at) && moved_pointers(other, body));
        match found.map(|(at, _)| at) {
            Some(at) => {
                matched.insert(at);
                false
            }
            None => true,
        }
    });
    let mut at = 0;
    before.retain(|_| {
        at += 1;
        !matched.contains(&(at - 1))
    });
    matched.len()
}

/// Whether two bodies differ in nothing but positions of the same functions in the table.
fn moved_pointers(old: &Body, new: &Body) -> bool {
    old.tokens.len() == new.tokens.len()
        && old.tokens.iter().zip(&new.tokens).enumerate().all(|(at, (a, b))| {
            a == b || matches!((old.pointers.get(&at), new.pointers.get(&at)), (Some(a), Some(b)) if a == b)
        })
}

fn name(body: &Body) -> String {
    if body.name.is_empty() { body.place.clone() } else { body.name.clone() }
}

fn changed(old: &Body, new: &Body) -> Changed {
    let at = old.tokens.iter().zip(&new.tokens).take_while(|(a, b)| a == b).count();
    let token =
        |body: &Body| body.tokens.get(at).map_or("(the end)".to_owned(), |token| crate::abi::text::clean(token, 120));
    let had: BTreeSet<&String> = old.tokens.iter().collect();
    let fresh = |begins: &[&str]| {
        let mut seen = BTreeSet::new();
        let fresh =
            new.tokens.iter().filter(|token| begins.iter().any(|b| token.starts_with(b)) && !had.contains(token));
        fresh.filter(|token| seen.insert(*token)).take(8).map(|token| crate::abi::text::clean(token, 120)).collect()
    };
    Changed {
        name: name(new),
        place: new.place.clone(),
        instructions: (old.tokens.len(), new.tokens.len()),
        first: (token(old), token(new)),
        constants: fresh(&["const ", "I64Const", "F32Const", "F64Const", "V128Const"]),
        calls: fresh(&["call ", "ref.func "]),
    }
}
