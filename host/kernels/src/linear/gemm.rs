//! Several rows of x: weights are widened to f32 once per group of rows, then multiplied in register tiles.
//!
//! Each output has its own sixteen lanes (the definition demands it), so a tile of 6 x-rows and 4 w-rows is 24 vector
//! accumulators. Both operands are packed so that a tile reads two streams from front to back: x as `[tile][k / 16]
//! [rows of the tile][16]`, w as `[strip][k / 16][4][16]`. k is cut into pieces so that a strip's piece stays in L1;
//! between pieces the lanes rest in memory, which changes no bit.

use super::weights::Weights;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch};

/// Weight rows of a strip, that is, of a register tile.
const STRIP: usize = 4;
/// Weight rows that are widened at once: 512 KiB of f32 at k = 4096, which stays in L2.
pub(super) const GROUP: usize = 32;
/// x-rows of a tile at most: 6 x 4 accumulators, 4 weights and one x fill 32 registers.
const TILE: usize = 6;
/// Steps of 16 columns in a piece of k: the strip's piece is 16 KiB.
const PIECE: usize = 64;
/// Bytes of packed x that are multiplied with a whole group before the next are taken; a part of L2.
const X_BLOCK: usize = 1 << 20;

/// Sixteen floats on a cache line of their own.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Lanes([f32; 16]);

const ZERO: Lanes = Lanes([0.0; 16]);

/// x, cut into tiles of nearly equal height and padded to whole steps.
pub(super) struct PackedX {
    lanes: Vec<Lanes>,
    /// First row and height of each tile.
    tiles: Vec<(usize, usize)>,
    m: usize,
    k: usize,
    steps: usize,
}

impl PackedX {
    pub(super) fn new(isa: Isa, x: &[f32], m: usize, k: usize) -> Self {
        let most = if dispatch(isa, IsWide) { TILE } else { 1 };
        let count = m.div_ceil(most);
        let steps = k.div_ceil(16);
        let mut lanes = vec![ZERO; m * steps];
        let mut tiles = Vec::with_capacity(count);
        let mut first = 0;
        for t in 0..count {
            // 8 rows become 4 + 4, not 6 + 2: a low tile has too few accumulators to hide the latency.
            let height = m / count + usize::from(t < m % count);
            tiles.push((first, height));
            let tile = &mut lanes[first * steps..(first + height) * steps];
            for r in 0..height {
                for (step, chunk) in x[(first + r) * k..(first + r + 1) * k].chunks(16).enumerate() {
                    tile[step * height + r].0[..chunk.len()].copy_from_slice(chunk);
                }
            }
            first += height;
        }
        PackedX { lanes, tiles, m, k, steps }
    }
}

struct IsWide;

impl Kernel for IsWide {
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) -> bool {
        S::WIDE
    }
}

/// The outputs `first .. first + width` of all rows, row-major, without bias.
pub(super) fn columns<W: Weights>(isa: Isa, x: &PackedX, w: W, first: usize, width: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.m * width];
    let mut group = vec![ZERO; GROUP.min(width.next_multiple_of(STRIP)) * x.steps];
    let mut wide = vec![0.0; if w.span().is_none() { x.k } else { 0 }];
    for start in (0..width).step_by(GROUP) {
        let rows = GROUP.min(width - start);
        for r in 0..rows {
            let strip = &mut group[r / STRIP * STRIP * x.steps..][..STRIP * x.steps];
            if w.span().is_some() {
                dispatch(isa, Widen { w, row: first + start + r, k: x.k, strip, slot: r % STRIP });
            } else {
                w.widen(isa, first + start + r, &mut wide);
                for (step, chunk) in wide.chunks(16).enumerate() {
                    let lanes = &mut strip[step * STRIP + r % STRIP];
                    *lanes = ZERO;
                    lanes.0[..chunk.len()].copy_from_slice(chunk);
                }
            }
        }
        let next = (start + GROUP < width).then(|| (first + start + GROUP, GROUP.min(width - start - GROUP)));
        dispatch(isa, Multiply { x, w, group: &group, rows, start, width, next, out: &mut out });
    }
    out
}

/// One weight row, widened into its slot of a strip.
struct Widen<'a, W> {
    w: W,
    row: usize,
    k: usize,
    strip: &'a mut [Lanes],
    slot: usize,
}

impl<W: Weights> Kernel for Widen<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Widen { w, row, k, strip, slot } = self;
        let bytes = w.row(row);
        let span = w.span().unwrap_or(usize::MAX);
        let mut slots = strip.iter_mut().skip(slot).step_by(STRIP);
        let (mut start, mut index) = (0, 0);
        while start < k {
            let end = start.saturating_add(span).min(k);
            let scale = w.scale(s, row, index);
            let chunks = bytes[start * W::SIZE..end * W::SIZE].chunks_exact(16 * W::SIZE);
            let tail = chunks.remainder();
            // The slots come first in the zip: an iterator that is asked and then not used would lose one.
            let full = chunks.len();
            for (lanes, chunk) in slots.by_ref().take(full).zip(chunks) {
                s.store(w.load(s, chunk, scale), &mut lanes.0);
            }
            if !tail.is_empty()
                && let Some(lanes) = slots.next()
            {
                s.store(w.load_tail(s, tail, scale), &mut lanes.0);
            }
            start = end;
            index += 1;
        }
    }
}

