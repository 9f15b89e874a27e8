//! The cast of a bfloat16 as an addition to its bits.
//!
//! Under one factor, which e4m3 mantissa a bfloat16 gets depends on its own seven mantissa bits alone, and the code
//! rises with them in steps. Eight neighbors, which share the upper four of these bits, lie closer together than two
//! steps do. So for each of the sixteen such groups there is a number that, added to the bits, makes the carry out of
//! the lowest four happen exactly where the step is, and one shift leaves the code:
//! `code = (bits - low + table[bits >> 3 & 15]) >> 4`. The table is made by the real arithmetic (multiplication or
//! division, then [`Simd::encode`]), so the codes are those of the definition bit for bit.
//!
//! This holds for results that are normal e4m3 numbers and do not saturate; the others take the general path.

use crate::contract::SATURATED_BITS;
use crate::e4m3;
use crate::simd::Simd;

/// The steps of one block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    /// What to add to `bits - low`, by the upper four mantissa bits.
    pub table: [u8; 16],
    /// The least magnitude (bits without sign) that becomes a normal number.
    pub low: u16,
    /// The largest magnitude that does not saturate, less `low`.
    pub span: u16,
}

/// Bits of 1.0 in bfloat16 and of its exponent in float.
const ONE16: i32 = 127 << 7;
const ONE: u32 = 127 << 23;
/// The least and the largest bits of a normal bfloat16.
const NORMAL: (u16, u16) = (0x0080, 0x7f7f);
/// Bits of 2^-6.
const MIN_NORMAL_BITS: u32 = 0x3c80_0000;

impl Steps {
    /// The steps under a factor that multiplies (or divides); none where the factor itself is not a normal number.
    #[inline(always)]
    pub fn new<S: Simd, const DIVIDE: bool>(s: S, factor: f32) -> Option<Steps> {
        if !(factor.is_normal() && factor > 0.0) {
            return None;
        }
        let scaled = |magnitude: u16| {
            let x = f32::from_bits(u32::from(magnitude) << 16);
            (if DIVIDE { x / factor } else { x * factor }).to_bits()
        };
        let unscaled = |bits: u32| {
            let y = f32::from_bits(bits);
            let x = if DIVIDE { y * factor } else { y / factor };
            ((x.to_bits() >> 16) as u16).clamp(NORMAL.0, NORMAL.1)
        };
        // Rounding is monotonic, and an estimate is at most a few steps off.
        let mut low = unscaled(MIN_NORMAL_BITS);
        while low < NORMAL.1 && scaled(low) < MIN_NORMAL_BITS {
            low += 1;
        }
        while low > NORMAL.0 && scaled(low - 1) >= MIN_NORMAL_BITS {
            low -= 1;
        }
        let mut high = unscaled(SATURATED_BITS);
        while high > NORMAL.0 && scaled(high) > SATURATED_BITS {
            high -= 1;
        }
        while high < NORMAL.1 && scaled(high + 1) <= SATURATED_BITS {
            high += 1;
        }
        let span = high.checked_sub(low).filter(|_| scaled(low) >= MIN_NORMAL_BITS)?;

        // Codes of 1 to 2 under the factor's mantissa; its exponent moves them all by multiples of 8.
        let bits = factor.to_bits();
        let unit = s.splat(f32::from_bits(bits & 0x7f_ffff | ONE));
        let moved = (bits >> 23) as i32 - 127;
        let moved = if DIVIDE { -moved } else { moved };
        let mut codes = [0u8; 128];
        for (i, codes) in codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let mut x = [0.0; 16];
            for (l, x) in x.iter_mut().enumerate() {
                *x = f32::from_bits(ONE | ((16 * i + l) as u32) << 16);
            }
            let x = s.load(&x);
            *codes = s.encode(if DIVIDE { s.div(x, unit) } else { s.mul(x, unit) }, e4m3::NAN);
        }
        let mut table = [0; 16];
        for (i, (slot, codes)) in table.iter_mut().zip(codes.as_chunks::<8>().0).enumerate() {
            let first = i32::from(codes[0]);
            // How many of the eight lie beyond the step.
            let beyond = codes.iter().map(|code| i32::from(*code)).sum::<i32>() - 8 * first;
            // The last one before the step must get all four bits set, the next one the carry.
            let step = 16 * first + 8 + beyond - (ONE16 + 8 * i as i32) + 128 * moved + i32::from(low);
            *slot = u8::try_from(step).ok().filter(|_| (0..=8).contains(&beyond))?;
        }
        Some(Steps { table, low, span })
    }
}
