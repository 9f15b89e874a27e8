//! Attention of tokens over the keys and values of their sequences, in f32.
//!
//! For each head: scores `dot(q, k[p]) * scale` ([`crate::dot::dot`]'s order), minus their maximum, `exp` by a
//! polynomial that is the same on all paths, their sum in sixteen lanes (position modulo 16, fixed tree), and
//! `out = sum of exp[p] * v[p]` in the order of the positions by fused multiply-add, divided by the sum at the end.
//! The same bits on every [`Isa`], and whichever heads are computed together: query heads that share keys go through
//! them side by side, a block of positions at a time, so that the block stays in the nearest cache.

use crate::dot::{dot_lanes, dot_lanes_4};
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch, pad_f32};
use crate::team::{Disjoint, Team};
use std::cell::RefCell;
use std::ops::Range;

/// Heads and their size. Query head h reads key/value head `h / (heads / kv_heads)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of a query or key head.
    pub head_dim: usize,
    /// Values of a value head, and of a head of the output.
    pub value_dim: usize,
    /// Distance from one position to the next among the values; at least `kv_heads * value_dim`.
    pub value_stride: usize,
}

impl AttentionShape {
    /// Keys and values of one width, side by side in memory of their own.
    pub fn grouped(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { heads, kv_heads, head_dim, value_dim: head_dim, value_stride: kv_heads * head_dim }
    }

    /// One key for all heads, whose first `value_dim` values are also the value (absorbed latent attention): give the
    /// keys as the values, too.
    pub fn shared(heads: usize, head_dim: usize, value_dim: usize) -> Self {
        Self { heads, kv_heads: 1, head_dim, value_dim, value_stride: head_dim }
    }

    /// Query heads of a key head.
    fn share(&self) -> usize {
        let Self { heads, kv_heads, .. } = *self;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "query heads share key heads evenly");
        assert!(self.value_stride >= kv_heads * self.value_dim, "positions of the values lie apart");
        heads / kv_heads
    }
}

/// Most query heads that go through the keys side by side.
const ABREAST: usize = 8;
/// Values of a block of positions, about: half of the nearest cache.
const BLOCK: usize = 5 * 1024;

thread_local! {
    /// Scores of the heads that are computed together; kept, so that a token does not allocate.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What one token attends to.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// `[at least len, kv_heads, head_dim]`, contiguous.
    pub keys: &'a [f32],
    /// `[at least len, kv_heads, value_dim]`, positions `value_stride` apart. May be the memory of the keys.
    pub values: &'a [f32],
    /// The first position that takes part (above 0: a sliding window).
    pub first: usize,
    /// One behind the last position.
    pub len: usize,
}

/// Attention of many tokens, shared out over the team. Row i of `q` begins at `i * ldq` and has `heads * head_dim` values;
/// `out` is contiguous, as many rows of `heads * value_dim` values. `context` tells what row i attends to; `scale`
/// multiplies the scores, usually `1 / sqrt(head_dim)`. Where no position takes part, the output is zero. Uses
/// [`Isa::detect`].
///
/// # Panics
/// If a slice does not fit the shape, or `heads` is no multiple of `kv_heads`.
pub fn attend_rows<'a>(
    team: &Team,
    shape: &AttentionShape,
    q: &[f32],
    ldq: usize,
    context: &(dyn Fn(usize) -> Context<'a> + Sync),
    scale: f32,
    out: &mut [f32],
) {
    let AttentionShape { heads, head_dim, value_dim, .. } = *shape;
    let share = shape.share();
    let q_width = heads.checked_mul(head_dim).expect("a row of queries fits into memory");
    let width = heads.checked_mul(value_dim).expect("a row of outputs fits into memory");
    if width == 0 || out.is_empty() {
        return;
    }
    let rows = out.len() / width;
    assert!(out.len().is_multiple_of(width) && ldq >= q_width, "whole rows");
    assert!(q.len() >= (rows - 1) * ldq + q_width, "a row of q for each of out");
    let out = Disjoint::new(out);
    // Short contexts go several heads to a task: each has to be worth some microseconds.
    let work = head_dim.max(value_dim) * (0..rows).map(|i| context(i).len).max().unwrap_or(0);
    let least = ((1 << 14) / work.max(1)).clamp(1, heads);
    // Where that leaves tasks enough for every thread, heads that share keys stay together.
    let mut together = (rows * heads / (4 * team.threads())).clamp(least, heads);
    if together > share {
        together -= together % share;
    }
    let tasks = heads.div_ceil(together);
    team.run(rows * tasks, &|task| {
        let (row, first) = (task / tasks, task % tasks * together);
        let run = first..(first + together).min(heads);
        // SAFETY: each head of each row has outputs of its own.
        let out = unsafe { out.part(row * width + first * value_dim, run.len() * value_dim) };
        let q = &q[row * ldq + first * head_dim..][..run.len() * head_dim];
        some_heads(Isa::detect(), shape, share, run, q, &context(row), scale, out);
    });
}

