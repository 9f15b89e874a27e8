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
fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
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

/// How the heads of queries or keys are normed.
#[derive(Debug, Clone, Copy)]
pub enum HeadNorm<'a> {
    /// Not at all.
    None,
    /// Each head by itself; `head_dim` weights.
    Each(&'a [f32]),
    /// All heads of a row together; `count * head_dim` weights.
    All(&'a [f32]),
}

/// What is done to heads between projection and attention, in this order.
#[derive(Debug, Clone, Copy)]
pub struct HeadSteps<'a> {
    /// RMS norm.
    pub norm: HeadNorm<'a>,
    /// Its epsilon.
    pub eps: f32,
    /// Values are clamped to plus or minus this.
    pub clip: Option<f32>,
    /// Rotary embedding of the first `2 * half` dimensions from `skip` on: cos of each row, [rows, half].
    pub cos: &'a [f32],
    /// sin of each row, [rows, half].
    pub sin: &'a [f32],
    /// Rotated pairs of a head.
    pub half: usize,
    /// Dimensions of a head before the rotated ones.
    pub skip: usize,
    /// Whether the pairs are neighbors (GPT-J, DeepSeek) or half a rotation apart (GPT-NeoX, Llama).
    pub neighbors: bool,
}

/// Norms, clips and rotates `count` heads of `head_dim` values of each row, in place. Rows begin `ld` values apart, the
/// heads `first` values behind the beginning of each.
///
/// # Panics
/// If a slice does not fit.
pub fn heads(
    team: &Team,
    x: &mut [f32],
    ld: usize,
    first: usize,
    count: usize,
    head_dim: usize,
    steps: &HeadSteps<'_>,
) {
    let width = count * head_dim;
    if width == 0 || x.is_empty() {
        return;
    }
    let end = first.checked_add(width);
    assert!(end.is_some_and(|end| end <= ld) && x.len().is_multiple_of(ld), "the heads lie within a row");
    assert!(steps.skip + 2 * steps.half <= head_dim, "what is rotated lies within a head");
    let rows = x.len() / ld;
    assert!(steps.cos.len() >= rows * steps.half && steps.sin.len() == steps.cos.len(), "an angle per row and pair");
    let x = Disjoint::new(x);
    share(team, rows, width, &|from, n| {
        for row in from..from + n {
            // SAFETY: the heads of a row are one task's.
            let heads = unsafe { x.part(row * ld + first, width) };
            let angle = row * steps.half..(row + 1) * steps.half;
            let (cos, sin) = (&steps.cos[angle.clone()], &steps.sin[angle]);
            dispatch(Isa::detect(), Heads { heads, head_dim, steps, cos, sin });
        }
    });
}

struct Heads<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    steps: &'a HeadSteps<'a>,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Heads<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { heads, head_dim, steps, cos, sin } = self;
        if let HeadNorm::All(w) = steps.norm {
            scale_rms(s, heads, w, steps.eps);
        }
        for head in heads.chunks_exact_mut(head_dim) {
            if let HeadNorm::Each(w) = steps.norm {
                scale_rms(s, head, w, steps.eps);
            }
            if let Some(most) = steps.clip {
                head.iter_mut().for_each(|x| *x = x.clamp(-most, most));
            }
            let rotated = &mut head[steps.skip..][..2 * steps.half];
            if steps.neighbors {
                for (pair, (cos, sin)) in rotated.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
                    let [a, b] = *pair;
                    *pair = [a * cos - b * sin, a * sin + b * cos];
                }
            } else {
                let (first, second) = rotated.split_at_mut(steps.half);
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}

/// [`rms_norm`] in place.
#[inline(always)]
fn scale_rms<S: Simd>(s: S, x: &mut [f32], w: &[f32], eps: f32) {
    assert_eq!(x.len(), w.len(), "one weight per value");
    let inverse = inverse_rms(s, x, eps);
    x.iter_mut().zip(w).for_each(|(x, w)| *x = *x * inverse * w);
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

    #[test]
    fn heads_are_normed_clipped_and_rotated() {
        let (rows, ld, first, count, dim) = (3, 60, 7, 3, 16);
        let (cos, sin) = (values(rows * 4, 7), values(rows * 4, 8));
        let w = values(dim, 9);
        for (neighbors, clip) in [(false, None), (true, Some(0.7))] {
            let mut x = values(rows * ld, 10);
            let before = x.clone();
            let steps = HeadSteps {
                norm: HeadNorm::Each(&w),
                eps: 1e-5,
                clip,
                cos: &cos,
                sin: &sin,
                half: 4,
                skip: 2,
                neighbors,
            };
            heads(&Team::new(2), &mut x, ld, first, count, dim, &steps);
            for r in 0..rows {
                for c in (0..ld).filter(|c| *c < first || *c >= first + count * dim) {
                    assert_eq!(x[r * ld + c], before[r * ld + c], "outside of the heads");
                }
                for h in 0..count {
                    let at = r * ld + first + h * dim;
                    let mean = before[at..at + dim].iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / dim as f64;
                    let most = clip.map_or(f64::INFINITY, f64::from);
                    let normed: Vec<f64> = (0..dim)
                        .map(|i| f64::from(before[at + i]) / (mean + 1e-5).sqrt() * f64::from(w[i]))
                        .map(|v| v.clamp(-most, most))
                        .collect();
                    let mut expected = normed.clone();
                    for i in 0..4 {
                        let (a, b) = if neighbors { (2 + 2 * i, 3 + 2 * i) } else { (2 + i, 6 + i) };
                        let (c, s) = (f64::from(cos[r * 4 + i]), f64::from(sin[r * 4 + i]));
                        expected[a] = normed[a] * c - normed[b] * s;
                        expected[b] = normed[b] * c + normed[a] * s;
                    }
                    for i in 0..dim {
                        assert!((f64::from(x[at + i]) - expected[i]).abs() < 1e-5, "{neighbors} {r} {h} {i}");
                    }
                }
            }
        }
        let w = values(count * dim, 11);
        let mut x = values(count * dim, 12);
        let mut expected = vec![0.0; x.len()];
        rms_norm(&Team::new(1), &x, &w, 1e-5, &mut expected);
        let none = HeadSteps {
            norm: HeadNorm::All(&w),
            eps: 1e-5,
            clip: None,
            cos: &[],
            sin: &[],
            half: 0,
            skip: 0,
            neighbors: false,
        };
        heads(&Team::new(1), &mut x, count * dim, 0, count, dim, &none);
        assert_eq!(x, expected);
    }
}