/// All of x times one group of widened rows.
struct Multiply<'a, W> {
    x: &'a PackedX,
    w: W,
    group: &'a [Lanes],
    rows: usize,
    /// Column of `out` of the group's first row.
    start: usize,
    width: usize,
    /// First row and number of rows of the next group, to be asked for meanwhile.
    next: Option<(usize, usize)>,
    out: &'a mut [f32],
}

impl<W: Weights> Kernel for Multiply<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Multiply { x, w, group, rows, start, width, next, out } = self;
        let steps = x.steps;
        let tiles_per_block = (X_BLOCK / (64 * steps.max(1) * TILE)).max(4);
        let strips = rows.div_ceil(STRIP);
        let pieces = steps.div_ceil(PIECE).max(1);
        // The memory loads of the next group are spread over the tiles of this one.
        let lines = next.map_or(0, |(_, rows)| (rows * x.k * W::SIZE).div_ceil(64));
        let share = lines.div_ceil((x.tiles.len() * strips * pieces).max(1));
        let mut base = next.filter(|_| x.k > 0).map_or(std::ptr::null(), |(row, _)| w.row(row).as_ptr());

        let mut acc = vec![ZERO; tiles_per_block * TILE * STRIP];
        for tiles in x.tiles.chunks(tiles_per_block) {
            for strip in 0..strips {
                let w_lanes = &group[strip * STRIP * steps..(strip + 1) * STRIP * steps];
                for piece in 0..pieces {
                    let (from, to) = (piece * PIECE, ((piece + 1) * PIECE).min(steps));
                    let w_lanes = &w_lanes[from * STRIP..to * STRIP];
                    for ((first, height), acc) in tiles.iter().zip(acc.chunks_exact_mut(TILE * STRIP)) {
                        let (first, height) = (*first, *height);
                        let x_lanes = &x.lanes[first * steps + from * height..first * steps + to * height];
                        if piece == 0 {
                            acc.fill(ZERO);
                        }
                        for _ in 0..share {
                            s.prefetch(base);
                            base = base.wrapping_add(64);
                        }
                        if S::WIDE {
                            match height {
                                1 => tile::<S, 1>(s, x_lanes, w_lanes, acc),
                                2 => tile::<S, 2>(s, x_lanes, w_lanes, acc),
                                3 => tile::<S, 3>(s, x_lanes, w_lanes, acc),
                                4 => tile::<S, 4>(s, x_lanes, w_lanes, acc),
                                5 => tile::<S, 5>(s, x_lanes, w_lanes, acc),
                                _ => tile::<S, 6>(s, x_lanes, w_lanes, acc),
                            }
                        } else {
                            tile::<S, 1>(s, x_lanes, w_lanes, acc);
                        }
                        if piece + 1 == pieces {
                            let column = start + strip * STRIP;
                            let n = STRIP.min(rows - strip * STRIP);
                            for (r, lanes) in acc.as_chunks::<STRIP>().0[..height].iter().enumerate() {
                                let sums = s.sum4([
                                    s.load(&lanes[0].0),
                                    s.load(&lanes[1].0),
                                    s.load(&lanes[2].0),
                                    s.load(&lanes[3].0),
                                ]);
                                let at = (first + r) * width + column;
                                out[at..at + n].copy_from_slice(&sums[..n]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// One piece of one tile: `acc[r][j] += x[r] * w[j]`, lane by lane.
#[inline(always)]
fn tile<S: Simd, const R: usize>(s: S, x: &[Lanes], w: &[Lanes], acc: &mut [Lanes]) {
    let (acc, _) = acc.as_chunks_mut::<STRIP>();
    let mut sums = [[s.splat(0.0); STRIP]; R];
    for r in 0..R {
        for j in 0..STRIP {
            sums[r][j] = s.load(&acc[r][j].0);
        }
    }
    for (x, w) in x.as_chunks::<R>().0.iter().zip(w.as_chunks::<STRIP>().0) {
        let w = [s.load(&w[0].0), s.load(&w[1].0), s.load(&w[2].0), s.load(&w[3].0)];
        for r in 0..R {
            let x = s.load(&x[r].0);
            for j in 0..STRIP {
                sums[r][j] = s.fma(x, w[j], sums[r][j]);
            }
        }
    }
    for r in 0..R {
        for j in 0..STRIP {
            s.store(sums[r][j], &mut acc[r][j].0);
        }
    }
}
