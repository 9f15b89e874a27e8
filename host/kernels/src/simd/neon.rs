//! The lanes as four NEON registers (lanes 0 to 3, 4 to 7, 8 to 11, 12 to 15).
//!
//! NEON is part of every aarch64 target that has floating-point registers, so nothing is detected, and closures may
//! hold intrinsics: no function lacks the feature. The 32 registers hold eight times sixteen lanes, as many as AVX2's 16,
//! so the tiles are those of AVX2. Arm cores take subnormal numbers at full speed, as AMD's do.

use super::{Kernel, Simd};
use crate::steps::Steps;
use std::arch::aarch64::*;

/// Exists only where NEON is in the baseline of the target.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

/// Runs a kernel; the target's baseline has what it needs.
#[inline]
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Neon(()))
}

const ABS: u32 = 0x7fff_ffff;

/// The four registers.
#[inline(always)]
fn each<T>(f: impl Fn(usize) -> T) -> [T; 4] {
    [f(0), f(1), f(2), f(3)]
}

#[inline(always)]
fn bits(x: float32x4_t) -> uint32x4_t {
    // SAFETY: NEON is in the baseline of the target.
    unsafe { vreinterpretq_u32_f32(x) }
}

#[inline(always)]
fn abs_bits(x: float32x4_t) -> uint32x4_t {
    // SAFETY: NEON is in the baseline of the target.
    unsafe { vandq_u32(bits(x), vdupq_n_u32(ABS)) }
}

/// All ones where a lane is NaN.
#[inline(always)]
fn is_nan(x: float32x4_t) -> uint32x4_t {
    // SAFETY: NEON is in the baseline of the target.
    unsafe { vmvnq_u32(vceqq_f32(x, x)) }
}

/// Codes of four floats as 32-bit integers; the steps of `encode_bits`.
#[inline(always)]
fn encode4(y: float32x4_t, nan: u8) -> uint32x4_t {
    // SAFETY: NEON is in the baseline of the target.
    unsafe {
        let a = vminq_u32(abs_bits(y), vdupq_n_u32(0x43e0_0000));
        let odd = vandq_u32(vshrq_n_u32::<20>(a), vdupq_n_u32(1));
        let rebias = vdupq_n_u32(0x7_ffffu32.wrapping_sub(120 << 23));
        let normal = vshrq_n_u32::<20>(vaddq_u32(vaddq_u32(a, rebias), odd));
        let shifted = bits(vaddq_f32(vreinterpretq_f32_u32(a), vdupq_n_f32(16384.0)));
        let subnormal = vsubq_u32(shifted, vdupq_n_u32(16384f32.to_bits()));
        let small = vcltq_u32(a, vdupq_n_u32(0x3c80_0000));
        let code = vbslq_u32(small, subnormal, normal);
        let signed = vbslq_u32(vdupq_n_u32(0x80), vshrq_n_u32::<24>(bits(y)), code);
        vbslq_u32(is_nan(y), vdupq_n_u32(u32::from(nan)), signed)
    }
}

/// The lowest byte of each of sixteen lanes.
#[inline(always)]
fn low_bytes(x: [uint32x4_t; 4]) -> uint8x16_t {
    // SAFETY: NEON is in the baseline of the target.
    unsafe {
        let x = x.map(|x| vreinterpretq_u16_u32(x));
        let (a, b) = (vuzp1q_u16(x[0], x[1]), vuzp1q_u16(x[2], x[3]));
        vuzp1q_u8(vreinterpretq_u8_u16(a), vreinterpretq_u8_u16(b))
    }
}

/// How many of sixteen lanes are all ones; the others are zero.
#[inline(always)]
fn count(x: [uint32x4_t; 4]) -> u32 {
    // SAFETY: NEON is in the baseline of the target.
    unsafe { 0u32.wrapping_sub(vaddvq_u32(vaddq_u32(vaddq_u32(x[0], x[1]), vaddq_u32(x[2], x[3])))) }
}

