//! A few rows of x: weights are read once and decoded in registers, and the limit is the memory.

use super::lanes::{Quad, with_quad};
use super::packed::{Line, QUAD};
use super::{Piece, ROWS};
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch};
use std::ops::Range;

/// How far ahead of its loads each stream of weights asks for cache lines, in lines.
const AHEAD: usize = 16;

/// Most rows of x that are computed here. Where registers are few, more than [`TALL`] rows go through a block of weights in
/// several passes: decoding anew costs less than a way through memory, up to here.
pub(super) fn most_rows(isa: Isa) -> usize {
    if isa.usable() == Isa::Avx512 { 12 } else { MOST }
}

/// Most rows of x where registers are few.
const MOST: usize = 16;
/// Rows of x whose sums of one group fit into sixteen registers beside what decodes.
const TALL: usize = 6;

/// Groups of sixteen outputs that are computed together: enough chains of multiply-adds to hide their latency.
pub(super) fn groups(isa: Isa, m: usize) -> usize {
    match (isa.usable(), m) {
        (Isa::Avx512, 1..=6) => 4,
        (Isa::Avx512, _) => 2,
        (_, 1..=3) => 2,
        _ => 1,
    }
}

/// All rows of x times some groups.
pub(super) fn run(isa: Isa, piece: &Piece<'_>, groups: Range<usize>) {
    with_quad!(piece.w, |quad| dispatch(isa, Direct { piece, groups, quad }));
}

struct Direct<'a, Q> {
    piece: &'a Piece<'a>,
    groups: Range<usize>,
    quad: Q,
}

impl<Q: Quad> Kernel for Direct<'_, Q> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (p, q) = (self.piece, self.quad);
        let mut group = self.groups.start;
        while group < self.groups.end {
            let left = self.groups.end - group;
            // The widest tile for this many rows, as `groups` says; what remains goes in narrower ones.
            macro_rules! go {
                ($rows:literal, $wide:literal) => {
                    if left >= $wide {
                        tile::<S, Q, $rows, $wide>(s, p, q, group);
                        $wide
                    } else if $wide > 2 && left >= 2 {
                        tile::<S, Q, $rows, 2>(s, p, q, group);
                        2
                    } else {
                        tile::<S, Q, $rows, 1>(s, p, q, group);
                        1
                    }
                };
            }
            group += if S::WIDE {
                match p.x.m {
                    1 => go!(1, 4),
                    2 => go!(2, 4),
                    3 => go!(3, 4),
                    4 => go!(4, 4),
                    5 => go!(5, 4),
                    6 => go!(6, 4),
                    7 => go!(7, 2),
                    8 => go!(8, 2),
                    9 => go!(9, 2),
                    10 => go!(10, 2),
                    11 => go!(11, 2),
                    _ => go!(12, 2),
                }
            } else {
                match p.x.m {
                    1 => go!(1, 2),
                    2 => go!(2, 2),
                    3 => go!(3, 2),
                    4 => go!(4, 1),
                    5 => go!(5, 1),
                    6 => go!(6, 1),
                    _ => {
                        passes(s, p, q, group);
                        1
                    }
                }
            };
        }
    }
}

/// R rows of x times G groups of weights.
#[inline(always)]
fn tile<S: Simd, Q: Quad, const R: usize, const G: usize>(s: S, p: &Piece<'_>, quad: Q, group: usize) {
    let (w, k) = (p.w, p.w.k());
    assert!(p.x.m == R && p.x.rows.len() == R * k, "the tile is as high as x");
    let mut lines = [w.group(group); G];
    for (g, lines) in lines.iter_mut().enumerate() {
        *lines = w.group(group + g);
    }
    let mut totals = [[s.splat(0.0); G]; R];
    let block_cols = w.block_cols();
    let mut at = 0;
    for (block, start) in (0..k).step_by(block_cols).enumerate() {
        let width = block_cols.min(k - start);
        let sums = sums::<S, Q, R, G, true>(s, quad, p.x.rows, k, start..start + width, &lines, at);
        at += width.div_ceil(QUAD) * Q::LINES;
        for g in 0..G {
            let scale = p.scales(s, group + g, block);
            for r in 0..R {
                totals[r][g] = quad.add_block(s, sums[r][g], scale, totals[r][g]);
            }
        }
    }
    for (r, totals) in totals.iter().enumerate() {
        for (g, total) in totals.iter().enumerate() {
            p.write(s, r, group + g, *total);
        }
    }
    const { assert!(ROWS == 16, "a group fills the lanes") };
}

