//! Queries that share a key head, in tiles of registers: each vector of keys or values that is loaded serves several
//! queries.
//!
//! A score is [`crate::dot::dot`] bit for bit, though the sixteen lanes are positions here. A lane of `dot` is a chain of
//! fused multiply-adds over the dimensions `l, l + 16, ...`; its tree is fifteen additions of such chains. The chains are
//! made in the order in which the tree needs them, so that never more than four sums wait.

// Registers have two numbers, and both say which one is meant; iterators would hide that.
#![allow(clippy::needless_range_loop)]

use super::QUERIES;
use super::layout::{BLOCK, Keys, Values};
use crate::dot::{dot_lanes, dot_lanes_4};
use crate::simd::{Kernel, Simd, pad_f32};
use std::ops::Range;

/// Floats of keys or values that stay in the nearest cache while all queries pass: half of it.
const NEAR: usize = 4 * 1024;

/// One head of one row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Query<'a> {
    pub(super) q: &'a [f32],
    /// The positions that take part are `first..len`: at least one.
    pub(super) first: usize,
    pub(super) len: usize,
}

/// Some queries of one key head.
pub(super) struct Tiles<'a> {
    /// At most [`QUERIES`].
    pub(super) queries: &'a [Query<'a>],
    pub(super) keys: Keys<'a>,
    pub(super) values: Values<'a>,
    pub(super) scale: f32,
    /// The blocks of positions that take part: of all queries together.
    pub(super) from: usize,
    pub(super) to: usize,
    /// Scratch: a key's numbers for each query.
    pub(super) packed: &'a mut [f32],
    /// Scratch: [`score_stride`] for each query.
    pub(super) scores: &'a mut [f32],
    /// [`out_stride`] for each query.
    pub(super) out: &'a mut [f32],
}

/// Floats of a query's scores: those of its blocks, and one block behind them for padding.
pub(super) fn score_stride(blocks: usize) -> usize {
    (blocks + 1) * BLOCK
}

/// Floats of a query's output.
pub(super) fn out_stride(value_dim: usize) -> usize {
    value_dim.next_multiple_of(16)
}

impl Kernel for Tiles<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tiles { queries, keys, values, scale, from, to, packed, scores, out } = self;
        let stride = score_stride(to - from);
        if keys.blocked {
            pack(queries, keys.dim, packed);
        }
        let step = (NEAR / (BLOCK * keys.dim)).max(1);
        for first in (from..to).step_by(step) {
            let span = Span { first, last: (first + step).min(to), from, stride, streams: queries.len() <= 4 };
            let mut at = 0;
            while at < queries.len() {
                let queries = tile(&queries[at..]);
                let (packed, scores) = (&packed[at * keys.dim..], &mut scores[at * stride..]);
                match (keys.blocked, queries.len()) {
                    (false, _) => by_position(s, queries, &keys, scale, span, scores),
                    (true, 4) => blocks::<S, 4, 1>(s, queries, packed, &keys, scale, span, scores),
                    (true, 2) => blocks::<S, 2, 2>(s, queries, packed, &keys, scale, span, scores),
                    (true, _) => blocks::<S, 1, 2>(s, queries, packed, &keys, scale, span, scores),
                }
                at += queries.len();
            }
        }
        let mut sums = [0.0; QUERIES];
        for ((query, scores), sum) in queries.iter().zip(scores.chunks_exact_mut(stride)).zip(&mut sums) {
            let count = query.len - query.first;
            let scores = &mut scores[query.first - from * BLOCK..][..count.next_multiple_of(16)];
            *sum = weights(s, scores, count);
        }
        out.fill(0.0);
        let width = out_stride(values.dim);
        let step = (NEAR / (BLOCK * values.dim)).max(1);
        for first in (from..to).step_by(step) {
            let span = Span { first, last: (first + step).min(to), from, stride, streams: queries.len() <= 4 };
            let mut at = 0;
            while at < queries.len() {
                let queries = tile(&queries[at..]);
                let (scores, out) = (&scores[at * stride..], &mut out[at * width..]);
                match queries.len() {
                    4 => weigh::<S, 4, 1>(s, queries, &values, span, scores, out),
                    2 => weigh::<S, 2, 2>(s, queries, &values, span, scores, out),
                    _ => weigh::<S, 1, 4>(s, queries, &values, span, scores, out),
                }
                at += queries.len();
            }
        }
        for (out, sum) in out.chunks_exact_mut(width).zip(sums) {
            let sum = s.splat(sum);
            for out in out.as_chunks_mut::<16>().0 {
                s.store(s.div(s.load(out), sum), out);
            }
        }
    }
}