#[inline(always)]
fn bytes(x: uint8x16_t) -> [u8; 16] {
    // SAFETY: NEON is in the baseline of the target; 16 bytes are writable behind the array.
    unsafe {
        let mut out = [0; 16];
        vst1q_u8(out.as_mut_ptr(), x);
        out
    }
}

/// Sixteen bytes from `at` on.
///
/// # Panics
/// If the array ends before: where `at` is a constant, the check goes away.
#[inline(always)]
fn load_bytes<const N: usize>(x: &[u8; N], at: usize) -> uint8x16_t {
    assert!(at <= N - 16, "within the array");
    // SAFETY: NEON is in the baseline of the target; 16 bytes are readable from there, as was checked.
    unsafe { vld1q_u8(x.as_ptr().add(at)) }
}

/// Eight 16-bit numbers from byte `at` on; little endian, as the crate demands of the target.
#[inline(always)]
fn load_words<const N: usize>(x: &[u8; N], at: usize) -> uint16x8_t {
    // SAFETY: NEON is in the baseline of the target.
    unsafe { vreinterpretq_u16_u8(load_bytes(x, at)) }
}

/// Eight words with zeros below: the upper halves of eight 32-bit lanes.
#[inline(always)]
fn above_zeros(x: uint16x8_t) -> [float32x4_t; 2] {
    // SAFETY: NEON is in the baseline of the target.
    unsafe {
        let zero = vdupq_n_u16(0);
        [vreinterpretq_f32_u16(vzip1q_u16(zero, x)), vreinterpretq_f32_u16(vzip2q_u16(zero, x))]
    }
}

/// Eight e4m3 codes as value * 2^-120. Shifted left by four with its sign, a code is the upper half of a binary32 but for
/// the copies of the sign, which the mask clears; the exponent's bias is 127 instead of 7.
#[inline(always)]
fn decode8(codes: int8x8_t) -> [float32x4_t; 2] {
    // SAFETY: NEON is in the baseline of the target.
    unsafe {
        let halves = vreinterpretq_u16_s16(vshll_n_s8::<4>(codes));
        above_zeros(vandq_u16(halves, vdupq_n_u16(0x87f0)))
    }
}

/// Codes of sixteen bfloat16 by their steps; keeps the most that any lies above the lowest of its block.
#[inline(always)]
fn by_steps(x0: uint16x8_t, x1: uint16x8_t, table: uint8x16_t, low: uint16x8_t, most: &mut uint16x8_t) -> uint8x16_t {
    // SAFETY: NEON is in the baseline of the target.
    unsafe {
        let abs = vdupq_n_u16(0x7fff);
        let (a0, a1) = (vsubq_u16(vandq_u16(x0, abs), low), vsubq_u16(vandq_u16(x1, abs), low));
        *most = vmaxq_u16(*most, vmaxq_u16(a0, a1));
        let (b0, b1) = (vreinterpretq_u8_u16(x0), vreinterpretq_u8_u16(x1));
        let (lower, upper) = (vuzp1q_u8(b0, b1), vuzp2q_u8(b0, b1));
        let steps = vqtbl1q_u8(table, vandq_u8(vshrq_n_u8::<3>(lower), vdupq_n_u8(15)));
        let (c0, c1) = (vaddw_u8(a0, vget_low_u8(steps)), vaddw_high_u8(a1, steps));
        let codes = vshrn_high_n_u16::<4>(vshrn_n_u16::<4>(c0), c1);
        vbslq_u8(vdupq_n_u8(0x80), upper, codes)
    }
}

