//! What a layer does between its products: norms, rotary embedding, gates, sums; row by row, in f32.
//!
//! A row's result depends on that row alone, whatever the [`Isa`] and the number of threads. Many rows are shared out over
//! a [`Team`]; a few stay on the caller's thread, where they take less time than a second thread needs to look up.

use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch, pad_f32};
use crate::team::{Disjoint, Team};

/// Values of a task, about.
const TASK: usize = 16 * 1024;

/// Calls `f(first, count)` for runs of rows, shared out over the team.
pub(crate) fn share(team: &Team, rows: usize, width: usize, f: &(dyn Fn(usize, usize) + Sync)) {
    let run = (TASK / width.max(1)).max(1);
    let tasks = rows.div_ceil(run);
    team.run(tasks, &|task| f(task * run, run.min(rows - task * run)));
}

/// `out = f(a, b)`, sixteen lanes at a time. A macro: a closure that is not inlined would lose the target features.
macro_rules! each {
    ($s:ident, $a:expr, $b:expr, $out:expr, |$x:ident, $y:ident| $f:expr) => {{
        let ((a16, a), (b16, b)) = ($a.as_chunks::<16>(), $b.as_chunks::<16>());
        let (out16, out) = $out.as_chunks_mut::<16>();
        for ((a, b), out) in a16.iter().zip(b16).zip(out16) {
            let ($x, $y) = ($s.load(a), $s.load(b));
            $s.store($f, out);
        }
        if !out.is_empty() {
            let mut lanes = [0.0; 16];
            let ($x, $y) = ($s.load(&pad_f32(a)), $s.load(&pad_f32(b)));
            $s.store($f, &mut lanes);
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }};
}

/// `out = x / sqrt(mean(x^2) + eps) * w` for each row of `w.len()` values. The sum of squares is that of
/// [`crate::dot::dot`].
///
/// # Panics
/// If `x` and `out` differ in length or are no whole rows.
pub fn rms_norm(team: &Team, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    let width = w.len();
    assert!(x.len() == out.len() && width > 0 && x.len().is_multiple_of(width), "whole rows");
    let out = Disjoint::new(out);
    share(team, x.len() / width, width, &|first, count| {
        for row in first..first + count {
            // SAFETY: each row is one task's.
            let out = unsafe { out.part(row * width, width) };
            dispatch(Isa::detect(), RmsNorm { x: &x[row * width..][..width], w, eps, out });
        }
    });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, w, eps, out } = self;
        let inverse = s.splat(inverse_rms(s, x, eps));
        each!(s, x, w, out, |x, w| s.mul(s.mul(x, inverse), w));
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(crate) fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (crate::dot::dot_lanes(s, x, x) / x.len() as f32 + eps).sqrt()
}

/// `x += y`.
///
/// # Panics
/// If the slices differ in length.
pub fn add(team: &Team, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "one addend per value");
    let len = x.len();
    let x = Disjoint::new(x);
    share(team, len, 1, &|first, count| {
        // SAFETY: each run is one task's.
        let x = unsafe { x.part(first, count) };
        x.iter_mut().zip(&y[first..first + count]).for_each(|(x, y)| *x += y);
    });
}

/// `x *= sigmoid(gate)`.
///
/// # Panics
/// If the slices differ in length.
pub fn gate(team: &Team, x: &mut [f32], gate: &[f32]) {
    assert_eq!(x.len(), gate.len(), "one gate per value");
    let len = x.len();
    let x = Disjoint::new(x);
    share(team, len, 1, &|first, count| {
        // SAFETY: each run is one task's.
        let x = unsafe { x.part(first, count) };
        dispatch(Isa::detect(), Gate { x, gate: &gate[first..first + count] });
    });
}

struct Gate<'a> {
    x: &'a mut [f32],
    gate: &'a [f32],
}

impl Kernel for Gate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x16, x) = self.x.as_chunks_mut::<16>();
        let (gate16, gate) = self.gate.as_chunks::<16>();
        for (x, gate) in x16.iter_mut().zip(gate16) {
            s.store(s.mul(s.load(x), s.sigmoid(s.load(gate))), x);
        }
        if !x.is_empty() {
            let mut lanes = pad_f32(x);
            s.store(s.mul(s.load(&lanes), s.sigmoid(s.load(&pad_f32(gate)))), &mut lanes);
            x.copy_from_slice(&lanes[..x.len()]);
        }
    }
}

/// `out = silu(gate) * up` for each row of `both`, which has gate and up, each `width` values, one after the other; up
/// first where `swapped`.
///
/// # Panics
/// If `both` and `out` do not have as many rows of `2 * width` and `width` values.
pub fn swiglu(team: &Team, both: &[f32], width: usize, swapped: bool, out: &mut [f32]) {
    assert!(both.len() == 2 * out.len(), "two values in for each value out");
    if width == 0 {
        return;
    }
    assert!(out.len().is_multiple_of(width), "whole rows");
    let rows = out.len() / width;
    let out = Disjoint::new(out);
    share(team, rows, width, &|first, count| {
        for row in first..first + count {
            let (a, b) = both[row * 2 * width..][..2 * width].split_at(width);
            let (gate, up) = if swapped { (b, a) } else { (a, b) };
            // SAFETY: each row is one task's.
            dispatch(Isa::detect(), SwiGlu { gate, up, out: unsafe { out.part(row * width, width) } });
        }
    });
}

