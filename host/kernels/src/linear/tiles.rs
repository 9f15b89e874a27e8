//! Many rows of x: a block of weights is decoded to f32 once and multiplied with all rows in register tiles.
//!
//! x is put into tiles first: for each block of columns, for each tile, column after column, the rows of the tile side
//! by side. The decoded block (16 KiB at most for blocks of 128) stays in L1 while the tiles stream by. Up to [`FEW`] rows are
//! quicker without the way through L1: each tile decodes the block anew, in registers ([`Simd::PASSES`]).

use super::direct::AHEAD;
use super::lanes::{Enter, Fp8, Quad};
use super::packed::{Line, QUAD};
use super::{Kind, PackedMatrix, Piece, ROWS};
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch};
use crate::source::{Bf16, F16, F32};
use crate::team::{Disjoint, Team};
use std::cell::RefCell;
use std::ops::Range;

/// Columns of a block that are decoded at a time: more would not stay in L1. The sums of a block rest in memory between
/// two stretches, which changes no bit.
const STRETCH: usize = 128;

/// Most rows of x whose tiles decode for themselves.
const FEW: usize = 16;

/// Most rows of a tile: 6 x 1 groups on 16 registers of half a group (4 if it decodes, too), 12 x 2 on 32 registers of a group.
fn height(isa: Isa, m: usize) -> usize {
    match isa.usable() {
        Isa::Avx512 => 12,
        Isa::Avx2 | Isa::Avx2Subnormal if m <= FEW => 4,
        _ => 6,
    }
}

/// Groups that are decoded and multiplied together.
pub(super) fn groups(isa: Isa) -> usize {
    if isa.usable() == Isa::Avx512 { 2 } else { 1 }
}

/// First row and height of tile t of `count`: nearly equal heights, since low tiles hide less latency.
fn tile(m: usize, count: usize, t: usize) -> (usize, usize) {
    let (least, more) = (m / count, m % count);
    (t * least + t.min(more), least + usize::from(t < more))
}

/// Puts x [m, k] into tiles, and into the units that FP8 takes.
pub(super) fn arrange(isa: Isa, team: &Team, x: &[f32], m: usize, w: &PackedMatrix, out: &mut [f32]) {
    let (k, block_cols, fp8) = (w.k(), w.block_cols(), w.kind() == Kind::Fp8);
    let count = m.div_ceil(height(isa, m));
    let out = Disjoint::new(out);
    let one = |t: usize| {
        let (first, rows) = tile(m, count, t);
        let mut entered = [0.0; STRETCH];
        for start in (0..k).step_by(block_cols) {
            let width = block_cols.min(k - start);
            // SAFETY: tile t of this block is `rows * width` values from here, and no other tile's.
            let out = unsafe { out.part(start * m + first * width, rows * width) };
            for r in 0..rows {
                let row = &x[(first + r) * k + start..][..width];
                for (row, out) in row.chunks(STRETCH).zip(out.chunks_mut(STRETCH * rows)) {
                    let row = if fp8 {
                        let entered = &mut entered[..row.len()];
                        dispatch(isa, Enter { x: row, out: entered });
                        &*entered
                    } else {
                        row
                    };
                    for (x, out) in row.iter().zip(out[r..].iter_mut().step_by(rows)) {
                        *out = *x;
                    }
                }
            }
        }
    };
    if m * k < 1 << 14 { (0..count).for_each(one) } else { team.run(count, &one) }
}

/// Sixteen floats, a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Lanes([f32; ROWS]);

const ZERO: Lanes = Lanes([0.0; ROWS]);