/// [`attend_rows`] of one token, on this thread, with the instructions of `isa`. `q` has `heads * head_dim` values, `out`
/// has `heads * value_dim`.
///
/// # Panics
/// As [`attend_rows`].
pub fn attend_with(
    isa: Isa,
    shape: &AttentionShape,
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    first: usize,
    len: usize,
    scale: f32,
    out: &mut [f32],
) {
    let AttentionShape { heads, head_dim, value_dim, .. } = *shape;
    let share = shape.share();
    assert!(q.len() == heads * head_dim, "q has heads * head_dim values");
    assert!(out.len() == heads * value_dim, "out has heads * value_dim values");
    some_heads(isa, shape, share, 0..heads, q, &Context { keys, values, first, len }, scale, out);
}

/// A run of query heads, whose `q` and `out` are given.
fn some_heads(
    isa: Isa,
    shape: &AttentionShape,
    share: usize,
    run: Range<usize>,
    q: &[f32],
    context: &Context<'_>,
    scale: f32,
    out: &mut [f32],
) {
    let mut h = run.start;
    while h < run.end {
        // As many as share a key head.
        let end = run.end.min((h / share + 1) * share).min(h + ABREAST);
        let at = |dim: usize| (h - run.start) * dim..(end - run.start) * dim;
        let (q, out) = (&q[at(shape.head_dim)], &mut out[at(shape.value_dim)]);
        abreast(isa, shape, h / share, q, context, scale, out);
        h = end;
    }
}

/// Query heads of one key head.
fn abreast(
    isa: Isa,
    shape: &AttentionShape,
    kv_head: usize,
    q: &[f32],
    context: &Context<'_>,
    scale: f32,
    out: &mut [f32],
) {
    let Context { keys, values, first, len } = *context;
    let AttentionShape { kv_heads, head_dim, value_dim, value_stride, .. } = *shape;
    if first >= len || head_dim == 0 || value_dim == 0 {
        out.fill(0.0);
        return;
    }
    let key_stride = kv_heads * head_dim;
    let (last_key, last_value) = (len * key_stride, (len - 1) * value_stride + kv_heads * value_dim);
    assert!(keys.len() >= last_key && values.len() >= last_value, "keys and values hold len positions");
    let keys = &keys[kv_head * head_dim + first * key_stride..last_key];
    let values = &values[kv_head * value_dim + first * value_stride..last_value];
    let count = len - first;
    SCORES.with_borrow_mut(|scores| {
        let needed = q.len() / head_dim * count.next_multiple_of(16);
        if scores.len() < needed {
            scores.resize(needed, 0.0);
        }
        let scores = &mut scores[..needed];
        dispatch(
            isa,
            Heads { q, keys, key_stride, head_dim, values, value_stride, value_dim, count, scale, scores, out },
        );
    });
}

/// Some query heads of one key head.
struct Heads<'a> {
    q: &'a [f32],
    /// From the first value of the first position on; the next position is a stride further.
    keys: &'a [f32],
    key_stride: usize,
    head_dim: usize,
    values: &'a [f32],
    value_stride: usize,
    value_dim: usize,
    count: usize,
    scale: f32,
    /// Scratch: for each head `count`, rounded up to a multiple of 16.
    scores: &'a mut [f32],
    out: &'a mut [f32],
}