impl Simd for Neon {
    type F = [float32x4_t; 4];
    const WIDE: bool = false;
    const CODE_UNIT: f32 = f32::from_bits((127 - 120) << 23);

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: NEON is in the baseline of the target.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        // SAFETY: NEON is in the baseline of the target; each quarter of the array is readable.
        unsafe { each(|i| vld1q_f32(x.as_ptr().add(4 * i))) }
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        // SAFETY: NEON is in the baseline of the target; four floats are writable behind the reference.
        unsafe {
            for (x, out) in x.into_iter().zip(out.as_chunks_mut::<4>().0) {
                vst1q_f32(out.as_mut_ptr(), x);
            }
        }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> Self::F {
        let ([a, b], [c, d]) = (above_zeros(load_words(x, 0)), above_zeros(load_words(x, 16)));
        [a, b, c, d]
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Self::F {
        // SAFETY: NEON is in the baseline of the target.
        unsafe {
            let halves = [load_words(x, 0), load_words(x, 16)].map(|x| vreinterpretq_f16_u16(x));
            let [a, b] = halves.map(|x| [vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)]);
            [a[0], a[1], b[0], b[1]]
        }
    }
    #[inline(always)]
    fn load_e4m3_256th(self, codes: &[u8; 16]) -> Self::F {
        // SAFETY: NEON is in the baseline of the target.
        unsafe {
            let x = vreinterpretq_s8_u8(load_bytes(codes, 0));
            let ([a, b], [c, d]) = (decode8(vget_low_s8(x)), decode8(vget_high_s8(x)));
            // 2^112: from units of 2^-120 to units of 1 / 256, exactly.
            let unit = vdupq_n_f32(f32::from_bits((127 + 112) << 23));
            [a, b, c, d].map(|x| vmulq_f32(x, unit))
        }
    }
    #[inline(always)]
    fn load_e4m3_quad(self, codes: &[u8; 64]) -> [Self::F; 4] {
        // SAFETY: NEON is in the baseline of the target.
        unsafe {
            // Bytes 16 i on: eight rows of column 2 (i / 2), then of the next column.
            let x = each(|i| vreinterpretq_s8_u8(load_bytes(codes, 16 * i)));
            each(|c| {
                let (top, bottom) = (x[c / 2 * 2], x[c / 2 * 2 + 1]);
                let halves = [top, bottom].map(|x| if c % 2 == 0 { vget_low_s8(x) } else { vget_high_s8(x) });
                let [[a, b], [c, d]] = halves.map(decode8);
                [a, b, c, d]
            })
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: NEON is in the baseline of the target.
        unsafe { each(|i| vaddq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: NEON is in the baseline of the target.
        unsafe { each(|i| vsubq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: NEON is in the baseline of the target.
        unsafe { each(|i| vmulq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: NEON is in the baseline of the target.
        unsafe { each(|i| vdivq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: NEON is in the baseline of the target.
        unsafe { each(|i| vfmaq_f32(c[i], a[i], b[i])) }
    }
    #[inline(always)]
    fn scale_or_zero(self, v: Self::F, magic: Self::F, x: Self::F, limit: Self::F) -> Self::F {
        // SAFETY: NEON is in the baseline of the target.
        unsafe {
            each(|i| {
                let power = vaddq_u32(vshlq_n_u32::<23>(bits(magic[i])), vdupq_n_u32(0x3f80_0000));
                let scaled = vmulq_f32(v[i], vreinterpretq_f32_u32(power));
                vreinterpretq_f32_u32(vbicq_u32(bits(scaled), vcltq_f32(x[i], limit[i])))
            })
        }
    }
    #[inline(always)]
    fn round_bf16(self, x: Self::F) -> Self::F {
        // SAFETY: NEON is in the baseline of the target.
        unsafe {
            x.map(|x| {
                let odd = vandq_u32(vshrq_n_u32::<16>(bits(x)), vdupq_n_u32(1));
                let rounded = vaddq_u32(vaddq_u32(bits(x), vdupq_n_u32(0x7fff)), odd);
                let quiet = vorrq_u32(bits(x), vdupq_n_u32(0x40_0000));
                let all = vbslq_u32(is_nan(x), quiet, rounded);
                vreinterpretq_f32_u32(vandq_u32(all, vdupq_n_u32(0xffff_0000)))
            })
        }
    }
    #[inline(always)]
    fn encode(self, y: Self::F, nan: u8) -> [u8; 16] {
        bytes(low_bytes(y.map(|y| encode4(y, nan))))
    }
    #[inline(always)]
    fn flushed(self, x: Self::F, y: Self::F) -> u32 {
        // SAFETY: NEON is in the baseline of the target.
        unsafe {
            count(each(|i| {
                let zero = vcleq_u32(abs_bits(y[i]), vdupq_n_u32(0x3a80_0000));
                vandq_u32(zero, vtstq_u32(bits(x[i]), vdupq_n_u32(ABS)))
            }))
        }
    }
    #[inline(always)]
    fn encode_counting(self, x: Self::F, y: Self::F, nan: u8) -> ([u8; 16], u32) {
        // SAFETY: NEON is in the baseline of the target.
        unsafe {
            let a = y.map(abs_bits);
            // One unsigned comparison finds NaN and everything below 2^-6; both are rare in weights.
            let low = 0x3c80_0000;
            let above = a.map(|a| vsubq_u32(a, vdupq_n_u32(low)));
            let most = vmaxq_u32(vmaxq_u32(above[0], above[1]), vmaxq_u32(above[2], above[3]));
            if vmaxvq_u32(most) > 0x7f80_0000 - low {
                return (self.encode(y, nan), self.flushed(x, y));
            }
            // The steps of `encode` for normal results; the codes are packed before they get their signs.
            let sums = a.map(|a| {
                let a = vminq_u32(a, vdupq_n_u32(0x43e0_0000));
                let odd = vandq_u32(vshrq_n_u32::<20>(a), vdupq_n_u32(1));
                vaddq_u32(vaddq_u32(a, vdupq_n_u32(0x7_ffffu32.wrapping_sub(120 << 23))), odd)
            });
            let upper = |x: [uint32x4_t; 4]| {
                let x = x.map(|x| vreinterpretq_u16_u32(x));
                [vuzp2q_u16(x[0], x[1]), vuzp2q_u16(x[2], x[3])]
            };
            let ([a, b], [c, d]) = (upper(sums), upper(y.map(bits)));
            let codes = vshrn_high_n_u16::<4>(vshrn_n_u16::<4>(a), b);
            let signs = vuzp2q_u8(vreinterpretq_u8_u16(c), vreinterpretq_u8_u16(d));
            (bytes(vbslq_u8(vdupq_n_u8(0x80), signs, codes)), 0)
        }
    }
    #[inline(always)]
    fn at_most(self, x: Self::F, limit: Self::F) -> Self::F {
        // SAFETY: NEON is in the baseline of the target.
        unsafe {
            // A comparison with NaN is false. (FMIN would make a signaling NaN quiet.)
            each(|i| vbslq_f32(vcgtq_f32(x[i], limit[i]), limit[i], x[i]))
        }
    }
    #[inline(always)]
    fn at_least(self, x: Self::F, least: Self::F) -> Self::F {
        // SAFETY: NEON is in the baseline of the target.
        unsafe {
            // A comparison with NaN is false.
            each(|i| vbslq_f32(vcgtq_f32(x[i], least[i]), x[i], least[i]))
        }
    }
    #[inline(always)]
    fn cast_by_steps(
        self,
        x: &[[u8; 64]],
        per_block: usize,
        steps: &[Steps],
        ahead: usize,
        codes: &mut [[u8; 32]],
        general: &mut [bool],
    ) -> bool {
        // SAFETY: NEON is in the baseline of the target.
        unsafe {
            let mut any = false;
            for (((x, codes), steps), general) in
                x.chunks(per_block).zip(codes.chunks_mut(per_block)).zip(steps).zip(general)
            {
                let (table, low) = (load_bytes(&steps.table, 0), vdupq_n_u16(steps.low));
                let mut most = vdupq_n_u16(0);
                for (x, codes) in x.iter().zip(codes) {
                    if ahead > 0 {
                        self.prefetch(x.as_ptr().wrapping_add(ahead));
                    }
                    let halves = codes.as_chunks_mut::<16>().0;
                    halves[0] = bytes(by_steps(load_words(x, 0), load_words(x, 16), table, low, &mut most));
                    halves[1] = bytes(by_steps(load_words(x, 32), load_words(x, 48), table, low, &mut most));
                }
                *general = vmaxvq_u16(most) > steps.span;
                any |= *general;
            }
            any
        }
    }
    #[inline(always)]
    fn beyond(self, y: Self::F, limit: u32) -> u32 {
        // SAFETY: NEON is in the baseline of the target.
        unsafe {
            count(y.map(|y| {
                let a = abs_bits(y);
                vandq_u32(vcgtq_u32(a, vdupq_n_u32(limit)), vcleq_u32(a, vdupq_n_u32(0x7f80_0000)))
            }))
        }
    }
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        // SAFETY: NEON is in the baseline of the target.
        unsafe {
            let x = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            let x = vadd_f32(vget_low_f32(x), vget_high_f32(x));
            vget_lane_f32::<0>(x) + vget_lane_f32::<1>(x)
        }
    }
    #[inline(always)]
    fn sum4(self, x: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: NEON is in the baseline of the target; four floats are writable behind the array.
        unsafe {
            let [a, b, c, d] = x.map(|x| {
                let x = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
                vadd_f32(vget_low_f32(x), vget_high_f32(x))
            });
            // Sums of neighbors: of a, of b, of c, of d.
            let sums = vpaddq_f32(vcombine_f32(a, b), vcombine_f32(c, d));
            let mut out = [0.0; 4];
            vst1q_f32(out.as_mut_ptr(), sums);
            out
        }
    }
    #[inline(always)]
    fn max_abs_blocks_u16(self, x: &[[u8; 64]], per_block: usize, acc: &mut [[u16; 32]]) {
        // SAFETY: NEON is in the baseline of the target; each access is to eight numbers behind a
        // reference.
        unsafe {
            for (x, acc) in x.chunks(per_block).zip(acc) {
                let acc = acc.as_chunks_mut::<8>().0;
                let mut max = each(|i| vld1q_u16(acc[i].as_ptr()));
                for x in x {
                    max = each(|i| vmaxq_u16(max[i], vandq_u16(load_words(x, 16 * i), vdupq_n_u16(0x7fff))));
                }
                for (max, acc) in max.into_iter().zip(acc) {
                    vst1q_u16(acc.as_mut_ptr(), max);
                }
            }
        }
    }
    #[inline(always)]
    fn max_abs_blocks_u32(self, x: &[[u8; 64]], per_block: usize, acc: &mut [[u32; 16]]) {
        // SAFETY: NEON is in the baseline of the target; each access is to four numbers behind a
        // reference.
        unsafe {
            for (x, acc) in x.chunks(per_block).zip(acc) {
                let acc = acc.as_chunks_mut::<4>().0;
                let mut max = each(|i| vld1q_u32(acc[i].as_ptr()));
                for x in x {
                    max = each(|i| {
                        let x = vreinterpretq_u32_u8(load_bytes(x, 16 * i));
                        vmaxq_u32(max[i], vandq_u32(x, vdupq_n_u32(ABS)))
                    });
                }
                for (max, acc) in max.into_iter().zip(acc) {
                    vst1q_u32(acc.as_mut_ptr(), max);
                }
            }
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: prefetching is a hint: it never faults, writes nothing and touches no flags.
        unsafe { std::arch::asm!("prfm pldl1keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
}