/// Blocks that are at hand.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    last: usize,
    /// The block whose scores come first.
    from: usize,
    /// From the scores of a query to those of the next.
    stride: usize,
    /// Whether keys pass once only: then they come from afar.
    streams: bool,
}

/// The numbers of each tile's queries, dimension by dimension, so that a tile needs one pointer only.
#[inline(always)]
fn pack(queries: &[Query<'_>], dim: usize, packed: &mut [f32]) {
    let mut at = 0;
    while at < queries.len() {
        let tile = tile(&queries[at..]);
        let packed = &mut packed[at * dim..][..tile.len() * dim];
        match *tile {
            [a, b, c, d] => {
                let q = a.q.iter().zip(b.q).zip(c.q.iter().zip(d.q));
                for (to, ((a, b), (c, d))) in packed.as_chunks_mut::<4>().0.iter_mut().zip(q) {
                    *to = [*a, *b, *c, *d];
                }
            }
            [a, b] => {
                for (to, (a, b)) in packed.as_chunks_mut::<2>().0.iter_mut().zip(a.q.iter().zip(b.q)) {
                    *to = [*a, *b];
                }
            }
            _ => packed.copy_from_slice(tile[0].q),
        }
        at += tile.len();
    }
}

/// The first 4, 2 or 1 queries.
#[inline(always)]
fn tile<'a, 'b>(queries: &'b [Query<'a>]) -> &'b [Query<'a>] {
    match queries.len() {
        4.. => &queries[..4],
        2.. => &queries[..2],
        _ => queries,
    }
}

/// The chunk of 16 from `at` on.
#[inline(always)]
fn chunk(x: &[f32], at: usize) -> &[f32; 16] {
    x[at..].first_chunk().expect("sixteen lanes")
}

