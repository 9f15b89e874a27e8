//! Dynamic quantization of activations in groups of 1x128, emulated in f32 (W8A8 as on the GPU).
//!
//! A block-FP8 GEMM on the GPU computes `sum over K blocks of dot(codes of a, codes of b) * sa * sb` in f32 (vLLM's
//! test reference `native_w8a8_block_matmul`). Here the activations are quantized and dequantized again
//! ([`apply_groups`]) and go through [`crate::linear::multiply`] with the FP8 weights. Both compute the same real
//! number; they differ by f32 roundings of the sum only (below 1e-5 relative to the norms, held by a test).

use crate::e4m3::NAN;
use crate::e8m0::ceil_pow2;
use crate::isa::Isa;
use crate::rows::share;
use crate::simd::{Kernel, Simd, bytes_of_f32, dispatch, pad, pad_f32};
use crate::spec::ActivationRule;
use crate::team::{Disjoint, Team};

/// Columns that share one activation scale.
pub const GROUP: usize = 128;

/// `max |x|` of each group of 128 columns of the `m x k` matrix `x`; `out` becomes `m x ceil(k / 128)`, row-major. A
/// group with a NaN gives NaN.
///
/// # Panics
/// If `x` has another length than `m * k`.
pub fn group_amax(x: &[f32], m: usize, k: usize, out: &mut Vec<f32>) {
    assert_eq!(x.len(), m * k, "an m x k matrix");
    out.clear();
    if k > 0 {
        dispatch(Isa::detect(), GroupAmax { x, k, out });
    }
}

struct GroupAmax<'a> {
    x: &'a [f32],
    k: usize,
    out: &'a mut Vec<f32>,
}

impl Kernel for GroupAmax<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for group in self.x.chunks_exact(self.k).flat_map(|row| row.chunks(GROUP)) {
            self.out.push(amax(s, group));
        }
    }
}

/// `max |x|`; NaN if there is one.
#[inline(always)]
fn amax<S: Simd>(s: S, group: &[f32]) -> f32 {
    let mut lanes = [0u32; 16];
    let (full, tail) = bytes_of_f32(group).as_chunks::<64>();
    s.max_abs_u32(full, &mut lanes);
    if !tail.is_empty() {
        s.max_abs_u32(&[pad::<64>(tail)], &mut lanes);
    }
    let amax = f32::from_bits(lanes.into_iter().fold(0, u32::max));
    if amax.is_nan() { f32::NAN } else { amax }
}

/// `s = max(amax, eps) / divisor`, rounded up to a power of two if the rule says so. NaN gives NaN (`f32::max` alone
/// would turn it into eps).
///
/// # Panics
/// If the slices differ in length.
pub fn rule_scales(rule: &ActivationRule, amax: &[f32], out: &mut [f32]) {
    assert_eq!(amax.len(), out.len(), "one scale per group");
    for (amax, out) in amax.iter().zip(out) {
        let a = if amax.is_nan() { *amax } else { amax.max(rule.eps) };
        let s = a / rule.divisor;
        *out = if rule.pow2_up { ceil_pow2(s) } else { s };
    }
}

/// [`group_amax`], [`rule_scales`] and [`apply_groups`] in one pass over the `m x k` matrix `x`, shared out over the team.
///
/// # Panics
/// If a slice has another length than said.
pub fn apply_rule(team: &Team, rule: &ActivationRule, x: &[f32], m: usize, k: usize, out: &mut [f32]) {
    assert!(Some(x.len()) == m.checked_mul(k) && out.len() == x.len(), "m x k matrices");
    let out = Disjoint::new(out);
    share(team, m, k, &|first, count| {
        let (from, len) = (first * k, count * k);
        // SAFETY: each run of rows is one task's.
        let out = unsafe { out.part(from, len) };
        if k > 0 {
            dispatch(Isa::detect(), ApplyRule { rule, x: &x[from..from + len], k, out });
        }
    });
}

struct ApplyRule<'a> {
    rule: &'a ActivationRule,
    x: &'a [f32],
    k: usize,
    out: &'a mut [f32],
}

impl Kernel for ApplyRule<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.x.chunks_exact(self.k).zip(self.out.chunks_exact_mut(self.k));
        for (x, out) in rows.flat_map(|(x, out)| x.chunks(GROUP).zip(out.chunks_mut(GROUP))) {
            let mut scale = [0.0];
            rule_scales(self.rule, &[amax(s, x)], &mut scale);
            one_group(s, x, scale[0], out);
        }
    }
}

/// `out = decode(encode(x / s)) * s` with one scale per group: what an FP8 GEMM sees of `x`. `x` and `out` are
/// `m x k`, `scales` is `m x ceil(k / 128)`. A NaN quotient stays NaN.
///
/// # Panics
/// If a slice has another length than said.
pub fn apply_groups(x: &[f32], m: usize, k: usize, scales: &[f32], out: &mut [f32]) {
    apply_groups_with(Isa::detect(), x, m, k, scales, out);
}

/// [`apply_groups`] with the instructions of `isa`.
///
/// # Panics
/// As [`apply_groups`].
pub fn apply_groups_with(isa: Isa, x: &[f32], m: usize, k: usize, scales: &[f32], out: &mut [f32]) {
    assert!(x.len() == m * k && out.len() == m * k, "m x k matrices");
    assert_eq!(scales.len(), m * k.div_ceil(GROUP), "one scale per group");
    if k > 0 {
        dispatch(isa, ApplyGroups { x, k, scales, out });
    }
}

struct ApplyGroups<'a> {
    x: &'a [f32],
    k: usize,
    scales: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for ApplyGroups<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.x.chunks_exact(self.k).zip(self.out.chunks_exact_mut(self.k));
        let groups = rows.flat_map(|(x, out)| x.chunks(GROUP).zip(out.chunks_mut(GROUP)));
        for ((x, out), scale) in groups.zip(self.scales) {
            one_group(s, x, *scale, out);
        }
    }
}

#[inline(always)]
fn one_group<S: Simd>(s: S, x: &[f32], scale: f32, out: &mut [f32]) {
    let scale = s.splat(scale);
    let (x16, x_tail) = x.as_chunks::<16>();
    let (out16, out_tail) = out.as_chunks_mut::<16>();
    for (x, out) in x16.iter().zip(out16) {
        apply(s, s.load(x), scale, out);
    }
    if !x_tail.is_empty() {
        let mut lanes = [0.0; 16];
        apply(s, s.load(&pad_f32(x_tail)), scale, &mut lanes);
        out_tail.copy_from_slice(&lanes[..out_tail.len()]);
    }
}

#[inline(always)]
fn apply<S: Simd>(s: S, x: S::F, scale: S::F, out: &mut [f32; 16]) {
    let codes = s.encode(s.div(x, scale), NAN);
    let value = s.mul(s.load_e4m3_256th(&codes), s.splat(256.0));
    s.store(s.mul(value, scale), out);
    // The fused decoding takes NaN for 480; NaN must not become a number here.
    if has_nan(&codes) {
        for (code, out) in codes.iter().zip(out) {
            if *code == NAN {
                *out = f32::NAN;
            }
        }
    }
}

/// Whether one of the codes is NaN: adding 1 to the seven bits carries into the eighth.
#[inline(always)]
fn has_nan(codes: &[u8; 16]) -> bool {
    const ONES: u128 = u128::MAX / 255;
    let magnitudes = u128::from_le_bytes(*codes) & (0x7f * ONES);
    (magnitudes + ONES) & (0x80 * ONES) != 0
}