/// Memory of one thread, kept for its next task.
#[derive(Default)]
struct Scratch {
    /// The decoded stretch: column after column, its groups side by side.
    decoded: Vec<Lanes>,
    /// Totals of each row of x and group.
    totals: Vec<Lanes>,
    /// Sums of the running block, where it is longer than a stretch.
    sums: Vec<Lanes>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// All rows of x times some groups.
pub(super) fn run(isa: Isa, piece: &Piece<'_>, all: Range<usize>) {
    let mut scratch = SCRATCH.take();
    let count = piece.x.m.div_ceil(height(isa, piece.x.m));
    let step = groups(isa);
    for first in all.clone().step_by(step) {
        let wide = first + step <= all.end;
        for group in if wide { first..first + 1 } else { first..all.end } {
            let scratch = &mut scratch;
            match piece.w.kind() {
                Kind::Fp8 => dispatch(isa, Tiles { piece, group, wide, count, scratch, quad: Fp8 }),
                Kind::Bf16 => dispatch(isa, Tiles { piece, group, wide, count, scratch, quad: Bf16 }),
                Kind::F16 => dispatch(isa, Tiles { piece, group, wide, count, scratch, quad: F16 }),
                Kind::F32 => dispatch(isa, Tiles { piece, group, wide, count, scratch, quad: F32 }),
            }
        }
    }
    SCRATCH.set(scratch);
}

struct Tiles<'a, Q> {
    piece: &'a Piece<'a>,
    group: usize,
    /// Whether two groups are multiplied at once (where registers allow it), or one.
    wide: bool,
    count: usize,
    scratch: &'a mut Scratch,
    quad: Q,
}

impl<Q: Quad> Kernel for Tiles<'_, Q> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if S::PASSES && self.piece.x.m <= FEW {
            self.passes(s)
        } else if S::WIDE && self.wide {
            self.groups::<S, 2>(s)
        } else {
            self.groups::<S, 1>(s)
        }
    }
}

impl<Q: Quad> Tiles<'_, Q> {
    #[inline(always)]
    fn groups<S: Simd, const G: usize>(self, s: S) {
        let Tiles { piece: p, group, wide: _, count, scratch, quad } = self;
        let (w, k, m) = (p.w, p.w.k(), p.x.m);
        let Scratch { decoded, totals, sums } = scratch;
        decoded.resize(STRETCH * G, ZERO);
        totals.clear();
        totals.resize(m * G, ZERO);
        let block_cols = w.block_cols();
        let long = block_cols > STRETCH;
        sums.resize(if long { m * G } else { 0 }, ZERO);
        let mut at = 0;
        for (block, start) in (0..k).step_by(block_cols).enumerate() {
            let width = block_cols.min(k - start);
            let mut scales = [s.splat(1.0); G];
            for (g, scale) in scales.iter_mut().enumerate() {
                *scale = p.scales(s, group + g, block);
            }
            for from in (0..width).step_by(STRETCH) {
                let stretch = STRETCH.min(width - from);
                for g in 0..G {
                    let lines = &w.group(group + g)[at..];
                    for (c, lines) in (0..stretch).step_by(QUAD).zip(lines.chunks_exact(Q::LINES)) {
                        let columns = quad.load(s, lines);
                        for (i, column) in columns.into_iter().enumerate().take(stretch - c) {
                            s.store(column, &mut decoded[(c + i) * G + g].0);
                        }
                    }
                }
                at += stretch.div_ceil(QUAD) * Q::LINES;
                let (begins, ends) = (from == 0, from + stretch == width);
                let decoded = &decoded[..stretch * G];
                for t in 0..count {
                    let (first, rows) = tile(m, count, t);
                    let x = &p.x.rows[start * m + first * width + from * rows..][..stretch * rows];
                    let totals = &mut totals[first * G..(first + rows) * G];
                    let sums = if long { &mut sums[first * G..(first + rows) * G] } else { &mut [][..] };
                    macro_rules! go {
                        ($($rows:literal)*) => {
                            match rows {
                                $($rows => multiply::<S, Q, $rows, G>(s, quad, x, decoded, scales, begins, ends, totals, sums),)*
                                _ => unreachable!("no tile is as high"),
                            }
                        };
                    }
                    if S::WIDE { go!(1 2 3 4 5 6 7 8 9 10 11 12) } else { go!(1 2 3 4 5 6) }
                }
            }
        }
        for (i, totals) in totals.chunks_exact(G).enumerate() {
            for (g, total) in totals.iter().enumerate() {
                p.write(s, i, group + g, s.load(&total.0));
            }
        }
    }
}

