//! What is done to the heads of queries and keys between projection and attention: norm, clip, rotary embedding.

use crate::isa::Isa;
use crate::rows::{inverse_rms, share};
use crate::simd::{Kernel, Simd, dispatch};
use crate::team::{Disjoint, Team};

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

/// [`crate::rows::rms_norm`] in place.
#[inline(always)]
fn scale_rms<S: Simd>(s: S, x: &mut [f32], w: &[f32], eps: f32) {
    assert_eq!(x.len(), w.len(), "one weight per value");
    let inverse = inverse_rms(s, x, eps);
    x.iter_mut().zip(w).for_each(|(x, w)| *x = *x * inverse * w);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::rms_norm;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i * 2_654_435 + seed * 97) % 1000) as f32 / 250.0 - 2.0).collect()
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
