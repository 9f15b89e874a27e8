//! How weights and x become lanes, and in which units FP8 sums are (see `linear.rs` for why).

use super::packed::{Line, QUAD, ROWS};
use crate::simd::{Kernel, Simd, pad_f32};
use crate::source::{Bf16, Element, F16, F32};

/// `2^n`.
const fn pow2(n: i32) -> f32 {
    f32::from_bits(((127 + n) as u32) << 23)
}

/// What the units of FP8 sums are undone with, half for the sum of a block and half for the total.
pub(super) const UNIT: f32 = pow2(40);

/// x as FP8 products take it: for codes in units of 2^-120, or of `code_unit`.
#[inline(always)]
fn enter<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.mul(s.mul(x, s.splat(pow2(-72))), s.splat(pow2(112)));
    if S::CODE_UNIT == pow2(-120) { x } else { s.mul(x, s.splat(pow2(-120) / S::CODE_UNIT)) }
}

/// [`enter`] for all of x.
pub(super) struct Enter<'a> {
    pub(super) x: &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl Kernel for Enter<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x16, tail) = self.x.as_chunks::<16>();
        let (out16, out_tail) = self.out.as_chunks_mut::<16>();
        for (x, out) in x16.iter().zip(out16) {
            s.store(enter(s, s.load(x)), out);
        }
        let mut lanes = [0.0; 16];
        s.store(enter(s, s.load(&pad_f32(tail))), &mut lanes);
        out_tail.copy_from_slice(&lanes[..tail.len()]);
    }
}

/// How the quads of one kind of weights become lanes.
pub(super) trait Quad: Copy {
    /// Cache lines of a quad.
    const LINES: usize;
    /// Four columns of sixteen rows.
    fn load<S: Simd>(self, s: S, lines: &[Line]) -> [S::F; QUAD];
    /// The total with the sum of one more block.
    #[inline(always)]
    fn add_block<S: Simd>(self, s: S, sum: S::F, scale: S::F, total: S::F) -> S::F {
        let _ = scale;
        s.add(total, sum)
    }
}

/// e4m3 codes in the order of the path ([`super::packed::Codes`]).
#[derive(Clone, Copy)]
pub(super) struct Fp8;

impl Quad for Fp8 {
    const LINES: usize = 1;
    #[inline(always)]
    fn load<S: Simd>(self, s: S, lines: &[Line]) -> [S::F; QUAD] {
        s.load_e4m3_quad(&lines[0].0)
    }
    #[inline(always)]
    fn add_block<S: Simd>(self, s: S, sum: S::F, scale: S::F, total: S::F) -> S::F {
        s.fma(s.mul(sum, s.splat(UNIT)), scale, total)
    }
}

macro_rules! quad {
    ($kind:ty, $lines:literal) => {
        impl Quad for $kind {
            const LINES: usize = $lines;
            #[inline(always)]
            fn load<S: Simd>(self, s: S, lines: &[Line]) -> [S::F; QUAD] {
                let column = |c: usize| {
                    let byte = c * ROWS * Self::SIZE;
                    &lines[byte / 64].0[byte % 64..][..ROWS * Self::SIZE]
                };
                let [a, b, c, d] = [column(0), column(1), column(2), column(3)];
                [
                    Element::load(self, s, a),
                    Element::load(self, s, b),
                    Element::load(self, s, c),
                    Element::load(self, s, d),
                ]
            }
        }
    };
}
quad!(F32, 4);
quad!(Bf16, 2);
quad!(F16, 2);
