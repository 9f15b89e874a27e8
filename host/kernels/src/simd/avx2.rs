//! The lanes as two AVX2 registers (lanes 0 to 7 and 8 to 15), with FMA and F16C.

use super::{Kernel, Simd};
use crate::steps::Steps;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Exists only inside [`run`], that is, where AVX2, FMA and F16C were detected.
/// `SUBNORMAL`: [`crate::isa::Isa::Avx2Subnormal`].
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const SUBNORMAL: bool>(());

/// Runs a kernel compiled for AVX2.
///
/// # Safety
/// The hardware must be at least [`crate::isa::Isa::Avx2`].
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(crate) unsafe fn run<K: Kernel, const SUBNORMAL: bool>(kernel: K) -> K::Out {
    kernel.run(Avx2::<SUBNORMAL>(()))
}

const ABS: i32 = 0x7fff_ffff;

/// The rest of the fixed tree for four vectors of 8 lanes: +4, +2, +1.
///
/// # Safety
/// Needs AVX; callers hold a token of this module or of `avx512`.
#[inline(always)]
pub(super) unsafe fn sum4_of_8(x: [__m256; 4]) -> __m128 {
    // SAFETY: the caller has AVX.
    unsafe {
        let a = _mm_add_ps(_mm256_castps256_ps128(x[0]), _mm256_extractf128_ps::<1>(x[0]));
        let b = _mm_add_ps(_mm256_castps256_ps128(x[1]), _mm256_extractf128_ps::<1>(x[1]));
        let c = _mm_add_ps(_mm256_castps256_ps128(x[2]), _mm256_extractf128_ps::<1>(x[2]));
        let d = _mm_add_ps(_mm256_castps256_ps128(x[3]), _mm256_extractf128_ps::<1>(x[3]));
        // [a0+a2, a1+a3, b0+b2, b1+b3] and the same of c and d
        let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
        let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
        _mm_add_ps(_mm_shuffle_ps::<0x88>(ab, cd), _mm_shuffle_ps::<0xdd>(ab, cd))
    }
}

/// Codes of 32 bfloat16 by their steps; keeps the most that any lies above the lowest of its block.
///
/// # Safety
/// Needs AVX2, which callers prove by a token, and 64 readable bytes.
#[inline(always)]
unsafe fn by_steps(x: *const __m256i, table: __m256i, low: __m256i, most: &mut __m256i) -> __m256i {
    // SAFETY: the caller has AVX2; both halves are readable.
    unsafe {
        let (x0, x1) = (_mm256_loadu_si256(x), _mm256_loadu_si256(x.add(1)));
        // With all signs set, the arithmetic shift leaves the top bit of every high byte set: there the shuffle gives
        // 0, so that its bytes are 16-bit numbers.
        let (sign, index) = (_mm256_set1_epi16(i16::MIN), _mm256_set1_epi16(0xff0fu16 as i16));
        let (n0, n1) = (_mm256_or_si256(x0, sign), _mm256_or_si256(x1, sign));
        let s0 = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srai_epi16::<3>(n0), index));
        let s1 = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srai_epi16::<3>(n1), index));
        let (a0, a1) = (_mm256_sub_epi16(n0, low), _mm256_sub_epi16(n1, low));
        *most = _mm256_max_epu16(*most, _mm256_max_epu16(a0, a1));
        let c0 = _mm256_srli_epi16::<4>(_mm256_add_epi16(a0, s0));
        let c1 = _mm256_srli_epi16::<4>(_mm256_add_epi16(a1, s1));
        // Saturation to 8 bits keeps the sign.
        let signs = _mm256_and_si256(_mm256_packs_epi16(x0, x1), _mm256_set1_epi8(i8::MIN));
        _mm256_permute4x64_epi64::<0xd8>(_mm256_or_si256(_mm256_packus_epi16(c0, c1), signs))
    }
}

