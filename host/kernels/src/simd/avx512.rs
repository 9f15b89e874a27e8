//! The lanes as one AVX-512 register.

use super::{Kernel, Simd};
use crate::steps::Steps;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Exists only inside [`run`], that is, where AVX-512 F, BW, VL, DQ, AVX2, FMA and F16C were detected.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Runs a kernel compiled for AVX-512.
///
/// # Safety
/// The hardware must be at least [`crate::isa::Isa::Avx512`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,popcnt")]
pub(crate) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx512(()))
}

const ABS: i32 = 0x7fff_ffff;
/// Imm8 of vcmpps: less-than, quiet; false for NaN.
const LT: i32 = _CMP_LT_OQ;

impl Avx512 {
    #[inline(always)]
    fn bits(self, x: __m512) -> __m512i {
        // SAFETY: the token proves the feature; this is a no-op cast.
        unsafe { _mm512_castps_si512(x) }
    }
    #[inline(always)]
    fn abs_bits(self, x: __m512) -> __m512i {
        // SAFETY: the token proves the feature.
        unsafe { _mm512_and_si512(self.bits(x), _mm512_set1_epi32(ABS)) }
    }
}

impl Simd for Avx512 {
    type F = __m512;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: the token proves the feature.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> __m512 {
        // SAFETY: the token proves the feature; 64 bytes are readable behind the reference.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, x: __m512, out: &mut [f32; 16]) {
        // SAFETY: the token proves the feature; 64 bytes are writable behind the reference.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> __m512 {
        // SAFETY: the token proves the feature; 32 bytes are readable behind the reference.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> __m512 {
        // SAFETY: the token proves the feature; 32 bytes are readable behind the reference.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_e4m3_256th(self, codes: &[u8; 16]) -> __m512 {
        // Sign-extended and shifted by 7, the code's fields lie where binary16 has sign, low exponent and high
        // mantissa bits; the mask clears the copy of the sign in the top exponent bit. binary16 has bias 15 instead
        // of 7, hence / 256; its subnormals convert without a penalty.
        // SAFETY: the token proves the feature; 16 bytes are readable behind the reference.
        unsafe {
            let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(codes.as_ptr().cast()));
            let half = _mm256_and_si256(_mm256_slli_epi16::<7>(wide), _mm256_set1_epi16(0xbfffu16 as i16));
            _mm512_cvtph_ps(half)
        }
    }
    #[inline(always)]
    fn load_e4m3_quad(self, codes: &[u8; 64]) -> [__m512; 4] {
        // As above, with the code in the high half and a shift to the right; `unpack` works within 128 bits, which the
        // order of the quad takes into account.
        // SAFETY: the token proves the features; 64 bytes are readable behind the reference.
        unsafe {
            let (zero, mask) = (_mm512_setzero_si512(), _mm512_set1_epi16(0xbfffu16 as i16));
            let all = _mm512_loadu_si512(codes.as_ptr().cast());
            let even = _mm512_and_si512(_mm512_srai_epi16::<1>(_mm512_unpacklo_epi8(zero, all)), mask);
            let odd = _mm512_and_si512(_mm512_srai_epi16::<1>(_mm512_unpackhi_epi8(zero, all)), mask);
            [
                _mm512_cvtph_ps(_mm512_castsi512_si256(even)),
                _mm512_cvtph_ps(_mm512_castsi512_si256(odd)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(even)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(odd)),
            ]
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the feature.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the feature.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the feature.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the feature.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token proves the feature.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn scale_or_zero(self, v: __m512, magic: __m512, x: __m512, limit: __m512) -> __m512 {
        // SAFETY: the token proves the feature.
        unsafe {
            let power = _mm512_add_epi32(_mm512_slli_epi32::<23>(self.bits(magic)), _mm512_set1_epi32(0x3f80_0000));
            let zero = _mm512_cmp_ps_mask::<LT>(x, limit);
            _mm512_maskz_mul_ps(!zero, v, _mm512_castsi512_ps(power))
        }
    }
    #[inline(always)]
    fn round_bf16(self, x: __m512) -> __m512 {
        // SAFETY: the token proves the feature.
        unsafe {
            let bits = self.bits(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let quiet = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
            _mm512_castsi512_ps(_mm512_and_si512(quiet, _mm512_set1_epi32(0xffff_0000u32 as i32)))
        }
    }
    #[inline(always)]
    fn encode(self, y: __m512, nan: u8) -> [u8; 16] {
        // The same steps as `encode_bits`.
        // SAFETY: the token proves the feature; a 128-bit register and 16 bytes have the same size.
        unsafe {
            let bits = self.bits(y);
            let a = _mm512_min_epi32(self.abs_bits(y), _mm512_set1_epi32(0x43e0_0000));
            let odd = _mm512_and_si512(_mm512_srli_epi32::<20>(a), _mm512_set1_epi32(1));
            // Half of the dropped bits, and the rebias: both are additions to the same number.
            let rebias = _mm512_set1_epi32(0x7_ffff - (120 << 23));
            let normal = _mm512_srli_epi32::<20>(_mm512_add_epi32(_mm512_add_epi32(a, rebias), odd));
            let small = _mm512_cmplt_epi32_mask(a, _mm512_set1_epi32(0x3c80_0000));
            let shifted = self.bits(_mm512_add_ps(_mm512_castsi512_ps(a), _mm512_set1_ps(16384.0)));
            let base = _mm512_set1_epi32(16384f32.to_bits() as i32);
            let code = _mm512_mask_sub_epi32(normal, small, shifted, base);
            // code | (bits >> 24 & 0x80), as one ternary operation: C ? A : B picks by the mask bit.
            let sign_bit = _mm512_set1_epi32(0x80);
            let signed = _mm512_ternarylogic_epi32::<0xca>(sign_bit, _mm512_srli_epi32::<24>(bits), code);
            let unordered = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(y, y);
            let all = _mm512_mask_mov_epi32(signed, unordered, _mm512_set1_epi32(i32::from(nan)));
            std::mem::transmute::<__m128i, [u8; 16]>(_mm512_cvtepi32_epi8(all))
        }
    }
    #[inline(always)]
    fn flushed(self, x: __m512, y: __m512) -> u32 {
        // SAFETY: the token proves the feature.
        unsafe {
            let zero = _mm512_cmple_epi32_mask(self.abs_bits(y), _mm512_set1_epi32(0x3a80_0000));
            // Rare in real weights: the branch saves the count.
            if zero == 0 {
                return 0;
            }
            _mm512_mask_test_epi32_mask(zero, self.bits(x), _mm512_set1_epi32(ABS)).count_ones()
        }
    }
    #[inline(always)]
    fn encode_counting(self, x: __m512, y: __m512, nan: u8) -> ([u8; 16], u32) {
        // SAFETY: the token proves the feature; a 128-bit register and 16 bytes have the same size.
        unsafe {
            let bits = self.bits(y);
            // One unsigned comparison finds NaN and everything below 2^-6; both are rare in weights.
            let low = 0x3c80_0000;
            let above_low = _mm512_sub_epi32(self.abs_bits(y), _mm512_set1_epi32(low));
            let special = _mm512_cmpgt_epu32_mask(above_low, _mm512_set1_epi32(0x7f80_0000 - low));
            if special != 0 {
                return (self.encode(y, nan), self.flushed(x, y));
            }
            // Smaller of the magnitudes with the sign of y; then the steps of `encode` for normal results. The sign
            // bit stands by while constants are added below it.
            const MIN_ABS_SIGN_OF_FIRST: i32 = 0b0010;
            let a = self.bits(_mm512_range_ps::<MIN_ABS_SIGN_OF_FIRST>(y, _mm512_set1_ps(448.0)));
            let odd = _mm512_test_epi32_mask(a, _mm512_set1_epi32(1 << 20));
            let rebias = _mm512_set1_epi32(0x7_ffff - (120 << 23));
            let sum = _mm512_add_epi32(a, rebias);
            let sum = _mm512_mask_sub_epi32(sum, odd, sum, _mm512_set1_epi32(-1));
            let (code, sign_bit) = (_mm512_srli_epi32::<20>(sum), _mm512_set1_epi32(0x80));
            let signed = _mm512_ternarylogic_epi32::<0xca>(sign_bit, _mm512_srli_epi32::<24>(bits), code);
            (std::mem::transmute::<__m128i, [u8; 16]>(_mm512_cvtepi32_epi8(signed)), 0)
        }
    }
    #[inline(always)]
    fn at_most(self, x: __m512, limit: __m512) -> __m512 {
        // Of NaN and a number, minps gives the second.
        // SAFETY: the token proves the feature.
        unsafe { _mm512_min_ps(limit, x) }
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
            // As in `avx2.rs`, all 32 in one register.
            // SAFETY: the token proves the feature; all accesses are to whole arrays, `c` below the length of both
            // slices. Prefetching is a hint and never faults.
            unsafe {
                let table = _mm512_broadcast_i32x4(_mm_loadu_si128(steps.table.as_ptr().cast()));
                let low = _mm512_set1_epi16((steps.low | 0x8000) as i16);
                let span = _mm512_set1_epi16(steps.span as i16);
                let index = _mm512_set1_epi16(0xff0fu16 as i16);
                let mut most = span;
                for c in i * per_block..chunks.min((i + 1) * per_block) {
                    let x = x.get_unchecked(c).as_ptr();
                    if ahead > 0 {
                        _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(ahead).cast());
                    }
                    let x = _mm512_loadu_si512(x.cast());
                    let n = _mm512_or_si512(x, _mm512_set1_epi16(i16::MIN));
                    let above = _mm512_sub_epi16(n, low);
                    most = _mm512_max_epu16(most, above);
                    let step = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srai_epi16::<3>(n), index));
                    let code = _mm512_srli_epi16::<4>(_mm512_add_epi16(above, step));
                    // code | (x >> 8 & 0x80), as one ternary operation: C ? A : B picks by the mask bit.
                    let sign_bit = _mm512_set1_epi16(0x80);
                    let signed = _mm512_ternarylogic_epi32::<0xca>(sign_bit, _mm512_srli_epi16::<8>(x), code);
                    let codes = codes.get_unchecked_mut(c).as_mut_ptr();
                    _mm256_storeu_si256(codes.cast(), _mm512_cvtepi16_epi8(signed));
                }
                *general = _mm512_cmpeq_epu16_mask(most, span) != u32::MAX;
                any |= *general;
            }
        }
        any
    }
    #[inline(always)]
    fn at_least(self, x: __m512, least: __m512) -> __m512 {
        // Of NaN and a number, maxps gives the second.
        // SAFETY: the token proves the feature.
        unsafe { _mm512_max_ps(x, least) }
    }
    #[inline(always)]
    fn beyond(self, y: __m512, limit: u32) -> u32 {
        // SAFETY: the token proves the feature.
        unsafe {
            let a = self.abs_bits(y);
            let over = _mm512_cmpgt_epi32_mask(a, _mm512_set1_epi32(limit as i32));
            _mm512_mask_cmple_epi32_mask(over, a, _mm512_set1_epi32(0x7f80_0000)).count_ones()
        }
    }
    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        // SAFETY: the token proves the feature.
        unsafe {
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    fn sum4(self, x: [__m512; 4]) -> [f32; 4] {
        // SAFETY: the token proves the feature; four lanes and [f32; 4] have the same size.
        unsafe {
            let a = _mm256_add_ps(_mm512_castps512_ps256(x[0]), _mm512_extractf32x8_ps::<1>(x[0]));
            let b = _mm256_add_ps(_mm512_castps512_ps256(x[1]), _mm512_extractf32x8_ps::<1>(x[1]));
            let c = _mm256_add_ps(_mm512_castps512_ps256(x[2]), _mm512_extractf32x8_ps::<1>(x[2]));
            let d = _mm256_add_ps(_mm512_castps512_ps256(x[3]), _mm512_extractf32x8_ps::<1>(x[3]));
            std::mem::transmute::<__m128, [f32; 4]>(super::avx2::sum4_of_8([a, b, c, d]))
        }
    }
    #[inline(always)]
    fn max_abs_blocks_u16(self, x: &[[u8; 64]], per_block: usize, acc: &mut [[u16; 32]]) {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the token proves the feature; all accesses are to 64 bytes behind references, `c` below the length.
            unsafe {
                let mut max = _mm512_loadu_si512(acc.as_ptr().cast());
                let abs = _mm512_set1_epi16(0x7fff);
                for c in i * per_block..x.len().min((i + 1) * per_block) {
                    let x = _mm512_loadu_si512(x.get_unchecked(c).as_ptr().cast());
                    max = _mm512_max_epu16(max, _mm512_and_si512(x, abs));
                }
                _mm512_storeu_si512(acc.as_mut_ptr().cast(), max);
            }
        }
    }
    #[inline(always)]
    fn max_abs_blocks_u32(self, x: &[[u8; 64]], per_block: usize, acc: &mut [[u32; 16]]) {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the token proves the feature; all accesses are to 64 bytes behind references, `c` below the length.
            unsafe {
                let mut max = _mm512_loadu_si512(acc.as_ptr().cast());
                let abs = _mm512_set1_epi32(ABS);
                for c in i * per_block..x.len().min((i + 1) * per_block) {
                    let x = _mm512_loadu_si512(x.get_unchecked(c).as_ptr().cast());
                    max = _mm512_max_epu32(max, _mm512_and_si512(x, abs));
                }
                _mm512_storeu_si512(acc.as_mut_ptr().cast(), max);
            }
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: prefetching is a hint and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