impl<Q: Quad> Tiles<'_, Q> {
    /// A few rows times one group: block after block, tile after tile.
    #[inline(always)]
    fn passes<S: Simd>(self, s: S) {
        let Tiles { piece: p, group, wide: _, count, scratch: _, quad } = self;
        let (w, k, m) = (p.w, p.w.k(), p.x.m);
        let lines = w.group(group);
        let mut totals = [s.splat(0.0); FEW];
        let block_cols = w.block_cols();
        let mut at = 0;
        for (block, start) in (0..k).step_by(block_cols).enumerate() {
            let width = block_cols.min(k - start);
            let scale = p.scales(s, group, block);
            let block = &lines[at..at + width.div_ceil(QUAD) * Q::LINES];
            for t in 0..count {
                let (first, rows) = tile(m, count, t);
                let x = &p.x.rows[start * m + first * width..][..width * rows];
                let totals = &mut totals[first..first + rows];
                match rows {
                    3 => pass::<S, Q, 3>(s, quad, x, block, scale, totals),
                    4 => pass::<S, Q, 4>(s, quad, x, block, scale, totals),
                    _ => unreachable!("no tile is as high"),
                }
            }
            at += block.len();
        }
        for (i, total) in totals[..m].iter().enumerate() {
            p.write(s, i, group, *total);
        }
    }
}

/// One block times one tile, whose columns x has side by side.
#[inline(always)]
fn pass<S: Simd, Q: Quad, const R: usize>(s: S, quad: Q, x: &[f32], lines: &[Line], scale: S::F, totals: &mut [S::F]) {
    let mut sums = [s.splat(0.0); R];
    let (quads, rest) = x.as_chunks::<R>().0.as_chunks::<QUAD>();
    let mut lines = lines.chunks_exact(Q::LINES);
    for (x, lines) in quads.iter().zip(&mut lines) {
        for line in lines {
            s.prefetch(std::ptr::from_ref(line).wrapping_add(AHEAD));
        }
        let w = quad.load(s, lines);
        for (x, w) in x.iter().zip(w) {
            for r in 0..R {
                sums[r] = s.fma(s.splat(x[r]), w, sums[r]);
            }
        }
    }
    if let Some(lines) = lines.next() {
        for (x, w) in rest.iter().zip(quad.load(s, lines)) {
            for r in 0..R {
                sums[r] = s.fma(s.splat(x[r]), w, sums[r]);
            }
        }
    }
    for (sum, total) in sums.into_iter().zip(totals) {
        *total = quad.add_block(s, sum, scale, *total);
    }
}

/// One stretch of one tile.
#[inline(always)]
fn multiply<S: Simd, Q: Quad, const R: usize, const G: usize>(
    s: S,
    quad: Q,
    x: &[f32],
    w: &[Lanes],
    scales: [S::F; G],
    begins: bool,
    ends: bool,
    totals: &mut [Lanes],
    rest: &mut [Lanes],
) {
    let mut sums = [[s.splat(0.0); G]; R];
    if !begins {
        for r in 0..R {
            for g in 0..G {
                sums[r][g] = s.load(&rest[r * G + g].0);
            }
        }
    }
    for (x, w) in x.as_chunks::<R>().0.iter().zip(w.as_chunks::<G>().0) {
        let mut lanes = [s.splat(0.0); G];
        for g in 0..G {
            lanes[g] = s.load(&w[g].0);
        }
        for r in 0..R {
            let x = s.splat(x[r]);
            for g in 0..G {
                sums[r][g] = s.fma(x, lanes[g], sums[r][g]);
            }
        }
    }
    for r in 0..R {
        for g in 0..G {
            if ends {
                let total = &mut totals[r * G + g];
                let before = s.load(&total.0);
                s.store(quad.add_block(s, sums[r][g], scales[g], before), &mut total.0);
            } else {
                s.store(sums[r][g], &mut rest[r * G + g].0);
            }
        }
    }
}
