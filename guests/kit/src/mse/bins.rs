//! A large block as a histogram: how often it has each magnitude. What a candidate loses is then a sum over bins, of
//! which there are far fewer than values, whatever the number of candidates.
//!
//! bf16 has seven mantissa bits, so a binade has 128 bins. In the upper binades of a block every candidate is a normal
//! number of e4m3, where an error is the same in each binade but for a power of two: they fold into one.

use super::lanes::{F4, I4, above_low};
use super::measure::{GROUP, Tally};
use crate::numeric::F8_MAX;

/// Bins of one binade.
const BINADE: usize = 128;
/// Binades with bins of their own, from that of the largest value down. What lies below becomes zero under every scale:
/// 2^-20 of the largest is at most 448 * 2 * 2^-20, less than half of the smallest step 2^-9. That loss is the same for
/// all candidates, so nobody counts it.
const BINADES: usize = 21;
/// Of these, the upper ones whose values are normal under every scale: 2^-12 of the largest binade's begin is at least
/// 448 / 4 * 2^-12, above 2^-6.
const NORMAL: usize = 13;
/// Of those, the upper ones that a scale below the first candidate, but not below half of it, may saturate.
const CLIPPED: usize = 2;
/// Bins of one block.
pub const BINS: usize = BINADES * BINADE;

/// The histogram of one block.
pub struct Bins<'a> {
    counts: &'a mut [u32; BINS],
    /// Magnitude (bits without sign) of the first bin; bin 0 also has everything below.
    low: u16,
    /// The binade of the largest value: the last one, unless it is one of the lowest of all.
    top: usize,
}

/// What the candidates of a block are measured with, made once for it.
pub struct Folded<'a> {
    bins: &'a Bins<'a>,
    /// Mantissas in the largest binade.
    top: [F4; BINADE / 4],
    /// Counts of all normal binades and of those that never saturate, in units of the largest binade's squared values.
    all: [F4; BINADE / 4],
    unclipped: [F4; BINADE / 4],
    /// Magnitudes and counts of the bins below that are not empty; padded with zeros, which lose nothing.
    small: Vec<(F4, F4)>,
}

impl<'a> Bins<'a> {
    /// Of a block with this largest magnitude; `counts` are what was counted so far.
    #[inline(always)]
    pub fn new(amax: f32, counts: &'a mut [u32; BINS]) -> Self {
        let binade = (amax.to_bits() >> 16) as u16 / BINADE as u16;
        let lowest = binade.saturating_sub(BINADES as u16 - 1);
        Self { counts, low: lowest * BINADE as u16, top: usize::from(binade - lowest) }
    }

    /// Counts the values of one row (bf16 bits).
    #[inline(always)]
    pub fn count(&mut self, values: &[u16]) {
        let (eights, rest) = values.as_chunks::<8>();
        for eight in eights {
            for four in above_low(eight, self.low, BINS as u16 - 1) {
                for i in 0..4 {
                    // SAFETY: `above_low` gives no 16 bits above BINS - 1.
                    unsafe { *self.counts.get_unchecked_mut((four >> (16 * i)) as usize & 0xFFFF) += 1 };
                }
            }
        }
        for bits in rest {
            self.counts[usize::from((bits & 0x7FFF).saturating_sub(self.low)).min(BINS - 1)] += 1;
        }
    }

    /// The counts of one binade, 0 is the lowest.
    #[inline(always)]
    fn binade(&self, binade: usize) -> &[[u32; 4]] {
        self.counts[binade * BINADE..(binade + 1) * BINADE].as_chunks::<4>().0
    }

    /// The magnitudes of four bins.
    #[inline(always)]
    fn magnitudes(&self, bin: usize) -> F4 {
        // At most the magnitudes of one binade beyond the largest value's: no overflow.
        let first = self.low + bin as u16;
        F4::magnitudes(&[first, first + 1, first + 2, first + 3])
    }

