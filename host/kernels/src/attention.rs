//! Attention of tokens over the keys and values of their sequences, in f32.
//!
//! For each head: scores `dot(q, k[p]) * scale` ([`crate::dot::dot`]'s order), minus their maximum, `exp` by a
//! polynomial that is the same on all paths, their sum in sixteen lanes (position modulo 16, counted from the first that
//! takes part; fixed tree), and `out = sum of exp[p] * v[p]` in the order of the positions by fused multiply-add, divided
//! by the sum at the end. The same bits on every [`Isa`], and whichever rows and heads are computed together: rows of one
//! sequence and heads that share keys go through them side by side, some blocks of positions at a time, so that these
//! stay in the nearest cache.

mod layout;
mod tile;

use crate::isa::Isa;
use crate::simd::dispatch;
use crate::team::{Disjoint, Team};
pub use layout::{BLOCK, in_blocks, put_key, put_value};
use layout::{Keys, Values};
use std::cell::RefCell;
use tile::{Query, Tiles, out_stride, score_stride};

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
    /// How keys and values lie.
    pub layout: Layout,
}

/// How keys and values lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// In blocks of [`BLOCK`] positions, the last one whole too: keys `[kv_heads, head_dim, BLOCK]`, so that sixteen
    /// scores need no sums across lanes, values `[kv_heads, BLOCK, value_dim]`. [`put_key`] and [`put_value`] write them.
    /// What lies in the last block behind the last position is never used.
    Blocks,
    /// By position, `head_dim` each; the first `value_dim` numbers of a key are also the value. One key head.
    Shared,
}

impl AttentionShape {
    /// Keys and values of one width, in blocks.
    pub fn grouped(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { heads, kv_heads, head_dim, value_dim: head_dim, layout: Layout::Blocks }
    }

    /// One key for all heads, whose first `value_dim` values are also the value (absorbed latent attention): give the
    /// keys as the values, too.
    pub fn shared(heads: usize, head_dim: usize, value_dim: usize) -> Self {
        Self { heads, kv_heads: 1, head_dim, value_dim, layout: Layout::Shared }
    }

    /// Query heads of a key head.
    fn share(&self) -> usize {
        let Self { heads, kv_heads, head_dim, value_dim, layout } = *self;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "query heads share key heads evenly");
        let shared = kv_heads == 1 && value_dim <= head_dim;
        assert!(layout == Layout::Blocks || shared, "one key that holds its value");
        heads / kv_heads
    }

    /// Keys and values of one head.
    fn head<'a>(&self, context: &Context<'a>, kv_head: usize) -> (Keys<'a>, Values<'a>) {
        let Self { kv_heads, head_dim, value_dim, layout, .. } = *self;
        let (all, values) = (context.keys, context.values);
        match layout {
            Layout::Blocks => {
                let of = |dim: usize| (kv_heads * dim * BLOCK, kv_head * dim * BLOCK);
                let ((stride, start), (block_stride, value_start)) = (of(head_dim), of(value_dim));
                (
                    Keys { all, dim: head_dim, blocked: true, stride, start },
                    Values { all: values, dim: value_dim, block_stride, stride: value_dim, start: value_start },
                )
            }
            Layout::Shared => (
                Keys { all, dim: head_dim, blocked: false, stride: head_dim, start: 0 },
                Values { all: values, dim: value_dim, block_stride: BLOCK * head_dim, stride: head_dim, start: 0 },
            ),
        }
    }
}

/// Most queries (heads of rows) that go through the keys side by side.
const QUERIES: usize = 32;
/// Scores that are held at a time, about: a part of the second cache.
const SCORES: usize = 1 << 16;
/// Multiply-adds that are worth a task: about a microsecond.
const LEAST: usize = 1 << 15;

/// Buffers of a thread; kept, so that a token does not allocate.
#[derive(Default)]
struct Scratch {
    packed: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static GROUPS: RefCell<Vec<Group>> = const { RefCell::new(Vec::new()) };
}

/// What one token attends to.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Of at least `len` positions, as [`Layout`] says.
    pub keys: &'a [f32],
    /// The same. May be the memory of the keys.
    pub values: &'a [f32],
    /// The first position that takes part (above 0: a sliding window).
    pub first: usize,
    /// One behind the last position.
    pub len: usize,
}

impl Context<'_> {
    fn assert_holds(&self, shape: &AttentionShape) {
        let AttentionShape { kv_heads, head_dim, value_dim, layout, .. } = *shape;
        let (keys, values) = match layout {
            Layout::Blocks => (in_blocks(self.len, kv_heads * head_dim), in_blocks(self.len, kv_heads * value_dim)),
            Layout::Shared => (self.len * head_dim, self.len * head_dim),
        };
        assert!(self.keys.len() >= keys && self.values.len() >= values, "keys and values hold len positions");
    }
}

/// Rows of one sequence, one behind the other, that go through its keys together.
#[derive(Debug, Clone, Copy)]
struct Group {
    row: usize,
    rows: usize,
}

/// Attention of many tokens, shared out over the team. Row i of `q` begins at `i * ldq` and has `heads * head_dim` values;
/// `out` is contiguous, as many rows of `heads * value_dim` values. `context` tells what row i attends to; `scale`
/// multiplies the scores, usually `1 / sqrt(head_dim)`. Where no position takes part, the output is zero. Fastest where
/// the rows of a sequence follow each other. Uses [`Isa::detect`].
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
    attend_rows_with(Isa::detect(), team, shape, q, ldq, context, scale, out);
}

