//! Inner products of two f32 vectors, as attention and norms take them.

use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch, pad_f32};

/// The inner product of two slices: sixteen lanes start at +0.0; lane l takes the columns `l, l + 16, ...` in this order,
/// each by one fused multiply-add (the last step is padded with zeros); then the tree `l + (l+8)`, +4, +2, +1.
///
/// # Panics
/// If the slices differ in length.
pub fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of one length");
    dispatch(isa, Dot { a, b })
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        dot_lanes(s, self.a, self.b)
    }
}

/// [`dot`] inside a kernel.
#[inline(always)]
pub(crate) fn dot_lanes<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let (a16, a_tail) = a.as_chunks::<16>();
    let (b16, b_tail) = b.as_chunks::<16>();
    let mut acc = s.splat(0.0);
    for (a, b) in a16.iter().zip(b16) {
        acc = s.fma(s.load(a), s.load(b), acc);
    }
    if !a_tail.is_empty() {
        acc = s.fma(s.load(&pad_f32(a_tail)), s.load(&pad_f32(b_tail)), acc);
    }
    s.sum(acc)
}

/// Four of [`dot`] with one of the vectors in common.
#[inline(always)]
pub(crate) fn dot_lanes_4<S: Simd>(s: S, a: &[f32], b: [&[f32]; 4]) -> [f32; 4] {
    let (a16, a_tail) = a.as_chunks::<16>();
    let [b0, b1, b2, b3] = b.map(|b| b.as_chunks::<16>().0);
    let mut acc = [s.splat(0.0); 4];
    for ((((a, b0), b1), b2), b3) in a16.iter().zip(b0).zip(b1).zip(b2).zip(b3) {
        let a = s.load(a);
        acc[0] = s.fma(a, s.load(b0), acc[0]);
        acc[1] = s.fma(a, s.load(b1), acc[1]);
        acc[2] = s.fma(a, s.load(b2), acc[2]);
        acc[3] = s.fma(a, s.load(b3), acc[3]);
    }
    if !a_tail.is_empty() {
        let a = s.load(&pad_f32(a_tail));
        for (acc, b) in acc.iter_mut().zip(b) {
            *acc = s.fma(a, s.load(&pad_f32(b.as_chunks::<16>().1)), *acc);
        }
    }
    s.sum4(acc)
}
