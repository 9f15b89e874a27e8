//! The sets of patches that a run had, and where their marks and labels stand.

use crate::train::metrics::Point;

/// The width of a chart on a narrow screen, in digits. Labels that would touch there become one.
const NARROW: f64 = 30.0;
/// What a label takes beside its digits.
const EDGES: f64 = 2.0;
/// What a label with a digest takes of the width.
const ROOM: f64 = 0.22;

/// The first digits of a digest.
pub(crate) fn short(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

/// One set of patches, and the steps that it made weights for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Set<'p> {
    /// From 1, in the order of the run. A set that comes back has another number.
    pub(super) number: usize,
    /// Digest of the set; none where an older checkpoint did not keep it.
    pub(super) digest: Option<&'p str>,
    /// Names of its patches, where they are known.
    pub(super) patches: &'p [String],
    /// Its steps.
    pub(super) points: &'p [Point],
}

impl Set<'_> {
    /// Its first step.
    pub(super) fn from(&self) -> u64 {
        self.points.first().map_or(0, |p| p.step)
    }

    /// The first digits of its digest.
    pub(super) fn short(&self) -> &str {
        self.digest.map_or("not kept", short)
    }
}

/// The sets in the order of the run: the first one, and one for each swap.
pub(super) fn sets(points: &[Point]) -> Vec<Set<'_>> {
    let swaps = points.iter().enumerate().skip(1).filter(|(_, p)| p.swap.is_some()).map(|(i, _)| i);
    let starts: Vec<usize> = std::iter::once(0).chain(swaps).filter(|i| *i < points.len()).collect();
    let ends = starts.iter().skip(1).copied().chain([points.len()]);
    let mut out = Vec::with_capacity(starts.len());
    for (i, (start, end)) in starts.iter().zip(ends).enumerate() {
        let own = points.get(*start..end).unwrap_or_default();
        let first = own.first();
        let to = first.and_then(|p| p.swap.as_ref()).map(|swap| swap.to.as_str());
        // What the first set was is also said by the swap that ended it.
        let ended = points.get(end).and_then(|p| p.swap.as_ref()).map(|swap| swap.from.as_str());
        let digest = to.or_else(|| first?.patch_set.as_deref()).or(ended);
        out.push(Set { number: i + 1, digest, patches: first.map_or(&[], |p| p.patches.as_slice()), points: own });
    }
    out
}

/// Which side of its mark a digest stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// What is written above a mark, or above several that are close together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Label<'s> {
    /// Where the first of its marks is: 0 at the left end, 1 at the right one.
    pub(super) at: f64,
    /// Numbers of the sets: `2`, or `2–9`.
    pub(super) numbers: String,
    /// The short digest, where there is room for it.
    pub(super) digest: Option<(Side, &'s str)>,
}

/// Labels that do not touch one another. `at` says where a step is.
pub(super) fn labels<'s>(sets: &'s [Set<'_>], at: &dyn Fn(u64) -> f64) -> Vec<Label<'s>> {
    if sets.len() < 2 {
        return Vec::new();
    }
    let digits = sets.len().to_string().len() as f64;
    let (one, several) = ((digits + EDGES) / NARROW, (2.0 * digits + 1.0 + EDGES) / NARROW);
    let mut clusters: Vec<(f64, Vec<&Set<'_>>)> = Vec::new();
    for set in sets {
        let place = at(set.from());
        let width = |members: &Vec<&Set<'_>>| if members.len() > 1 { several } else { one };
        match clusters.last_mut().filter(|(first, members)| place - *first < width(members)) {
            Some((_, members)) => members.push(set),
            None => clusters.push((place, vec![set])),
        }
    }
    let places: Vec<f64> = clusters.iter().map(|(at, _)| *at).collect();
    let mut taken = 0.0;
    let label = |(i, (at, members)): (usize, (f64, Vec<&'s Set<'_>>))| {
        let (first, last) = (members.first()?, members.last()?);
        let next = places.get(i + 1).copied().unwrap_or(f64::INFINITY);
        let side = match members.len() {
            1 if at + ROOM <= next.min(1.05) => Some(Side::Right),
            1 if at - ROOM >= taken => Some(Side::Left),
            _ => None,
        };
        taken = at + if side == Some(Side::Right) { ROOM } else { one };
        let numbers = match first.number == last.number {
            true => first.number.to_string(),
            false => format!("{}–{}", first.number, last.number),
        };
        Some(Label { at, numbers, digest: side.map(|side| (side, first.short())) })
    };
    clusters.into_iter().enumerate().filter_map(label).collect()
}
