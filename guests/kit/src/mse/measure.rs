//! The inner loop: what each candidate scale of a block loses on a stretch of one row.

use super::lanes::{F4, I4};
use crate::numeric::F8_MAX;

/// Candidates that are measured together, their sums in registers.
pub const GROUP: usize = 4;

/// Values that are widened at a time.
const STRETCH: usize = 256;

/// What one candidate of one block lost so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Squared errors in units of the scale, by lane: so the order of additions is fixed.
    pub(super) errors: [f32; 4],
    /// Minus the number of saturated values, by lane.
    pub(super) saturated: [i32; 4],
    /// One over the scale: what the cast multiplies by.
    pub(super) inverse: f32,
    /// Whether any value can saturate.
    pub(super) clips: bool,
}

impl Tally {
    /// Nothing lost yet.
    pub fn new(scale: f32, clips: bool) -> Self {
        Self { inverse: 1.0 / scale, clips, ..Self::default() }
    }

    /// Sum of squared errors in units of the scale.
    pub fn error(&self) -> f32 {
        let [a, b, c, d] = self.errors;
        (a + b) + (c + d)
    }

    /// How many values saturated.
    pub fn saturated(&self) -> u32 {
        self.saturated.iter().sum::<i32>().unsigned_abs()
    }
}

/// Adds the values of one block in one row (bf16 bits) to the tallies of all candidates, a multiple of [`GROUP`].
#[inline(always)]
pub fn measure_row(values: &[u16], tallies: &mut [Tally]) {
    let mut wide = [F4::splat(0.0); STRETCH / 4];
    for stretch in values.chunks(STRETCH) {
        let n = widen(stretch, &mut wide);
        for group in tallies.chunks_exact_mut(GROUP) {
            if group.iter().any(|t| t.clips) {
                measure::<true>(&wide[..n], group)
            } else {
                measure::<false>(&wide[..n], group)
            }
        }
    }
}

/// Magnitudes in lanes of four; zeros fill the last lanes, and a zero loses nothing under any scale.
#[inline(always)]
fn widen(values: &[u16], wide: &mut [F4; STRETCH / 4]) -> usize {
    let (fours, rest) = values.as_chunks::<4>();
    for (w, four) in wide.iter_mut().zip(fours) {
        *w = F4::magnitudes(four);
    }
    if rest.is_empty() {
        return fours.len();
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    wide[fours.len()] = F4::magnitudes(&last);
    fours.len() + 1
}

#[inline(always)]
fn measure<const CLIPS: bool>(wide: &[F4], group: &mut [Tally]) {
    let most = F4::splat(F8_MAX);
    let inverse: [F4; GROUP] = std::array::from_fn(|c| F4::splat(group[c].inverse));
    let mut errors: [F4; GROUP] = std::array::from_fn(|c| F4::from_array(group[c].errors));
    let mut saturated: [I4; GROUP] = std::array::from_fn(|c| I4::from_array(group[c].saturated));
    for &x in wide {
        for c in 0..GROUP {
            let y = x.mul(inverse[c]);
            let clamped = if CLIPS { y.min(most) } else { y };
            let rounder = clamped.rounder();
            let lost = y.sub(clamped.add(rounder).sub(rounder));
            errors[c] = errors[c].add(lost.mul(lost));
            if CLIPS {
                saturated[c] = saturated[c].add(y.above(most));
            }
        }
    }
    for (c, tally) in group.iter_mut().enumerate() {
        tally.errors = errors[c].to_array();
        tally.saturated = saturated[c].to_array();
    }
}
