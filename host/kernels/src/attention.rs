//! Attention of tokens over the keys and values of their sequences, in f32.
//!
//! For each head: scores `dot(q, k[p]) * scale` ([`crate::linear::dot`]'s order), minus their maximum, `exp` by a
//! polynomial that is the same on all paths, their sum in sixteen lanes (position modulo 16, fixed tree), and
//! `out = sum of exp[p] * v[p]` in the order of the positions by fused multiply-add, divided by the sum at the end.
//! The same bits on every [`Isa`].

use crate::isa::Isa;
use crate::linear::{dot_lanes, dot_lanes_4};
use crate::simd::{Kernel, Simd, dispatch, pad_f32};
use crate::team::{Disjoint, Team};
use std::cell::RefCell;

/// Heads and their size. Query head h reads key/value head `h / (heads / kv_heads)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
}

thread_local! {
    /// Scores of one head; kept, so that a token does not allocate.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What one token attends to.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// `[at least len, kv_heads, head_dim]`, contiguous.
    pub keys: &'a [f32],
    /// As `keys`.
    pub values: &'a [f32],
    /// The first position that takes part (above 0: a sliding window).
    pub first: usize,
    /// One behind the last position.
    pub len: usize,
}

/// Attention of many tokens, shared out over the team. Row i of `q` begins at `i * ldq` and has `heads * head_dim` values;
/// `out` is contiguous, as many rows of that many values. `context` tells what row i attends to; `scale` multiplies the
/// scores, usually `1 / sqrt(head_dim)`. Where no position takes part, the output is zero. Uses [`Isa::detect`].
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
    let AttentionShape { heads, kv_heads, head_dim } = *shape;
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "query heads share key heads evenly");
    let width = heads.checked_mul(head_dim).expect("a row of queries fits into memory");
    let part = heads / kv_heads * head_dim;
    if width == 0 || out.is_empty() {
        return;
    }
    let rows = out.len() / width;
    assert!(out.len().is_multiple_of(width) && ldq >= width, "whole rows");
    assert!(q.len() >= (rows - 1) * ldq + width, "a row of q for each of out");
    let out = Disjoint::new(out);
    // Short contexts go several key heads to a task: each has to be worth some microseconds.
    let work = part * (0..rows).map(|i| context(i).len).max().unwrap_or(0);
    let together = ((1 << 14) / work.max(1)).clamp(1, kv_heads);
    let tasks = kv_heads.div_ceil(together);
    team.run(rows * tasks, &|task| {
        let (row, first) = (task / tasks, task % tasks * together);
        for h in first..(first + together).min(kv_heads) {
            // SAFETY: each key head of each row has outputs of its own.
            let out = unsafe { out.part(row * width + h * part, part) };
            group(Isa::detect(), shape, h, &q[row * ldq + h * part..][..part], &context(row), scale, out);
        }
    });
}

/// [`attend_rows`] of one token, on this thread, with the instructions of `isa`. `q` and `out` have `heads * head_dim`
/// values.
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
    let AttentionShape { heads, kv_heads, head_dim } = *shape;
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "query heads share key heads evenly");
    assert!(q.len() == heads * head_dim && out.len() == q.len(), "q and out have heads * head_dim values");
    let part = heads / kv_heads * head_dim;
    let context = Context { keys, values, first, len };
    for (h, (q, out)) in q.chunks(part.max(1)).zip(out.chunks_mut(part.max(1))).enumerate() {
        group(isa, shape, h, q, &context, scale, out);
    }
}

/// The query heads of one key head.
fn group(
    isa: Isa,
    shape: &AttentionShape,
    kv_head: usize,
    q: &[f32],
    context: &Context<'_>,
    scale: f32,
    out: &mut [f32],
) {
    let Context { keys, values, first, len } = *context;
    let (dim, stride) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    let needed = len * stride;
    assert!(keys.len() >= needed && values.len() >= needed, "keys and values hold len positions");
    if first >= len || dim == 0 {
        out.fill(0.0);
        return;
    }
    let offset = kv_head * dim + first * stride;
    let (keys, values) = (&keys[offset..needed], &values[offset..needed]);
    SCORES.with_borrow_mut(|scores| {
        scores.resize((len - first).next_multiple_of(16), 0.0);
        for (q, out) in q.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
            dispatch(isa, Head { q, keys, values, stride, count: len - first, scale, scores, out });
        }
    });
}

struct Head<'a> {
    q: &'a [f32],
    /// From the first value of the first position on; the next position is `stride` further.
    keys: &'a [f32],
    values: &'a [f32],
    stride: usize,
    count: usize,
    scale: f32,
    /// Scratch, `count` rounded up to a multiple of 16.
    scores: &'a mut [f32],
    out: &'a mut [f32],
}

impl Kernel for Head<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Head { q, keys, values, stride, count, scale, scores, out } = self;
        let dim = q.len();
        let mut max = f32::NEG_INFINITY;
        let (fours, rest) = scores[..count].as_chunks_mut::<4>();
        for (i, four) in fours.iter_mut().enumerate() {
            let from = 4 * i * stride;
            let keys = [0, 1, 2, 3].map(|p| &keys[from + p * stride..][..dim]);
            *four = dot_lanes_4(s, q, keys).map(|dot| dot * scale);
        }
        let from = 4 * fours.len();
        for (i, score) in rest.iter_mut().enumerate() {
            *score = dot_lanes(s, q, &keys[(from + i) * stride..][..dim]) * scale;
        }
        for score in &scores[..count] {
            // NaN does not win here; it comes through in exp.
            max = max.max(*score);
        }
        // The padding becomes exp(-inf) = 0 and adds nothing.
        scores[count..].fill(f32::NEG_INFINITY);
        let minus_max = s.splat(-max);
        let mut sum = s.splat(0.0);
        for chunk in scores.as_chunks_mut::<16>().0 {
            let e = s.exp(s.add(s.load(chunk), minus_max));
            sum = s.add(sum, e);
            s.store(e, chunk);
        }
        let sum = s.splat(s.sum(sum));

        let weights = &scores[..count];
        let (out16, out_tail) = out.as_chunks_mut::<16>();
        // Four vectors of a head at once, so that the fused multiply-adds of one do not wait for each other.
        let (out64, out16) = out16.as_chunks_mut::<4>();
        let mut column = 0;
        for out in out64 {
            let mut acc = [s.splat(0.0); 4];
            for (p, weight) in weights.iter().enumerate() {
                let weight = s.splat(*weight);
                let v = &values[p * stride + column..][..64].as_chunks::<16>().0;
                for i in 0..4 {
                    acc[i] = s.fma(weight, s.load(&v[i]), acc[i]);
                }
            }
            for i in 0..4 {
                s.store(s.div(acc[i], sum), &mut out[i]);
            }
            column += 64;
        }
        for out in out16 {
            let mut acc = s.splat(0.0);
            for (p, weight) in weights.iter().enumerate() {
                let v = &values[p * stride + column..][..16].as_chunks::<16>().0;
                acc = s.fma(s.splat(*weight), s.load(&v[0]), acc);
            }
            s.store(s.div(acc, sum), out);
            column += 16;
        }
        if !out_tail.is_empty() {
            let mut acc = s.splat(0.0);
            for (p, weight) in weights.iter().enumerate() {
                let v = &values[p * stride + column..][..out_tail.len()];
                acc = s.fma(s.splat(*weight), s.load(&pad_f32(v)), acc);
            }
            let mut lanes = [0.0; 16];
            s.store(s.div(acc, sum), &mut lanes);
            out_tail.copy_from_slice(&lanes[..out_tail.len()]);
        }
    }
}