impl Kernel for Heads<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Heads { q, keys, key_stride, head_dim, values, value_stride, value_dim, count, scale, scores, out } = self;
        let (alone, padded) = (q.len() == head_dim, count.next_multiple_of(16));
        // A multiple of 4, so that only the end of the positions is left over.
        let block = |dim: usize| if alone { count } else { (BLOCK / dim).max(4) / 4 * 4 };
        let step = block(head_dim);
        for first in (0..count).step_by(step) {
            let (keys, last) = (&keys[first * key_stride..], (first + step).min(count));
            for (q, scores) in q.chunks_exact(head_dim).zip(scores.chunks_exact_mut(padded)) {
                score(s, q, keys, key_stride, scale, &mut scores[first..last]);
            }
        }
        let mut sums = [0.0; ABREAST];
        for (scores, sum) in scores.chunks_exact_mut(padded).zip(&mut sums) {
            *sum = weights(s, scores, count);
        }
        out.fill(0.0);
        let step = block(value_dim);
        for first in (0..count).step_by(step) {
            let (values, last) = (&values[first * value_stride..], (first + step).min(count));
            for (out, scores) in out.chunks_exact_mut(value_dim).zip(scores.chunks_exact(padded)) {
                weigh(s, &scores[first..last], values, value_stride, out);
            }
        }
        for (out, sum) in out.chunks_exact_mut(value_dim).zip(sums) {
            let sum = s.splat(sum);
            let (out16, tail) = out.as_chunks_mut::<16>();
            for out in out16 {
                s.store(s.div(s.load(out), sum), out);
            }
            if !tail.is_empty() {
                let mut lanes = pad_f32(tail);
                s.store(s.div(s.load(&lanes), sum), &mut lanes);
                tail.copy_from_slice(&lanes[..tail.len()]);
            }
        }
    }
}

/// Scores of some positions.
#[inline(always)]
fn score<S: Simd>(s: S, q: &[f32], keys: &[f32], stride: usize, scale: f32, scores: &mut [f32]) {
    let dim = q.len();
    let (fours, rest) = scores.as_chunks_mut::<4>();
    for (i, four) in fours.iter_mut().enumerate() {
        let from = 4 * i * stride;
        let keys = [0, 1, 2, 3].map(|p| &keys[from + p * stride..][..dim]);
        *four = dot_lanes_4(s, q, keys).map(|dot| dot * scale);
    }
    let from = 4 * fours.len();
    for (i, score) in rest.iter_mut().enumerate() {
        *score = dot_lanes(s, q, &keys[(from + i) * stride..][..dim]) * scale;
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

/// Adds the weighted values of some positions.
#[inline(always)]
fn weigh<S: Simd>(s: S, weights: &[f32], values: &[f32], stride: usize, out: &mut [f32]) {
    let (out16, out_tail) = out.as_chunks_mut::<16>();
    // Four vectors of a head at once, so that the fused multiply-adds of one do not wait for each other.
    let (out64, out16) = out16.as_chunks_mut::<4>();
    let mut column = 0;
    for out in out64 {
        let mut acc = [s.load(&out[0]), s.load(&out[1]), s.load(&out[2]), s.load(&out[3])];
        for (p, weight) in weights.iter().enumerate() {
            let weight = s.splat(*weight);
            let v = &values[p * stride + column..][..64].as_chunks::<16>().0;
            for i in 0..4 {
                acc[i] = s.fma(weight, s.load(&v[i]), acc[i]);
            }
        }
        for i in 0..4 {
            s.store(acc[i], &mut out[i]);
        }
        column += 64;
    }
    for out in out16 {
        let mut acc = s.load(out);
        for (p, weight) in weights.iter().enumerate() {
            let v = &values[p * stride + column..][..16].as_chunks::<16>().0;
            acc = s.fma(s.splat(*weight), s.load(&v[0]), acc);
        }
        s.store(acc, out);
        column += 16;
    }
    if !out_tail.is_empty() {
        let mut lanes = pad_f32(out_tail);
        let mut acc = s.load(&lanes);
        for (p, weight) in weights.iter().enumerate() {
            let v = &values[p * stride + column..][..out_tail.len()];
            acc = s.fma(s.splat(*weight), s.load(&pad_f32(v)), acc);
        }
        s.store(acc, &mut lanes);
        out_tail.copy_from_slice(&lanes[..out_tail.len()]);
    }
}