/// Eight lanes of four codes each as four columns of floats, in units of 2^-120. A code in the upper byte of 16 bits, shifted
/// right by four with its sign, is a binary32 but for the copies of the sign, which the mask clears. One shift brings two of
/// the four to such a place; the lower halves go up by a product with 2^12, since units that shift are scarcer than those
/// that multiply.
///
/// # Safety
/// Needs AVX2, which callers prove by a token.
#[inline(always)]
unsafe fn four_columns(all: __m256i) -> [__m256; 4] {
    // SAFETY: the caller has AVX2.
    unsafe {
        let (mask, up) = (_mm256_set1_epi32(0x87f0_0000u32 as i32), _mm256_set1_epi32(1 << 12));
        let shifted = _mm256_slli_epi16::<8>(all);
        [
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_madd_epi16(shifted, up), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_madd_epi16(all, up), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_srai_epi32::<4>(shifted), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_srai_epi32::<4>(all), mask)),
        ]
    }
}

impl<const SUBNORMAL: bool> Avx2<SUBNORMAL> {
    #[inline(always)]
    fn abs_bits(self, x: __m256) -> __m256i {
        // SAFETY: the token proves the feature.
        unsafe { _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(ABS)) }
    }
    /// Codes of 8 floats as 32-bit integers; the steps of `encode_bits`.
    #[inline(always)]
    fn encode8(self, y: __m256, nan: u8) -> __m256i {
        // SAFETY: the token proves the feature.
        unsafe {
            let bits = _mm256_castps_si256(y);
            let a = _mm256_min_epi32(self.abs_bits(y), _mm256_set1_epi32(0x43e0_0000));
            let odd = _mm256_and_si256(_mm256_srli_epi32::<20>(a), _mm256_set1_epi32(1));
            let rebias = _mm256_set1_epi32(0x7_ffff - (120 << 23));
            let normal = _mm256_srli_epi32::<20>(_mm256_add_epi32(_mm256_add_epi32(a, rebias), odd));
            let shifted = _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(a), _mm256_set1_ps(16384.0)));
            let subnormal = _mm256_sub_epi32(shifted, _mm256_set1_epi32(16384f32.to_bits() as i32));
            let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c80_0000), a);
            let code = _mm256_blendv_epi8(normal, subnormal, small);
            let sign = _mm256_and_si256(_mm256_srli_epi32::<24>(bits), _mm256_set1_epi32(0x80));
            let unordered = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(y, y));
            _mm256_blendv_epi8(_mm256_or_si256(code, sign), _mm256_set1_epi32(i32::from(nan)), unordered)
        }
    }
}

/// Applies an expression to both halves. No closure: one that is not inlined would lose the target features.
macro_rules! both {
    (|$h:ident| $e:expr) => {{
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            [
                {
                    let $h = 0;
                    $e
                },
                {
                    let $h = 1;
                    $e
                },
            ]
        }
    }};
}

