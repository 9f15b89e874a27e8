//! The lanes in plain Rust: the definition that the vector paths must match bit for bit.

use super::{Simd, sum_lanes};
use crate::e4m3::DECODE;

/// Needs no instructions beyond the baseline of the target.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// Bits of 448.0, of 2^-6 and of 2^-10.
const MAX_BITS: u32 = 0x43e0_0000;
const MIN_NORMAL_BITS: u32 = 0x3c80_0000;
const HALF_SUBNORMAL_BITS: u32 = 0x3a80_0000;

/// The e4m3 code of a float, given and computed in bits. Normal results: add half of the dropped 20 bits, ties to even
/// by the lowest kept bit, and rebias the exponent. Subnormal results: adding 2^14 puts multiples of 2^-9 into the
/// lowest mantissa bits, rounded by the FPU. A carry into the next exponent is right in both.
#[inline(always)]
pub(crate) fn encode_bits(bits: u32, nan: u8) -> u8 {
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return nan;
    }
    let a = magnitude.min(MAX_BITS);
    let code = if a < MIN_NORMAL_BITS {
        (f32::from_bits(a) + 16384.0).to_bits() - 16384f32.to_bits()
    } else {
        ((a + 0x7_ffff + ((a >> 20) & 1)) >> 20) - (120 << 3)
    };
    code as u8 | ((bits >> 24) & 0x80) as u8
}

/// The bits of an f32 rounded to bfloat16, nearest even, and widened again. NaN keeps its sign and becomes quiet.
#[inline(always)]
pub(crate) fn round_bf16_bits(bits: u32) -> u32 {
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return (bits | 0x40_0000) & 0xffff_0000;
    }
    (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000
}

/// Applies a function to each lane.
macro_rules! lanes {
    (|$l:ident| $e:expr) => {{
        let mut out = [0.0f32; 16];
        for $l in 0..16 {
            out[$l] = $e;
        }
        out
    }};
}

impl Simd for Portable {
    type F = [f32; 16];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        *out = x;
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> Self::F {
        lanes!(|l| f32::from_bits(u32::from(u16::from_le_bytes([x[2 * l], x[2 * l + 1]])) << 16))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Self::F {
        lanes!(|l| half::f16::from_le_bytes([x[2 * l], x[2 * l + 1]]).to_f32_const())
    }
    #[inline(always)]
    fn load_e4m3_256th(self, codes: &[u8; 16]) -> Self::F {
        lanes!(|l| DECODE[codes[l] as usize] * (1.0 / 256.0))
    }
    #[inline(always)]
    fn load_e4m3_quad(self, codes: &[u8; 64]) -> [Self::F; 4] {
        [0, 8, 32, 40].map(|c| lanes!(|l| DECODE[codes[c + 16 * (l / 8) + l % 8] as usize] * (1.0 / 256.0)))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|l| a[l] + b[l])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|l| a[l] - b[l])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|l| a[l] * b[l])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|l| a[l] / b[l])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lanes!(|l| a[l].mul_add(b[l], c[l]))
    }
    #[inline(always)]
    fn scale_or_zero(self, v: Self::F, magic: Self::F, x: Self::F, limit: Self::F) -> Self::F {
        lanes!(|l| {
            let power = f32::from_bits((magic[l].to_bits() << 23).wrapping_add(0x3f80_0000));
            if x[l] < limit[l] { 0.0 } else { v[l] * power }
        })
    }
    #[inline(always)]
    fn round_bf16(self, x: Self::F) -> Self::F {
        lanes!(|l| f32::from_bits(round_bf16_bits(x[l].to_bits())))
    }
    #[inline(always)]
    fn encode(self, y: Self::F, nan: u8) -> [u8; 16] {
        y.map(|y| encode_bits(y.to_bits(), nan))
    }
    #[inline(always)]
    fn flushed(self, x: Self::F, y: Self::F) -> u32 {
        let mut count = 0;
        for l in 0..16 {
            let (x, y) = (x[l].to_bits() & 0x7fff_ffff, y[l].to_bits() & 0x7fff_ffff);
            count += u32::from(x != 0 && y <= HALF_SUBNORMAL_BITS);
        }
        count
    }
    #[inline(always)]
    fn at_most(self, x: Self::F, limit: Self::F) -> Self::F {
        lanes!(|l| if x[l] > limit[l] { limit[l] } else { x[l] })
    }
    #[inline(always)]
    fn at_least(self, x: Self::F, least: Self::F) -> Self::F {
        lanes!(|l| if x[l] > least[l] { x[l] } else { least[l] })
    }
    #[inline(always)]
    fn beyond(self, y: Self::F, limit: u32) -> u32 {
        let mut count = 0;
        for y in y {
            let y = y.to_bits() & 0x7fff_ffff;
            count += u32::from(y > limit && y <= 0x7f80_0000);
        }
        count
    }
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        sum_lanes(x)
    }
    #[inline(always)]
    fn max_abs_blocks_u16(self, x: &[[u8; 64]], per_block: usize, acc: &mut [[u16; 32]]) {
        for (x, acc) in x.chunks(per_block).zip(acc) {
            for x in x {
                for l in 0..32 {
                    acc[l] = acc[l].max(u16::from_le_bytes([x[2 * l], x[2 * l + 1]]) & 0x7fff);
                }
            }
        }
    }
    #[inline(always)]
    fn max_abs_blocks_u32(self, x: &[[u8; 64]], per_block: usize, acc: &mut [[u32; 16]]) {
        for (x, acc) in x.chunks(per_block).zip(acc) {
            for x in x {
                for l in 0..16 {
                    let bits = u32::from_le_bytes([x[4 * l], x[4 * l + 1], x[4 * l + 2], x[4 * l + 3]]);
                    acc[l] = acc[l].max(bits & 0x7fff_ffff);
                }
            }
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, _p: *const T) {}
}
