//! Sixteen f32 lanes, once in plain Rust and once per instruction set.
//!
//! A kernel is written once, generic over [`Simd`], and [`dispatch`] compiles it for every [`Isa`]. The lanes are part
//! of the definition of each result (which lane takes which column, and the tree that sums them), so that all paths
//! give the same bits. A value of a `Simd` type is a token: it exists only where its instructions were detected, which
//! is what makes its methods safe to call.
//!
//! Everything between [`dispatch`] and an intrinsic must be `#[inline(always)]`: code that is not inlined into the
//! function with the target feature would call each intrinsic out of line.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;
mod portable;

use crate::isa::Isa;
use crate::steps::Steps;
pub(crate) use portable::{Portable, encode_bits, round_bf16_bits};
use std::mem::MaybeUninit;

#[cfg(target_endian = "big")]
compile_error!("the kernels read little-endian tensors in place");

/// Sixteen f32 lanes and what the kernels do with them. Arithmetic is IEEE with round to nearest even; MXCSR
/// (or FPCR) is never touched, so subnormals count.
pub(crate) trait Simd: Copy {
    /// The lanes.
    type F: Copy;
    /// Whether there are 32 registers of 16 lanes, or only 16 of 8.
    const WIDE: bool;
    /// Whether products of some more rows than fit into the registers go through a block of weights in several passes, each of
    /// which decodes it. Elsewhere that is not compiled: it is much code.
    const PASSES: bool = false;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; 16]) -> Self::F;
    fn store(self, x: Self::F, out: &mut [f32; 16]);
    /// 16 bfloat16, widened exactly.
    fn load_bf16(self, x: &[u8; 32]) -> Self::F;
    /// 16 binary16, widened exactly.
    fn load_f16(self, x: &[u8; 32]) -> Self::F;
    /// 16 e4m3 codes as value / 256, exactly. The vector paths take the NaN codes for ±480 / 256.
    fn load_e4m3_256th(self, codes: &[u8; 16]) -> Self::F;
    /// A quad of [`crate::linear::PackedMatrix`], packed for this path: four columns of sixteen e4m3 codes, each as value *
    /// [`Simd::CODE_UNIT`], exactly.
    fn load_e4m3_quad(self, codes: &[u8; 64]) -> [Self::F; 4];
    /// 2^-8, or 2^-120 where the fields of a code are only moved into place: subnormal codes become subnormal floats.
    const CODE_UNIT: f32 = 1.0 / 256.0;

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c` with one rounding.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `v * 2^n` for `magic = 1.5 * 2^23 + n` and -126 <= n <= 127, 0 in lanes where `x < limit`. Last step of exp.
    fn scale_or_zero(self, v: Self::F, magic: Self::F, x: Self::F, limit: Self::F) -> Self::F;
    /// Rounds to bfloat16 (nearest even) and widens again; NaN stays NaN.
    fn round_bf16(self, x: Self::F) -> Self::F;

    /// e4m3 codes: clamp to ±448, nearest even, `nan` for every NaN.
    fn encode(self, y: Self::F, nan: u8) -> [u8; 16];
    /// How many lanes of `x` are not zero though `y` encodes to zero (|y| <= 2^-10).
    fn flushed(self, x: Self::F, y: Self::F) -> u32;
    /// [`Simd::encode`] and [`Simd::flushed`]; a path may take a shortcut where all lanes are normal numbers.
    #[inline(always)]
    fn encode_counting(self, x: Self::F, y: Self::F, nan: u8) -> ([u8; 16], u32) {
        (self.encode(y, nan), self.flushed(x, y))
    }
    /// The smaller of `x` and `limit`; NaN in `x` stays.
    fn at_most(self, x: Self::F, limit: Self::F) -> Self::F;
    /// `x` where it is above `least`, else `least`: NaN in `x` does not win.
    fn at_least(self, x: Self::F, least: Self::F) -> Self::F;
    /// A row of bfloat16 to codes by the steps of its blocks, `per_block` chunks each but for the last. Writes all
    /// codes, and sets `general` of the blocks with values that the steps do not hold for: the codes of those are wrong.
    /// Meanwhile asks for what lies `ahead` bytes behind, unless that is 0. `true`: some block is `general`.
    #[inline(always)]
    fn cast_by_steps(
        self,
        x: &[[u8; 64]],
        per_block: usize,
        steps: &[Steps],
        ahead: usize,
        codes: &mut [[MaybeUninit<u8>; 32]],
        general: &mut [bool],
    ) -> bool {
        let _ = ahead;
        let mut any = false;
        for (((x, codes), steps), general) in
            x.chunks(per_block).zip(codes.chunks_mut(per_block)).zip(steps).zip(general)
        {
            let mut most = 0;
            for (x, code) in x.as_flattened().as_chunks::<2>().0.iter().zip(codes.as_flattened_mut()) {
                let bits = u16::from_le_bytes(*x);
                let above = (bits & 0x7fff).wrapping_sub(steps.low);
                most = most.max(above);
                let step = u16::from(steps.table[usize::from(bits >> 3 & 15)]);
                code.write((above.wrapping_add(step) >> 4) as u8 | (bits >> 8 & 0x80) as u8);
            }
            *general = most > steps.span;
            any |= *general;
        }
        any
    }
    /// How many lanes have `limit < |y|` by their bits, NaN not counted.
    fn beyond(self, y: Self::F, limit: u32) -> u32;

    /// The fixed tree: `l + (l+8)`, then +4, +2, +1.
    fn sum(self, x: Self::F) -> f32;
    /// Four trees at once.
    #[inline(always)]
    fn sum4(self, x: [Self::F; 4]) -> [f32; 4] {
        [self.sum(x[0]), self.sum(x[1]), self.sum(x[2]), self.sum(x[3])]
    }

    /// Lane-wise maximum of the bits without sign (u16 each) of each `per_block` chunks of `x` into its `acc`.
    fn max_abs_blocks_u16(self, x: &[[u8; 64]], per_block: usize, acc: &mut [[u16; 32]]);
    /// The same for u32.
    fn max_abs_blocks_u32(self, x: &[[u8; 64]], per_block: usize, acc: &mut [[u32; 16]]);
    /// [`Simd::max_abs_blocks_u32`] of one block.
    #[inline(always)]
    fn max_abs_u32(self, x: &[[u8; 64]], acc: &mut [u32; 16]) {
        self.max_abs_blocks_u32(x, x.len().max(1), std::slice::from_mut(acc));
    }

    /// Asks for the cache line of `p`; never faults, whatever `p` is.
    fn prefetch<T>(self, p: *const T);

    /// `e^x` for x <= 88, the same bits on all paths: argument reduction by `n = round(x / ln 2)` with ln 2
    /// in two parts (Cody and Waite), then a polynomial of degree 6 (Taylor; |r| <= 0.347), relative error < 3e-7.
    /// 0 for x < -87, NaN for NaN.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        let magic = self.splat(12_582_912.0);
        let shifted = self.fma(x, self.splat(std::f32::consts::LOG2_E), magic);
        let n = self.sub(shifted, magic);
        let r = self.fma(n, self.splat(-0.693_359_4), x);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.0 / 720.0);
        for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = self.fma(p, r, self.splat(c));
        }
        self.scale_or_zero(p, shifted, x, self.splat(-87.0))
    }

    /// `1 / (1 + e^-x)`.
    #[inline(always)]
    fn sigmoid(self, x: Self::F) -> Self::F {
        let one = self.splat(1.0);
        let e = self.exp(self.at_most(self.sub(self.splat(0.0), x), self.splat(88.0)));
        self.div(one, self.add(one, e))
    }
}

/// A computation that is generic over the lanes. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Out;
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Runs a kernel with the instructions of `isa`, or with the best that the hardware has where it lacks them.
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Out {
    match isa.usable() {
        #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
        Isa::Neon => neon::run(kernel),
        // SAFETY: `isa` is at most what `Isa::hardware` detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::run::<K, false>(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2Subnormal => unsafe { avx2::run::<K, true>(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::run(kernel) },
        // Also what other architectures have; `usable` names none of them.
        _ => kernel.run(Portable),
    }
}

/// Up to 15 elements of `N / 16` bytes each, padded with zero bytes to a full chunk.
#[inline(always)]
pub(crate) fn pad<const N: usize>(tail: &[u8]) -> [u8; N] {
    let mut full = [0; N];
    full[..tail.len()].copy_from_slice(tail);
    full
}

/// Up to 15 floats, padded with +0.0.
#[inline(always)]
pub(crate) fn pad_f32(tail: &[f32]) -> [f32; 16] {
    let mut full = [0.0; 16];
    full[..tail.len()].copy_from_slice(tail);
    full
}

/// The bytes of a slice of u16.
#[inline(always)]
pub fn bytes_of_u16(x: &[u16]) -> &[u8] {
    // SAFETY: every byte of a u16 is initialized, u8 has no alignment, and the length in bytes is that of the slice.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}

/// The bytes of a slice of f32.
#[inline(always)]
pub fn bytes_of_f32(x: &[f32]) -> &[u8] {
    // SAFETY: every byte of an f32 is initialized, u8 has no alignment, and the length in bytes is that of the slice.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}

/// The fixed tree over lanes in memory; the reference for `Simd::sum`.
#[inline(always)]
pub(crate) fn sum_lanes(mut x: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            x[l] += x[l + half];
        }
    }
    x[0]
}