impl<const SUBNORMAL: bool> Simd for Avx2<SUBNORMAL> {
    type F = [__m256; 2];
    const WIDE: bool = false;
    const PASSES: bool = true;
    const CODE_UNIT: f32 = if SUBNORMAL { f32::from_bits((127 - 120) << 23) } else { 1.0 / 256.0 };

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: the token proves the feature.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        // SAFETY: the token proves the feature; both halves of the array are readable.
        unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        // SAFETY: the token proves the feature; both halves of the array are writable.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), x[1]);
        }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> Self::F {
        // SAFETY: the token proves the feature; each half is 16 bytes inside the array.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(16).cast()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Self::F {
        // SAFETY: the token proves the feature; each half is 16 bytes inside the array.
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast()));
            [low, _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(16).cast()))]
        }
    }
    #[inline(always)]
    fn load_e4m3_256th(self, codes: &[u8; 16]) -> Self::F {
        // See `avx512.rs` for why this is the value / 256.
        // SAFETY: the token proves the feature; 16 bytes are readable behind the reference.
        unsafe {
            let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(codes.as_ptr().cast()));
            let half = _mm256_and_si256(_mm256_slli_epi16::<7>(wide), _mm256_set1_epi16(0xbfffu16 as i16));
            [_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(half))]
        }
    }
    #[inline(always)]
    fn load_e4m3_quad(self, codes: &[u8; 64]) -> [Self::F; 4] {
        // SAFETY: the token proves the features; both halves of the array are readable.
        let (a, b) =
            unsafe { (_mm256_loadu_si256(codes.as_ptr().cast()), _mm256_loadu_si256(codes.as_ptr().add(32).cast())) };
        if SUBNORMAL {
            // SAFETY: the token proves the features.
            let (a, b) = unsafe { (four_columns(a), four_columns(b)) };
            return [[a[0], b[0]], [a[1], b[1]], [a[2], b[2]], [a[3], b[3]]];
        }
        // SAFETY: the token proves the features.
        unsafe {
            let zero = _mm256_setzero_si256();
            // Each code in the high half of 16 bits.
            let words = [
                _mm256_unpacklo_epi8(zero, a),
                _mm256_unpackhi_epi8(zero, a),
                _mm256_unpacklo_epi8(zero, b),
                _mm256_unpackhi_epi8(zero, b),
            ];
            let mut out = [[_mm256_setzero_ps(); 2]; 4];
            for i in 0..4 {
                // Shifted right by one, it is a binary16; value / 256 for the reason in `avx512.rs`.
                let half = _mm256_and_si256(_mm256_srai_epi16::<1>(words[i]), _mm256_set1_epi16(0xbfffu16 as i16));
                let high = _mm256_extracti128_si256::<1>(half);
                out[i] = [_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(high)];
            }
            out
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(|h| _mm256_add_ps(a[h], b[h]))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both!(|h| _mm256_sub_ps(a[h], b[h]))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(|h| _mm256_mul_ps(a[h], b[h]))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both!(|h| _mm256_div_ps(a[h], b[h]))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(|h| _mm256_fmadd_ps(a[h], b[h], c[h]))
    }
    #[inline(always)]
    fn scale_or_zero(self, v: Self::F, magic: Self::F, x: Self::F, limit: Self::F) -> Self::F {
        both!(|h| {
            let shifted = _mm256_slli_epi32::<23>(_mm256_castps_si256(magic[h]));
            let power = _mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_set1_epi32(0x3f80_0000)));
            let zero = _mm256_cmp_ps::<_CMP_LT_OQ>(x[h], limit[h]);
            _mm256_andnot_ps(zero, _mm256_mul_ps(v[h], power))
        })
    }
    #[inline(always)]
    fn round_bf16(self, x: Self::F) -> Self::F {
        both!(|h| {
            let bits = _mm256_castps_si256(x[h]);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x[h], x[h]));
            let all = _mm256_blendv_epi8(rounded, quiet, nan);
            _mm256_castsi256_ps(_mm256_and_si256(all, _mm256_set1_epi32(0xffff_0000u32 as i32)))
        })
    }
    #[inline(always)]
    fn encode(self, y: Self::F, nan: u8) -> [u8; 16] {
        let (low, high) = (self.encode8(y[0], nan), self.encode8(y[1], nan));
        // SAFETY: the token proves the feature; a 128-bit register and 16 bytes have the same size.
        unsafe {
            // Packing works within 128-bit lanes; the permutation puts the quarters in order.
            let words = _mm256_permute4x64_epi64::<0xd8>(_mm256_packus_epi32(low, high));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            std::mem::transmute::<__m128i, [u8; 16]>(bytes)
        }
    }
    #[inline(always)]
    fn flushed(self, x: Self::F, y: Self::F) -> u32 {
        let mut count = 0;
        for h in 0..2 {
            // SAFETY: the token proves the feature.
            unsafe {
                let kept = _mm256_cmpgt_epi32(self.abs_bits(y[h]), _mm256_set1_epi32(0x3a80_0000));
                let zero = _mm256_cmpeq_epi32(self.abs_bits(x[h]), _mm256_setzero_si256());
                let fine = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_or_si256(kept, zero)));
                count += 8 - fine.count_ones();
            }
        }
        count
    }
    #[inline(always)]
    fn at_most(self, x: Self::F, limit: Self::F) -> Self::F {
        // Of NaN and a number, minps gives the second.
        both!(|h| _mm256_min_ps(limit[h], x[h]))
    }
    #[inline(always)]
    fn encode_counting(self, x: Self::F, y: Self::F, nan: u8) -> ([u8; 16], u32) {
        // SAFETY: the token proves the feature; a 128-bit register and 16 bytes have the same size.
        unsafe {
            let (a, b) = (self.abs_bits(y[0]), self.abs_bits(y[1]));
            // One unsigned comparison finds NaN and everything below 2^-6; both are rare in weights.
            let low = 0x3c80_0000;
            let (low, span) = (_mm256_set1_epi32(low), _mm256_set1_epi32(0x7f80_0000 - low));
            let above = _mm256_max_epu32(_mm256_sub_epi32(a, low), _mm256_sub_epi32(b, low));
            let normal = _mm256_cmpeq_epi32(_mm256_max_epu32(above, span), span);
            if _mm256_movemask_epi8(normal) != -1 {
                return (self.encode(y, nan), self.flushed(x, y));
            }
            // The steps of `encode` for normal results; the codes are packed before they get their signs.
            let (max, one) = (_mm256_set1_epi32(0x43e0_0000), _mm256_set1_epi32(1));
            let rebias = _mm256_set1_epi32(0x7_ffff - (120 << 23));
            let (a, b) = (_mm256_min_epi32(a, max), _mm256_min_epi32(b, max));
            let odd_a = _mm256_and_si256(_mm256_srli_epi32::<20>(a), one);
            let odd_b = _mm256_and_si256(_mm256_srli_epi32::<20>(b), one);
            let a = _mm256_srli_epi32::<20>(_mm256_add_epi32(_mm256_add_epi32(a, rebias), odd_a));
            let b = _mm256_srli_epi32::<20>(_mm256_add_epi32(_mm256_add_epi32(b, rebias), odd_b));
            let codes = _mm256_packus_epi32(a, b);
            // Saturation to 16 bits keeps the sign.
            let signs = _mm256_packs_epi32(_mm256_castps_si256(y[0]), _mm256_castps_si256(y[1]));
            let signs = _mm256_and_si256(_mm256_srli_epi16::<8>(signs), _mm256_set1_epi16(0x80));
            let words = _mm256_permute4x64_epi64::<0xd8>(_mm256_or_si256(codes, signs));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            (std::mem::transmute::<__m128i, [u8; 16]>(bytes), 0)
        }
    }
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
        let chunks = x.len().min(codes.len());
        let mut any = false;
        for (i, (steps, general)) in steps.iter().zip(general).enumerate() {
            // SAFETY: the token proves the feature; all accesses are to whole arrays, `c` below the length of both
            // slices. Prefetching is a hint and never faults.
            unsafe {
                let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(steps.table.as_ptr().cast()));
                let low = _mm256_set1_epi16((steps.low | 0x8000) as i16);
                let span = _mm256_set1_epi16(steps.span as i16);
                let mut most = span;
                for c in i * per_block..chunks.min((i + 1) * per_block) {
                    let x = x.get_unchecked(c).as_ptr();
                    if ahead > 0 {
                        _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(ahead).cast());
                    }
                    let all = by_steps(x.cast(), table, low, &mut most);
                    _mm256_storeu_si256(codes.get_unchecked_mut(c).as_mut_ptr().cast(), all);
                }
                *general = _mm256_movemask_epi8(_mm256_cmpeq_epi16(most, span)) != -1;
                any |= *general;
            }
        }
        any
    }
    #[inline(always)]
    fn at_least(self, x: Self::F, least: Self::F) -> Self::F {
        // Of NaN and a number, maxps gives the second.
        both!(|h| _mm256_max_ps(x[h], least[h]))
    }
    #[inline(always)]
    fn beyond(self, y: Self::F, limit: u32) -> u32 {
        let mut count = 0;
        for y in y {
            // SAFETY: the token proves the feature.
            unsafe {
                let a = self.abs_bits(y);
                let over = _mm256_cmpgt_epi32(a, _mm256_set1_epi32(limit as i32));
                let nan = _mm256_cmpgt_epi32(a, _mm256_set1_epi32(0x7f80_0000));
                let mask = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_andnot_si256(nan, over)));
                count += mask.count_ones();
            }
        }
        count
    }
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        // SAFETY: the token proves the feature.
        unsafe {
            let x = _mm256_add_ps(x[0], x[1]);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    fn sum4(self, x: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: the token proves the feature; four lanes and [f32; 4] have the same size.
        unsafe {
            let [a, b, c, d] = x;
            let sums = sum4_of_8([
                _mm256_add_ps(a[0], a[1]),
                _mm256_add_ps(b[0], b[1]),
                _mm256_add_ps(c[0], c[1]),
                _mm256_add_ps(d[0], d[1]),
            ]);
            std::mem::transmute::<__m128, [f32; 4]>(sums)
        }
    }
    #[inline(always)]
    fn max_abs_blocks_u16(self, x: &[[u8; 64]], per_block: usize, acc: &mut [[u16; 32]]) {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the token proves the feature; all accesses are to 32 bytes inside arrays, `c` below the length.
            unsafe {
                let (low, high) = (acc.as_mut_ptr(), acc.as_mut_ptr().add(16));
                let (mut max0, mut max1) = (_mm256_loadu_si256(low.cast()), _mm256_loadu_si256(high.cast()));
                let abs = _mm256_set1_epi16(0x7fff);
                for c in i * per_block..x.len().min((i + 1) * per_block) {
                    let x = x.get_unchecked(c).as_ptr();
                    let (x0, x1) = (_mm256_loadu_si256(x.cast()), _mm256_loadu_si256(x.add(32).cast()));
                    max0 = _mm256_max_epu16(max0, _mm256_and_si256(x0, abs));
                    max1 = _mm256_max_epu16(max1, _mm256_and_si256(x1, abs));
                }
                _mm256_storeu_si256(low.cast(), max0);
                _mm256_storeu_si256(high.cast(), max1);
            }
        }
    }
    #[inline(always)]
    fn max_abs_blocks_u32(self, x: &[[u8; 64]], per_block: usize, acc: &mut [[u32; 16]]) {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the token proves the feature; all accesses are to 32 bytes inside arrays, `c` below the length.
            unsafe {
                let (low, high) = (acc.as_mut_ptr(), acc.as_mut_ptr().add(8));
                let (mut max0, mut max1) = (_mm256_loadu_si256(low.cast()), _mm256_loadu_si256(high.cast()));
                let abs = _mm256_set1_epi32(ABS);
                for c in i * per_block..x.len().min((i + 1) * per_block) {
                    let x = x.get_unchecked(c).as_ptr();
                    let (x0, x1) = (_mm256_loadu_si256(x.cast()), _mm256_loadu_si256(x.add(32).cast()));
                    max0 = _mm256_max_epu32(max0, _mm256_and_si256(x0, abs));
                    max1 = _mm256_max_epu32(max1, _mm256_and_si256(x1, abs));
                }
                _mm256_storeu_si256(low.cast(), max0);
                _mm256_storeu_si256(high.cast(), max1);
            }
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: prefetching is a hint and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