struct SwiGlu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SwiGlu<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        each!(s, self.gate, self.up, self.out, |gate, up| s.mul(s.mul(gate, s.sigmoid(gate)), up));
    }
}

/// `out[row] = sum over slots of weight * rows[index]`, slot by slot, by fused multiply-add from +0.0: the weighted sum of
/// the experts of each token. `picks` has `slots` pairs (index, weight) per row of `width` values.
///
/// # Panics
/// If an index is no row, or a slice does not fit.
pub fn combine(team: &Team, rows: &[f32], picks: &[(usize, f32)], slots: usize, width: usize, out: &mut [f32]) {
    assert!(slots > 0 && width > 0 && picks.len() * width == out.len() * slots, "as many picks as slots for each row");
    let count = out.len() / width;
    let out = Disjoint::new(out);
    share(team, count, width * slots, &|first, count| {
        for row in first..first + count {
            // SAFETY: each row is one task's.
            let out = unsafe { out.part(row * width, width) };
            out.fill(0.0);
            for (index, weight) in &picks[row * slots..(row + 1) * slots] {
                let values = &rows[index * width..][..width];
                dispatch(Isa::detect(), AddScaled { values, weight: *weight, out: &mut *out });
            }
        }
    });
}

struct AddScaled<'a> {
    values: &'a [f32],
    weight: f32,
    out: &'a mut [f32],
}

impl Kernel for AddScaled<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (out16, out) = self.out.as_chunks_mut::<16>();
        let (values16, values) = self.values.as_chunks::<16>();
        let weight = s.splat(self.weight);
        for (out, values) in out16.iter_mut().zip(values16) {
            s.store(s.fma(weight, s.load(values), s.load(out)), out);
        }
        if !out.is_empty() {
            let mut lanes = pad_f32(out);
            s.store(s.fma(weight, s.load(&pad_f32(values)), s.load(&lanes)), &mut lanes);
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i * 2_654_435 + seed * 97) % 1000) as f32 / 250.0 - 2.0).collect()
    }

    fn close(a: f32, b: f64) -> bool {
        (f64::from(a) - b).abs() <= 2e-6 * (1.0 + b.abs())
    }

    #[test]
    fn norms_are_those_of_f64_for_any_number_of_threads() {
        for (rows, width) in [(1, 7), (3, 64), (50, 700)] {
            let (x, w) = (values(rows * width, 1), values(width, 2));
            let (mut one, mut many) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            rms_norm(&Team::new(1), &x, &w, 1e-6, &mut one);
            rms_norm(&Team::new(3), &x, &w, 1e-6, &mut many);
            assert_eq!(one, many);
            for (r, x) in x.chunks_exact(width).enumerate() {
                let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
                for (i, v) in x.iter().enumerate() {
                    assert!(close(one[r * width + i], f64::from(*v) / (mean + 1e-6).sqrt() * f64::from(w[i])));
                }
            }
        }
    }

    #[test]
    fn gates_are_those_of_f64() {
        let sigmoid = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
        let width = 37;
        let mut both = values(4 * width, 3);
        both[..5].copy_from_slice(&[100.0, -100.0, 1000.0, -1000.0, 0.0]);
        let (mut plain, mut swapped) = (vec![0.0; 2 * width], vec![0.0; 2 * width]);
        swiglu(&Team::new(2), &both, width, false, &mut plain);
        let turned: Vec<f32> =
            both.chunks_exact(2 * width).flat_map(|row| [&row[width..], &row[..width]].concat()).collect();
        swiglu(&Team::new(2), &turned, width, true, &mut swapped);
        assert_eq!(plain, swapped);
        for (i, out) in plain.iter().enumerate() {
            let at = i / width * 2 * width + i % width;
            assert!(close(*out, f64::from(both[at]) * sigmoid(both[at]) * f64::from(both[at + width])), "{i} {out}");
        }
        let (mut x, y) = (values(33, 4), values(33, 5));
        let before = x.clone();
        gate(&Team::new(1), &mut x, &y);
        assert!((0..33).all(|i| close(x[i], f64::from(before[i]) * sigmoid(y[i]))));
        add(&Team::new(2), &mut x, &y);
        let mut nan = [f32::NAN];
        gate(&Team::new(1), &mut nan, &[1.0]);
        assert!(nan[0].is_nan());
        swiglu(&Team::new(1), &[f32::NAN, 1.0], 1, false, &mut nan);
        assert!(nan[0].is_nan());
    }

    #[test]
    fn experts_are_summed_slot_by_slot() {
        let rows = values(6 * 20, 6);
        let picks = [(5, 0.5), (0, 0.25), (2, 1.0), (2, -1.0), (3, 2.0), (4, 0.0)];
        let mut out = vec![9.0; 3 * 20];
        combine(&Team::new(2), &rows, &picks, 2, 20, &mut out);
        for r in 0..3 {
            for c in 0..20 {
                let [(i, a), (j, b)] = [picks[2 * r], picks[2 * r + 1]];
                let expected = b.mul_add(rows[j * 20 + c], a.mul_add(rows[i * 20 + c], 0.0));
                assert_eq!(out[r * 20 + c].to_bits(), expected.to_bits());
            }
        }
    }
}