/// [`TALL`] to [`MOST`] rows of x times one group: block after block, the rows in passes of nearly equal heights.
#[inline(always)]
fn passes<S: Simd, Q: Quad>(s: S, p: &Piece<'_>, quad: Q, group: usize) {
    let (w, k, m) = (p.w, p.w.k(), p.x.m);
    assert!(m <= MOST && p.x.rows.len() == m * k, "no more rows than totals");
    let lines = [w.group(group)];
    let mut totals = [s.splat(0.0); MOST];
    let block_cols = w.block_cols();
    let mut at = 0;
    for (block, start) in (0..k).step_by(block_cols).enumerate() {
        let width = block_cols.min(k - start);
        let scale = p.scales(s, group, block);
        let mut first = 0;
        let mut left = m.div_ceil(TALL);
        while first < m {
            let rows = (m - first).div_ceil(left);
            let (x, totals) = (&p.x.rows[first * k..], &mut totals[first..first + rows]);
            macro_rules! go {
                ($($rows:literal)*) => {
                    // Only the first pass finds the weights in memory.
                    match (rows, first == 0) {
                        $(($rows, true) => {
                            let sums = sums::<S, Q, $rows, 1, true>(s, quad, x, k, start..start + width, &lines, at);
                            add(s, quad, &sums, scale, totals);
                        }
                        ($rows, false) => {
                            let sums = sums::<S, Q, $rows, 1, false>(s, quad, x, k, start..start + width, &lines, at);
                            add(s, quad, &sums, scale, totals);
                        })*
                        _ => unreachable!("no pass is as high"),
                    }
                };
            }
            go!(3 4 5 6);
            first += rows;
            left -= 1;
        }
        at += width.div_ceil(QUAD) * Q::LINES;
    }
    for (r, total) in totals[..m].iter().enumerate() {
        p.write(s, r, group, *total);
    }
}

/// Adds the sums of a block to the totals of a pass.
#[inline(always)]
fn add<S: Simd, Q: Quad>(s: S, quad: Q, sums: &[[S::F; 1]], scale: S::F, totals: &mut [S::F]) {
    for ([sum], total) in sums.iter().zip(totals) {
        *total = quad.add_block(s, *sum, scale, *total);
    }
}

/// The sums of one block: R rows of x, of k columns each, times G groups, whose lines of the block begin at `at`.
/// `FETCH`: asks for lines further on.
#[inline(always)]
fn sums<S: Simd, Q: Quad, const R: usize, const G: usize, const FETCH: bool>(
    s: S,
    quad: Q,
    x: &[f32],
    k: usize,
    columns: Range<usize>,
    lines: &[&[Line]; G],
    mut at: usize,
) -> [[S::F; G]; R] {
    let Range { start, end } = columns;
    let width = end - start;
    let quads = width.div_ceil(QUAD);
    let rows: [&[f32]; R] = std::array::from_fn(|r| &x[r * k..(r + 1) * k]);
    assert!(start <= end && end <= k, "columns of x");
    for lines in lines {
        assert!(at + quads * Q::LINES <= lines.len(), "a group has lines for each quad of each block");
    }
    let mut sums = [[s.splat(0.0); G]; R];
    for c in (0..width / QUAD).map(|i| i * QUAD) {
        if FETCH {
            for lines in lines {
                for l in 0..Q::LINES {
                    s.prefetch(lines.as_ptr().wrapping_add(at + AHEAD + l));
                }
            }
        }
        let mut x = [[s.splat(0.0); QUAD]; R];
        for (x, row) in x.iter_mut().zip(rows) {
            for (i, x) in x.iter_mut().enumerate() {
                // SAFETY: columns `start + c .. + QUAD` are below k, the length of each row of x.
                *x = s.splat(unsafe { *row.get_unchecked(start + c + i) });
            }
        }
        for g in 0..G {
            // SAFETY: the lines of all quads of the block were checked above.
            let w = quad.load(s, unsafe { lines[g].get_unchecked(at..at + Q::LINES) });
            for r in 0..R {
                for i in 0..QUAD {
                    sums[r][g] = s.fma(x[r][i], w[i], sums[r][g]);
                }
            }
        }
        at += Q::LINES;
    }
    let rest = width % QUAD;
    if rest > 0 {
        for g in 0..G {
            let w = quad.load(s, &lines[g][at..at + Q::LINES]);
            for r in 0..R {
                for (i, w) in w.iter().enumerate().take(rest) {
                    sums[r][g] = s.fma(s.splat(rows[r][end - rest + i]), *w, sums[r][g]);
                }
            }
        }
    }
    sums
}