/// [`attend_rows`] with the instructions of `isa`.
///
/// # Panics
/// As [`attend_rows`].
pub fn attend_rows_with<'a>(
    isa: Isa,
    team: &Team,
    shape: &AttentionShape,
    q: &[f32],
    ldq: usize,
    context: &(dyn Fn(usize) -> Context<'a> + Sync),
    scale: f32,
    out: &mut [f32],
) {
    let AttentionShape { heads, kv_heads, head_dim, value_dim, .. } = *shape;
    let share = shape.share();
    let q_width = heads.checked_mul(head_dim).expect("a row of queries fits into memory");
    let width = heads.checked_mul(value_dim).expect("a row of outputs fits into memory");
    if width == 0 || out.is_empty() {
        return;
    }
    let rows = out.len() / width;
    assert!(out.len().is_multiple_of(width) && ldq >= q_width, "whole rows");
    assert!(q.len() >= (rows - 1) * ldq + q_width, "a row of q for each of out");
    if head_dim == 0 {
        return out.fill(0.0);
    }
    let mut groups = GROUPS.take();
    let positions = grouped(shape, share, rows, context, &mut groups);
    // A task is a group with the heads of one key head, or with some of these where there are few tasks.
    let (threads, most) = (team.threads(), groups.len() * kv_heads);
    let mut parts = share.div_ceil(QUERIES);
    while threads > 1 && most * parts < 2 * threads && 2 * parts <= share {
        parts *= 2;
    }
    let units = most * parts;
    // Several of them where one is not worth a task.
    let work = positions * heads * (head_dim + value_dim) / units;
    let together = (LEAST / work.max(1)).clamp(1, units);
    let call = Call { isa, shape, q, ldq, context, scale, out: Disjoint::new(out), width };
    team.run(units.div_ceil(together), &|task| {
        for unit in task * together..((task + 1) * together).min(units) {
            // The last rows of a prompt first: they have most to do.
            let unit = units - 1 - unit;
            let (group, head, part) = (groups[unit / parts / kv_heads], unit / parts % kv_heads, unit % parts);
            let at = |part: usize| head * share + share * part / parts;
            call.attend(group, head, at(part)..at(part + 1));
        }
    });
    GROUPS.set(groups);
}

/// Fills in the groups; gives the positions of all rows together.
fn grouped<'a>(
    shape: &AttentionShape,
    share: usize,
    rows: usize,
    context: &dyn Fn(usize) -> Context<'a>,
    groups: &mut Vec<Group>,
) -> usize {
    groups.clear();
    let (mut last, mut positions): (Option<Context<'a>>, _) = (None, 0);
    for row in 0..rows {
        let now = context(row);
        now.assert_holds(shape);
        positions += now.len.saturating_sub(now.first);
        let most = (SCORES / now.len.max(1)).min(QUERIES) / share;
        let same = last.is_some_and(|l| std::ptr::eq(l.keys, now.keys) && std::ptr::eq(l.values, now.values));
        match groups.last_mut() {
            Some(group) if same && group.rows < most => group.rows += 1,
            _ => groups.push(Group { row, rows: 1 }),
        }
        last = Some(now);
    }
    positions
}

/// What all tasks have in common.
struct Call<'a, 'c> {
    isa: Isa,
    shape: &'a AttentionShape,
    q: &'a [f32],
    ldq: usize,
    context: &'a (dyn Fn(usize) -> Context<'c> + Sync),
    scale: f32,
    out: Disjoint<'a>,
    width: usize,
}

impl Call<'_, '_> {
    /// The rows of a group, with some heads of one key head.
    fn attend(&self, group: Group, kv_head: usize, heads: std::ops::Range<usize>) {
        let AttentionShape { head_dim, value_dim, .. } = *self.shape;
        let mut queries = [Query::default(); QUERIES];
        let mut places = [0; QUERIES];
        let (mut count, mut first, mut len) = (0, usize::MAX, 0);
        for row in group.row..group.row + group.rows {
            let context = (self.context)(row);
            for head in heads.clone() {
                let place = row * self.width + head * value_dim;
                if context.first >= context.len {
                    // SAFETY: one head of one row, which no other task has, and nobody else here holds it.
                    unsafe { self.part(place) }.fill(0.0);
                    continue;
                }
                let q = &self.q[row * self.ldq + head * head_dim..][..head_dim];
                queries[count] = Query { q, first: context.first, len: context.len };
                places[count] = place;
                (count, first, len) = (count + 1, first.min(context.first), len.max(context.len));
            }
        }
        if count == 0 {
            return;
        }
        let (keys, values) = self.shape.head(&(self.context)(group.row), kv_head);
        let (from, to) = (first / BLOCK, len.div_ceil(BLOCK));
        SCRATCH.with_borrow_mut(|Scratch { packed, scores, out }| {
            let packed = at_least(packed, count * head_dim);
            let scores = at_least(scores, count * score_stride(to - from));
            let out = at_least(out, count * out_stride(value_dim));
            let queries = &queries[..count];
            dispatch(self.isa, Tiles { queries, keys, values, scale: self.scale, from, to, packed, scores, out });
            for (place, out) in places[..count].iter().zip(out.chunks_exact(out_stride(value_dim))) {
                // SAFETY: as above; those are other heads or rows.
                unsafe { self.part(*place) }.copy_from_slice(&out[..value_dim]);
            }
        });
    }

    /// The output of one head of one row, which begins at `place`.
    ///
    /// # Safety
    /// Nobody else uses this head of this row at the same time.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, place: usize) -> &mut [f32] {
        // SAFETY: places are `value_dim` apart at least, and the caller keeps to its own.
        unsafe { self.out.part(place, self.shape.value_dim) }
    }
}

/// The first `len` numbers of a buffer, which grows where it must.
fn at_least(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
