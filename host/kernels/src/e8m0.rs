//! The 8-bit exponent-only scale e8m0 (UE8M0): byte b is 2^(b-127); 255 is NaN; there is no zero.
//!
//! `ceil_pow2` is the exact bit trick of DeepGEMM and SGLang. vLLM's `2^ceil(log2 s)` in float arithmetic gives another
//! answer for values one to three ulp above a power of two; [`ceil_log2_compat`] reproduces that.

/// 2^(b-127), NaN for 255. Byte 0 is the subnormal 2^-127.
#[inline]
pub fn decode(b: u8) -> f32 {
    match b {
        255 => f32::NAN,
        0 => f32::from_bits(1 << 22),
        _ => f32::from_bits(u32::from(b) << 23),
    }
}

/// The byte of an exact power of two 2^-127 to 2^127 (and 255 for NaN); `None` for any other number.
#[inline]
pub fn encode(x: f32) -> Option<u8> {
    let bits = x.to_bits();
    if x.is_nan() {
        Some(255)
    } else if bits == 1 << 22 {
        Some(0)
    } else if is_pow2(x) {
        Some((bits >> 23) as u8)
    } else {
        None
    }
}

/// Whether `x` is 2^(b-127) for 1 <= b <= 254: positive, normal, no mantissa bit.
#[inline]
pub(crate) fn is_pow2(x: f32) -> bool {
    let bits = x.to_bits();
    bits & 0x807f_ffff == 0 && (1..=254).contains(&(bits >> 23))
}

/// The least power of two >= `s`, by the bits of `s >= 0`: `e + (mantissa != 0)`, the exponent byte clamped to 1..=254,
/// so that 0 and subnormals give 2^-126 and infinity gives 2^127. NaN stays NaN.
#[inline]
pub fn ceil_pow2(s: f32) -> f32 {
    if s.is_nan() {
        return s;
    }
    let bits = s.to_bits() & 0x7fff_ffff;
    let exponent = (bits >> 23) + u32::from(bits & 0x7f_ffff != 0);
    f32::from_bits(exponent.clamp(1, 254) << 23)
}

/// vLLM's `exp2(ceil(log2(s)))` in f32 arithmetic, where log2 may round to the integer below; clamped like
/// [`ceil_pow2`]. NaN stays NaN.
#[inline]
pub fn ceil_log2_compat(s: f32) -> f32 {
    if s.is_nan() {
        return s;
    }
    let exponent = s.log2().ceil().clamp(-126.0, 127.0) as i32;
    f32::from_bits(((exponent + 127) as u32) << 23)
}
