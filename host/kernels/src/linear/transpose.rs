//! Codes of sixteen rows into cache lines, on targets with 128-bit registers in their baseline: SSE2 or NEON.

use super::packed::Line;

#[cfg(target_arch = "x86_64")]
mod bytes {
    use std::arch::x86_64::*;
    pub(super) type Bytes = __m128i;

    #[inline(always)]
    pub(super) fn load(x: &[u8; 16]) -> Bytes {
        // SAFETY: 16 bytes are readable behind the reference; SSE2 is in the baseline.
        unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
    }
    #[inline(always)]
    pub(super) fn store(x: Bytes, out: &mut [u8; 16]) {
        // SAFETY: 16 bytes are writable behind the reference; SSE2 is in the baseline.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), x) }
    }
    /// The first or the last eight bytes of both, one of `a`, one of `b`.
    #[inline(always)]
    pub(super) fn interleave(last: bool, a: Bytes, b: Bytes) -> Bytes {
        // SAFETY: SSE2 is in the baseline.
        unsafe { if last { _mm_unpackhi_epi8(a, b) } else { _mm_unpacklo_epi8(a, b) } }
    }
}

#[cfg(target_arch = "aarch64")]
mod bytes {
    use std::arch::aarch64::*;
    pub(super) type Bytes = uint8x16_t;

    #[inline(always)]
    pub(super) fn load(x: &[u8; 16]) -> Bytes {
        // SAFETY: 16 bytes are readable behind the reference; NEON is in the baseline.
        unsafe { vld1q_u8(x.as_ptr()) }
    }
    #[inline(always)]
    pub(super) fn store(x: Bytes, out: &mut [u8; 16]) {
        // SAFETY: 16 bytes are writable behind the reference; NEON is in the baseline.
        unsafe { vst1q_u8(out.as_mut_ptr(), x) }
    }
    /// The first or the last eight bytes of both, one of `a`, one of `b`.
    #[inline(always)]
    pub(super) fn interleave(last: bool, a: Bytes, b: Bytes) -> Bytes {
        // SAFETY: NEON is in the baseline.
        unsafe { if last { vzip2q_u8(a, b) } else { vzip1q_u8(a, b) } }
    }
}
use bytes::{Bytes, interleave, load, store};

/// 16x16 codes, row-major, into four lines of [`super::packed::Codes::Columns`].
#[inline(always)]
pub(super) fn columns(rows: &[&[u8; 16]; 16], lines: &mut [Line; 4]) {
    let x: [Bytes; 16] = std::array::from_fn(|r| load(rows[r]));
    // Eight rows at a time: after three rounds of interleaving, register i holds columns 2 i and 2 i + 1 of them.
    let eight = |x: &[Bytes]| -> [Bytes; 8] {
        // Rows r and r + 4 side by side, then + 2, then + 1.
        let a: [Bytes; 8] = std::array::from_fn(|i| interleave(i % 2 == 1, x[i / 2], x[i / 2 + 4]));
        // a[2 r + h]: columns 8 h .. 8 h + 8 of rows r, r + 4.
        let b: [Bytes; 8] = std::array::from_fn(|i| {
            let (r, h, part) = (i / 4, i / 2 % 2, i % 2);
            interleave(part == 1, a[2 * r + h], a[2 * (r + 2) + h])
        });
        // b[4 r + 2 h + p]: columns 8 h + 4 p .. + 4 of rows r, r + 2, r + 4, r + 6.
        std::array::from_fn(|i| interleave(i % 2 == 1, b[i / 2], b[4 + i / 2]))
    };
    let (top, bottom) = (eight(&x[..8]), eight(&x[8..]));
    for (i, line) in lines.iter_mut().enumerate() {
        let [a, b, c, d] = line.0.as_chunks_mut::<16>().0 else { unreachable!("64 bytes") };
        store(top[2 * i], a);
        store(bottom[2 * i], b);
        store(top[2 * i + 1], c);
        store(bottom[2 * i + 1], d);
    }
}

/// 16x16 codes, row-major, into four lines of [`super::packed::Codes::Lanes`].
#[inline(always)]
pub(super) fn lanes(rows: &[&[u8; 16]; 16], lines: &mut [Line; 4]) {
    for (r, row) in rows.iter().enumerate() {
        for (line, four) in lines.iter_mut().zip(row.as_chunks::<4>().0) {
            line.0.as_chunks_mut::<4>().0[r] = *four;
        }
    }
}
