//! A few rows of x: weights are read once and decoded in registers, and the limit is the memory.

use super::lanes::{Fp8, Quad};
use super::packed::QUAD;
use super::{Kind, Piece, ROWS};
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch};
use crate::source::{Bf16, F16, F32};
use std::ops::Range;

/// How far ahead of its loads each stream of weights asks for cache lines, in lines.
pub(super) const AHEAD: usize = 32;

/// Most rows of x that are computed here: their sums, of one group at least, fit into the registers beside what decodes.
pub(super) fn most_rows(isa: Isa) -> usize {
    match isa.usable() {
        Isa::Avx512 => 12,
        Isa::Avx2 | Isa::Avx2Subnormal => 5,
        Isa::Neon | Isa::Portable => 6,
    }
}

/// Groups of sixteen outputs that are computed together: enough chains of multiply-adds to hide their latency.
pub(super) fn groups(isa: Isa, m: usize) -> usize {
    match (isa.usable(), m) {
        (Isa::Avx512, 1..=6) => 4,
        (Isa::Avx512, _) => 2,
        (_, 1 | 2) => 2,
        _ => 1,
    }
}

/// All rows of x times some groups.
pub(super) fn run(isa: Isa, piece: &Piece<'_>, groups: Range<usize>) {
    match piece.w.kind() {
        Kind::Fp8 => dispatch(isa, Direct { piece, groups, quad: Fp8 }),
        Kind::Bf16 => dispatch(isa, Direct { piece, groups, quad: Bf16 }),
        Kind::F16 => dispatch(isa, Direct { piece, groups, quad: F16 }),
        Kind::F32 => dispatch(isa, Direct { piece, groups, quad: F32 }),
    }
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
                    3 => go!(3, 1),
                    4 => go!(4, 1),
                    5 => go!(5, 1),
                    6 if !S::PASSES => go!(6, 1),
                    _ => unreachable!("so many rows go in tiles"),
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
    let rows: [&[f32]; R] = std::array::from_fn(|r| &p.x.rows[r * k..(r + 1) * k]);
    let mut lines = [w.group(group); G];
    for (g, lines) in lines.iter_mut().enumerate() {
        *lines = w.group(group + g);
    }
    let mut totals = [[s.splat(0.0); G]; R];
    let block_cols = w.block_cols();
    let mut at = 0;
    for (block, start) in (0..k).step_by(block_cols).enumerate() {
        let width = block_cols.min(k - start);
        let mut sums = [[s.splat(0.0); G]; R];
        for c in (0..width / QUAD).map(|i| i * QUAD) {
            for lines in lines {
                for l in 0..Q::LINES {
                    s.prefetch(lines.as_ptr().wrapping_add(at + AHEAD + l));
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
                // SAFETY: a group has LINES lines for each quad of each block, and `at` counts them.
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
                        sums[r][g] = s.fma(s.splat(rows[r][start + width - rest + i]), *w, sums[r][g]);
                    }
                }
            }
            at += Q::LINES;
        }
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
