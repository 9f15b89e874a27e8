//! One row of x: the weights are read once, decoded in registers, and the limit is the memory.

use super::weights::{Dense, Weights};
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, bytes_of_f32, dispatch, pad_f32};
use crate::source::F32;

/// Weight rows at once. The definition has one accumulator per row, so a single row would wait for the latency of each
/// fused multiply-add.
pub(super) const ROWS: usize = 4;

/// How far ahead of each row's loads its next cache lines are asked for, in bytes.
const AHEAD: usize = 1024;

/// `out[j] = x * w[first + j]`, without bias.
pub(super) fn gemv<W: Weights>(isa: Isa, x: &[f32], k: usize, w: W, first: usize, out: &mut [f32]) {
    if w.span().is_some() {
        dispatch(isa, Gemv { x, k, w, first, out });
        return;
    }
    // Blocks that start in the middle of 16 columns: widen a few rows, then multiply those.
    let mut wide = vec![0.0; ROWS * k];
    for (group, out) in out.chunks_mut(ROWS).enumerate() {
        let wide = &mut wide[..out.len() * k];
        if k > 0 {
            for (r, wide) in wide.chunks_exact_mut(k).enumerate() {
                w.widen(isa, first + group * ROWS + r, wide);
            }
        }
        let dense = Dense::new(F32, bytes_of_f32(wide), out.len(), k);
        dispatch(isa, Gemv { x, k, w: dense, first: 0, out });
    }
}

struct Gemv<'a, W> {
    x: &'a [f32],
    k: usize,
    w: W,
    first: usize,
    out: &'a mut [f32],
}

impl<W: Weights> Kernel for Gemv<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (groups, rest) = self.out.as_chunks_mut::<ROWS>();
        let rest_first = self.first + groups.len() * ROWS;
        for (group, out) in groups.iter_mut().enumerate() {
            let acc = rows::<S, W, ROWS>(s, self.x, self.k, self.w, self.first + group * ROWS);
            *out = s.sum4(acc);
        }
        for (r, out) in rest.iter_mut().enumerate() {
            let [acc] = rows::<S, W, 1>(s, self.x, self.k, self.w, rest_first + r);
            *out = s.sum(acc);
        }
    }
}

/// The lanes of R rows from `first`.
#[inline(always)]
fn rows<S: Simd, W: Weights, const R: usize>(s: S, x: &[f32], k: usize, w: W, first: usize) -> [S::F; R] {
    let mut acc = [s.splat(0.0); R];
    let mut bytes: [&[u8]; R] = [&[]; R];
    for (r, bytes) in bytes.iter_mut().enumerate() {
        *bytes = w.row(first + r);
    }
    let span = w.span().unwrap_or(usize::MAX);
    let (mut start, mut index) = (0, 0);
    while start < k {
        let end = start.saturating_add(span).min(k);
        let mut scales = [s.splat(0.0); R];
        for (r, scale) in scales.iter_mut().enumerate() {
            *scale = w.scale(s, first + r, index);
        }
        let (x16, x_tail) = x[start..end].as_chunks::<16>();
        // A cache line of each row at a time.
        let vectors = 64 / (16 * W::SIZE);
        for (line, x) in x16.chunks(vectors).enumerate() {
            let at = start * W::SIZE + 64 * line;
            // Rows lie one after the other: behind the end of row r comes row r + R, which the next group reads.
            let ahead = at + AHEAD + if at + AHEAD < k * W::SIZE { 0 } else { (R - 1) * k * W::SIZE };
            for bytes in bytes {
                s.prefetch(bytes.as_ptr().wrapping_add(ahead));
            }
            for (i, x) in x.iter().enumerate() {
                let x = s.load(x);
                let at = at + 16 * W::SIZE * i;
                for r in 0..R {
                    // SAFETY: every row has k * SIZE bytes, and the 16 columns from `at` lie before `end <= k`.
                    let chunk = unsafe { bytes[r].get_unchecked(at..at + 16 * W::SIZE) };
                    acc[r] = s.fma(x, w.load(s, chunk, scales[r]), acc[r]);
                }
            }
        }
        if !x_tail.is_empty() {
            let x = s.load(&pad_f32(x_tail));
            for r in 0..R {
                let tail = &bytes[r][(end - x_tail.len()) * W::SIZE..end * W::SIZE];
                acc[r] = s.fma(x, w.load_tail(s, tail, scales[r]), acc[r]);
            }
        }
        start = end;
        index += 1;
    }
    acc
}
