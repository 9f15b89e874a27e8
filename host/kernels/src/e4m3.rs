//! The 8-bit float e4m3fn: 1 sign, 4 exponent (bias 7) and 3 mantissa bits, no infinity, NaN = 0x7f and 0xff.
//!
//! Largest value 448, smallest normal 2^-6, smallest subnormal 2^-9 (OCP 8-bit Floating Point Specification 1.0).

use crate::simd::{Kernel, Simd, dispatch};
use crate::{isa::Isa, simd};

/// The largest finite value.
pub const MAX: f32 = 448.0;

/// Code of the NaN without a sign.
pub const NAN: u8 = 0x7f;

/// The value of each of the 256 codes.
pub static DECODE: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = decode_exact(code as u8);
        code += 1;
    }
    table
};

/// The value of one code, from the definition: `(-1)^s * 2^(e-7) * (1 + m/8)`, and `m * 2^-9` where e = 0.
const fn decode_exact(code: u8) -> f32 {
    let (e, m) = ((code >> 3) & 15, (code & 7) as f32);
    let magnitude = if code & 0x7f == NAN {
        f32::NAN
    } else if e == 0 {
        m / 512.0
    } else {
        // 2^(e-7), put together from its bits: powf is not const.
        f32::from_bits((e as u32 + 120) << 23) * (1.0 + m / 8.0)
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The value of a code; NaN for 0x7f and 0xff.
#[inline]
pub fn decode(b: u8) -> f32 {
    DECODE[b as usize]
}

/// The code nearest to `x`: clamped to ±448 first, then rounded to nearest, ties to even. Infinities saturate, -0.0 is
/// kept (0x80), every NaN becomes 0x7f (its sign is not kept: x86 and CUDA disagree about the sign of `0 * inf`).
#[inline]
pub fn encode(x: f32) -> u8 {
    simd::encode_bits(x.to_bits(), NAN)
}

/// Encodes a slice with the vector path of `isa`: `codes[i] = encode(x[i])`.
///
/// # Panics
/// If the slices differ in length.
pub fn encode_slice(isa: Isa, x: &[f32], codes: &mut [u8]) {
    assert_eq!(x.len(), codes.len(), "one code per value");
    dispatch(isa, EncodeSlice { x, codes });
}

struct EncodeSlice<'a> {
    x: &'a [f32],
    codes: &'a mut [u8],
}

impl Kernel for EncodeSlice<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, x_tail) = self.x.as_chunks::<16>();
        let (codes, codes_tail) = self.codes.as_chunks_mut::<16>();
        for (x, codes) in x.iter().zip(codes) {
            *codes = s.encode(s.load(x), NAN);
        }
        for (x, code) in x_tail.iter().zip(codes_tail) {
            *code = encode(*x);
        }
    }
}

/// Whether one of the codes is NaN (0x7f or 0xff). The fused decoding of [`crate::linear`] takes these for ±480, so a
/// tensor is proved free of them once, when it is published.
pub fn contains_nan_code(q: &[u8]) -> bool {
    // Whole chunks without an early exit inside, so that the compiler turns them into vector code.
    let (chunks, tail) = q.as_chunks::<1024>();
    let any = |codes: &[u8]| codes.iter().fold(false, |found, code| found | (code & 0x7f == NAN));
    chunks.iter().any(|chunk| any(chunk)) || any(tail)
}