/// Scores of `R` queries, `B` blocks at a time. What lies before or behind the positions of a query within a block is
/// computed along, and never read.
#[inline(always)]
fn blocks<S: Simd, const R: usize, const B: usize>(
    s: S,
    queries: &[Query<'_>],
    packed: &[f32],
    keys: &Keys<'_>,
    scale: f32,
    span: Span,
    scores: &mut [f32],
) {
    let q = &packed.as_chunks::<R>().0[..keys.dim];
    let mut block = queries.iter().fold(usize::MAX, |least, q| least.min(q.first / BLOCK)).max(span.first);
    let last = queries.iter().fold(0, |most, q| most.max(q.len.div_ceil(BLOCK))).min(span.last);
    while block + B <= last {
        some::<S, R, B>(s, q, keys, scale, span, block, scores);
        block += B;
    }
    while block < last {
        some::<S, R, 1>(s, q, keys, scale, span, block, scores);
        block += 1;
    }
}

/// Scores of `R` queries with `B` blocks.
#[inline(always)]
fn some<S: Simd, const R: usize, const B: usize>(
    s: S,
    q: &[[f32; R]],
    keys: &Keys<'_>,
    scale: f32,
    span: Span,
    block: usize,
    scores: &mut [f32],
) {
    let k: [&[[f32; 16]]; B] = std::array::from_fn(|b| keys.block(block + b));
    let chains = Chains {
        q: q.as_chunks::<16>().0,
        q_tail: q.as_chunks::<16>().1,
        k: k.map(|k| k.as_chunks::<16>().0),
        k_tail: k.map(|k| k.as_chunks::<16>().1),
        ahead: if span.streams { B * keys.stride } else { 0 },
    };
    let sums = chains.tree(s);
    let scale = s.splat(scale);
    for r in 0..R {
        for b in 0..B {
            let at = r * span.stride + (block + b - span.from) * BLOCK;
            let out = scores[at..].first_chunk_mut().expect("sixteen lanes");
            s.store(s.mul(sums[r][b], scale), out);
        }
    }
}

/// The order in which the tree over the lanes (`l + (l+8)`, then +4, +2, +1) needs them.
const ORDER: [usize; 16] = [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];

/// `R` queries and `B` blocks of keys, by sixteen dimensions.
struct Chains<'a, const R: usize, const B: usize> {
    q: &'a [[[f32; R]; 16]],
    q_tail: &'a [[f32; R]],
    k: [&'a [[[f32; 16]; 16]]; B],
    k_tail: [&'a [[f32; 16]]; B],
    /// Floats from these blocks to the next ones, which are asked for meanwhile; 0: they are near.
    ahead: usize,
}

impl<const R: usize, const B: usize> Chains<'_, R, B> {
    /// Lane `l` of [`crate::dot::dot`].
    #[inline(always)]
    fn lane<S: Simd>(&self, s: S, l: usize) -> [[S::F; B]; R] {
        let mut acc = [[s.splat(0.0); B]; R];
        let (l, steps) = (l % 16, self.q.len());
        let (q, k) = (self.q, self.k.map(|k| &k[..steps]));
        for i in 0..steps {
            let mut lanes = [s.splat(0.0); B];
            for b in 0..B {
                let k = &k[b][i][l];
                lanes[b] = s.load(k);
                if self.ahead > 0 {
                    s.prefetch(k.as_ptr().wrapping_add(self.ahead));
                }
            }
            for r in 0..R {
                let q = s.splat(q[i][l][r]);
                for b in 0..B {
                    acc[r][b] = s.fma(q, lanes[b], acc[r][b]);
                }
            }
        }
        let tail = self.q_tail.len();
        if l < tail {
            for r in 0..R {
                let q = s.splat(self.q_tail[l][r]);
                for b in 0..B {
                    acc[r][b] = s.fma(q, s.load(&self.k_tail[b][l]), acc[r][b]);
                }
            }
        } else if tail > 0 {
            // `dot` pads with zeros: their product is +0.0, which turns -0.0 into +0.0.
            for acc in acc.as_flattened_mut() {
                *acc = s.add(*acc, s.splat(0.0));
            }
        }
        acc
    }

    /// The tree over all lanes: a sum of as many lanes as another one that waits goes with it.
    #[inline(always)]
    fn tree<S: Simd>(&self, s: S) -> [[S::F; B]; R] {
        let mut waiting = [[[s.splat(0.0); B]; R]; 4];
        let mut sum = waiting[0];
        for (n, l) in ORDER.into_iter().enumerate() {
            sum = self.lane(s, l);
            let done = n.trailing_ones() as usize;
            for other in &waiting[..done] {
                for r in 0..R {
                    for b in 0..B {
                        sum[r][b] = s.add(other[r][b], sum[r][b]);
                    }
                }
            }
            if let Some(place) = waiting.get_mut(done) {
                *place = sum;
            }
        }
        sum
    }
}

/// Scores of some queries with keys that lie by position.
#[inline(always)]
fn by_position<S: Simd>(s: S, queries: &[Query<'_>], keys: &Keys<'_>, scale: f32, span: Span, scores: &mut [f32]) {
    for (query, scores) in queries.iter().zip(scores.chunks_mut(span.stride)) {
        let first = query.first.max(span.first * BLOCK);
        let last = query.len.min(span.last * BLOCK);
        let Some(scores) = scores.get_mut(first - span.from * BLOCK..last.max(first) - span.from * BLOCK) else {
            continue;
        };
        let (fours, rest) = scores.as_chunks_mut::<4>();
        let ones = first + 4 * fours.len();
        for (p, four) in (first..).step_by(4).zip(fours) {
            *four = dot_lanes_4(s, query.q, [0, 1, 2, 3].map(|i| keys.position(p + i))).map(|dot| dot * scale);
        }
        for (p, score) in (ones..).zip(rest) {
            *score = dot_lanes(s, query.q, keys.position(p)) * scale;
        }
    }
}

/// Turns the first `count` scores into weights, the padding into zeros; gives the sum.
#[inline(always)]
fn weights<S: Simd>(s: S, scores: &mut [f32], count: usize) -> f32 {
    // The padding becomes exp(-inf) = 0 and adds nothing.
    scores[count..].fill(f32::NEG_INFINITY);
    let mut max = s.splat(f32::NEG_INFINITY);
    for chunk in scores.as_chunks::<16>().0 {
        // NaN does not win here; it comes through in exp.
        max = s.at_least(s.load(chunk), max);
    }
    let mut lanes = [0.0; 16];
    s.store(max, &mut lanes);
    let minus_max = s.splat(-lanes.into_iter().fold(f32::NEG_INFINITY, f32::max));
    let mut sum = s.splat(0.0);
    for chunk in scores.as_chunks_mut::<16>().0 {
        let e = s.exp(s.add(s.load(chunk), minus_max));
        sum = s.add(sum, e);
        s.store(e, chunk);
    }
    s.sum(sum)
}

/// Adds the weighted values of a span of blocks to the outputs of `R` queries, each from its first to its last position.
/// The positions that all have are added for all at once; a value that a query does not attend to never meets its sum.
#[inline(always)]
fn weigh<S: Simd, const R: usize, const C: usize>(
    s: S,
    queries: &[Query<'_>],
    values: &Values<'_>,
    span: Span,
    weights: &[f32],
    out: &mut [f32],
) {
    let (from, to) = (span.first * BLOCK, span.last * BLOCK);
    let start = queries.iter().fold(from, |most, q| most.max(q.first)).min(to);
    let end = queries.iter().fold(to, |least, q| least.min(q.len)).max(start);
    if R > 1 && start < end {
        alone(s, queries, values, from..start, span, weights, out);
        columns::<S, R, C>(s, values, start..end, span, weights, out);
        alone(s, queries, values, end..to, span, weights, out);
    } else {
        alone(s, queries, values, from..to, span, weights, out);
    }
}

/// The same for each query alone.
#[inline(always)]
fn alone<S: Simd>(
    s: S,
    queries: &[Query<'_>],
    values: &Values<'_>,
    part: Range<usize>,
    span: Span,
    weights: &[f32],
    out: &mut [f32],
) {
    let width = out_stride(values.dim);
    for ((query, weights), out) in queries.iter().zip(weights.chunks(span.stride)).zip(out.chunks_exact_mut(width)) {
        let part = part.start.max(query.first)..part.end.min(query.len);
        if !part.is_empty() {
            columns::<S, 1, 4>(s, values, part, span, weights, out);
        }
    }
}

/// All columns of the values at some positions, `C` vectors at a time.
#[inline(always)]
fn columns<S: Simd, const R: usize, const C: usize>(
    s: S,
    values: &Values<'_>,
    positions: Range<usize>,
    span: Span,
    weights: &[f32],
    out: &mut [f32],
) {
    let (full, mut at) = (values.dim / 16 * 16, 0);
    while at + 16 * C <= full {
        rank::<S, R, C, false>(s, values, positions.clone(), span, weights, at, out);
        at += 16 * C;
    }
    while at < full {
        rank::<S, R, 1, false>(s, values, positions.clone(), span, weights, at, out);
        at += 16;
    }
    if at < values.dim {
        rank::<S, R, 1, true>(s, values, positions, span, weights, at, out);
    }
}

/// `C` vectors of columns from `column` on; the last one of a head if it is a `TAIL`.
#[inline(always)]
fn rank<S: Simd, const R: usize, const C: usize, const TAIL: bool>(
    s: S,
    values: &Values<'_>,
    positions: Range<usize>,
    span: Span,
    weights: &[f32],
    column: usize,
    out: &mut [f32],
) {
    let width = out_stride(values.dim);
    let mut acc = [[s.splat(0.0); C]; R];
    for r in 0..R {
        for c in 0..C {
            acc[r][c] = s.load(chunk(out, r * width + column + 16 * c));
        }
    }
    let mut p = positions.start;
    while p < positions.end {
        let end = positions.end.min((p / BLOCK + 1) * BLOCK);
        let rows = values.rows(p, end, column);
        let mut w = [&[][..]; R];
        for r in 0..R {
            w[r] = &weights[r * span.stride + p - span.from * BLOCK..][..end - p];
        }
        for i in 0..end - p {
            let row = &rows[i * values.stride..];
            let mut v = [s.splat(0.0); C];
            if TAIL {
                v[0] = s.load(&pad_f32(&row[..values.dim - column]));
            } else {
                let row = row[..16 * C].as_chunks::<16>().0;
                for c in 0..C {
                    v[c] = s.load(&row[c]);
                }
            }
            for r in 0..R {
                let weight = s.splat(w[r][i]);
                for c in 0..C {
                    acc[r][c] = s.fma(weight, v[c], acc[r][c]);
                }
            }
        }
        p = end;
    }
    for r in 0..R {
        for c in 0..C {
            let at = r * width + column + 16 * c;
            s.store(acc[r][c], out[at..].first_chunk_mut().expect("sixteen lanes"));
        }
    }
}