    /// Folds the normal binades and gathers the others.
    pub fn folded(&self) -> Folded<'_> {
        let mut folded = Folded {
            bins: self,
            top: [F4::splat(0.0); BINADE / 4],
            all: [F4::splat(0.0); BINADE / 4],
            unclipped: [F4::splat(0.0); BINADE / 4],
            small: Vec::new(),
        };
        let quarter = F4::splat(0.25);
        for i in 0..BINADE / 4 {
            let count = |below: usize| F4::counts(&self.binade(self.top - below)[i]);
            let mut sum = count(NORMAL - 1);
            for below in (CLIPPED..NORMAL - 1).rev() {
                sum = sum.mul(quarter).add(count(below));
            }
            folded.unclipped[i] = sum.mul(F4::splat(0.0625));
            folded.all[i] = sum.mul(quarter).add(count(1)).mul(quarter).add(count(0));
            folded.top[i] = self.magnitudes(self.top * BINADE + 4 * i);
        }
        let (mut values, mut counts, mut n) = ([0.0; 4], [0.0; 4], 0);
        // Not bin 0: those lose the same under every scale.
        for (i, sixteen) in self.counts[..(self.top + 1 - NORMAL) * BINADE].as_chunks::<16>().0.iter().enumerate() {
            if sixteen.iter().fold(0, |a, b| a | b) == 0 {
                continue;
            }
            for (j, count) in sixteen.iter().enumerate().filter(|(j, count)| **count > 0 && 16 * i + j > 0) {
                values[n] = f32::from_bits(u32::from(self.low + (16 * i + j) as u16) << 16);
                counts[n] = *count as f32;
                n += 1;
                if n == 4 {
                    folded.small.push((F4::from_array(values), F4::from_array(counts)));
                    (values, counts, n) = ([0.0; 4], [0.0; 4], 0);
                }
            }
        }
        folded.small.push((F4::from_array(values), F4::from_array(counts)));
        folded
    }
}

impl Folded<'_> {
    /// Adds what the block loses under each candidate, a multiple of [`GROUP`].
    #[inline(always)]
    pub fn measure(&self, tallies: &mut [Tally]) {
        for group in tallies.as_chunks_mut::<GROUP>().0 {
            match group.iter().any(|t| t.clips) {
                true => self.measure_group::<true>(group),
                false => self.measure_group::<false>(group),
            }
        }
    }

    #[inline(always)]
    fn measure_group<const CLIPS: bool>(&self, group: &mut [Tally; GROUP]) {
        let mut inverse = [F4::splat(0.0); GROUP];
        let mut errors = [F4::splat(0.0); GROUP];
        let mut saturated = [I4::from_array([0; 4]); GROUP];
        for c in 0..GROUP {
            inverse[c] = F4::splat(group[c].inverse);
        }
        let fold = if CLIPS { &self.unclipped } else { &self.all };
        for (x, n) in self.top.iter().zip(fold).chain(self.small.iter().map(|(x, n)| (x, n))) {
            for c in 0..GROUP {
                let y = x.mul(inverse[c]);
                errors[c] = errors[c].add(loss(y, y).mul(*n));
            }
        }
        if CLIPS {
            let most = F4::splat(F8_MAX);
            for binade in self.bins.top + 1 - CLIPPED..=self.bins.top {
                for (i, n) in self.bins.binade(binade).iter().enumerate() {
                    let x = self.bins.magnitudes(binade * BINADE + 4 * i);
                    for c in 0..GROUP {
                        let y = x.mul(inverse[c]);
                        errors[c] = errors[c].add(loss(y, y.min(most)).mul(F4::counts(n)));
                        saturated[c] = saturated[c].add(y.above(most).of(n));
                    }
                }
            }
        }
        for (c, tally) in group.iter_mut().enumerate() {
            tally.errors = errors[c].to_array();
            // Tallies count downwards.
            tally.saturated = saturated[c].to_array().map(|n| -n);
        }
    }
}

/// Squared distance of `y` to the e4m3 number nearest to `clamped`.
#[inline(always)]
fn loss(y: F4, clamped: F4) -> F4 {
    let rounder = clamped.rounder();
    let lost = y.sub(clamped.add(rounder).sub(rounder));
    lost.mul(lost)
}
