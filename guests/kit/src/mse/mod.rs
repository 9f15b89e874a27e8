//! The scale of least squared error for each block, by trying several.
//!
//! An FP8 value has four significant bits, so what a block loses depends on where in a binade its large values fall.
//! Scales between one and two times `amax / 448` slide the values through a whole binade without saturating any;
//! smaller ones also clip the largest values, as far as the contract allows. Which is best depends on the block, so
//! each candidate is measured: `sum((x - dequant(RN8(clamp(x / s))))^2)`, over all values of the block. Small blocks are
//! measured value by value (`measure`), large ones by how often they have each magnitude (`bins`).

mod bins;
mod lanes;
mod measure;

use crate::numeric::{F8_MAX, not_finite, pow2_up};
use crate::settings::MseSettings;
use crate::types::Floor;
use bins::{BINS, Bins};
use measure::{GROUP, Tally, measure_row};

/// Blocks with at most this amax become zeros with scale 1: below it, reciprocals of candidates could overflow.
const ZERO_BELOW: f32 = f32::from_bits((127 - 110) << 23);

/// The floor of every scheme of this search.
pub const FLOOR: Floor = Floor { eps: 0.0, zero_below: ZERO_BELOW, zero_scale: 1.0 };

/// Largest factor on `amax / 448` that the contract `a / s > 224` admits, with room for rounding.
pub const MAX_FACTOR: f32 = 1.99;

/// Most values in the tallies of one panel: 16 MiB of the 60 that this patch declares.
const MOST_TALLIES: usize = 16 * 1024 * 1024 / size_of::<Tally>();

/// Values of a block from which on it is worth its bins, and most blocks with bins in a panel: 16 MiB.
const WORTH_BINS: usize = 2 * BINS;
const MOST_BINS: usize = 16 * 1024 * 1024 / (BINS * size_of::<u32>());

/// Which scales are tried, the same for every block of every tensor.
#[derive(Debug, Clone)]
pub struct Search {
    /// Factors on the first candidate, which is 1; a multiple of [`GROUP`] of them.
    factors: Vec<f32>,
    pow2: bool,
    clip: f32,
}

impl Search {
    /// The candidates that the settings ask for.
    pub fn new(settings: &MseSettings) -> Self {
        let mut factors = vec![1.0];
        if settings.common.pow2 {
            // a / s > 224 leaves one power of two that does not clip, and one below it that may.
            factors.push(0.5);
        } else {
            let (lo, hi) = settings.range;
            let n = settings.candidates.saturating_sub(1);
            for i in 1..=n {
                // Evenly spaced; a range that starts at 1 need not try 1 again.
                let step = if lo == 1.0 { i as f32 / n as f32 } else { (i - 1) as f32 / (n.max(2) - 1) as f32 };
                factors.push(lo + (hi - lo) * step);
            }
        }
        while !factors.len().is_multiple_of(GROUP) {
            factors.push(1.0);
        }
        Self { factors, pow2: settings.common.pow2, clip: settings.clip }
    }

    /// The first candidate for a block: the scale that saturates nothing.
    fn base(&self, amax: f32) -> f32 {
        let s = amax / F8_MAX;
        if self.pow2 {
            return pow2_up(s);
        }
        // The cast multiplies by 1 / s; one or two ulp more keep the largest value itself from overshooting 448.
        let mut bits = s.to_bits();
        while amax * (1.0 / f32::from_bits(bits)) > F8_MAX {
            bits += 1;
        }
        f32::from_bits(bits)
    }
}

/// One panel: a row of blocks.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// Tensor, for messages.
    pub tensor: &'a str,
    /// Index of the panel's first block in the tensor.
    pub first_block: u32,
    /// Rows of the panel.
    pub rows: u32,
    /// Columns of the panel.
    pub cols: u32,
    /// Columns of a block; the last block may have fewer.
    pub block_cols: u32,
    /// Most rows in one read.
    pub max_rows: u32,
}

/// Rows in one read at most: enough to amortize the call, and never more than 128 KiB with the host's own bound.
const CHUNK: u32 = 32;

/// The scales of one panel. `read(first, n)` gives the bf16 bits of `n` rows from `first`. Inlined with all that it
/// calls, so that a native caller with vector instructions gets them everywhere.
#[inline(always)]
pub fn panel_scales<R: AsRef<[u16]>>(
    search: &Search,
    panel: &Panel<'_>,
    amax: &[f32],
    mut read: impl FnMut(u32, u32) -> R,
) -> Result<Vec<f32>, String> {
    let (cols, block_cols) = (panel.cols as usize, panel.block_cols as usize);
    if block_cols == 0 || panel.max_rows == 0 || panel.rows == 0 {
        return Err(format!(
            "tensor `{}`: a panel without rows or a block without columns was asked for",
            panel.tensor
        ));
    }
    if amax.len() != cols.div_ceil(block_cols) {
        let blocks = cols.div_ceil(block_cols);
        return Err(format!("tensor `{}`: {} amax for {blocks} blocks of a panel", panel.tensor, amax.len()));
    }
    if let Some(i) = amax.iter().position(|a| !a.is_finite()) {
        return Err(not_finite(panel.tensor, u64::from(panel.first_block) + i as u64, amax[i]));
    }
    let tried = search.factors.len();
    if amax.len().saturating_mul(tried) > MOST_TALLIES {
        return Err(format!(
            "tensor `{}`: {} blocks with {tried} candidates each do not fit the memory; set fewer candidates or larger blocks",
            panel.tensor,
            amax.len()
        ));
    }
    let mut tallies = vec![Tally::default(); amax.len() * tried];
    let bases: Vec<f32> = amax.iter().map(|&a| if a > ZERO_BELOW { search.base(a) } else { 0.0 }).collect();
    for (b, &base) in bases.iter().enumerate() {
        for (tally, factor) in tallies[b * tried..][..tried].iter_mut().zip(&search.factors) {
            *tally = Tally::new(factor * base, *factor < 1.0);
        }
    }
    let binned = (panel.rows as usize).saturating_mul(block_cols.min(cols)) >= WORTH_BINS && amax.len() <= MOST_BINS;
    let mut counts = vec![0u32; if binned { amax.len() * BINS } else { 0 }];
    let mut first = 0;
    while first < panel.rows {
        let n = panel.max_rows.min(CHUNK).min(panel.rows - first);
        let rows = read(first, n);
        let rows = rows.as_ref();
        if rows.len() != n as usize * cols {
            return Err(format!(
                "tensor `{}`: the host lent {} values for {n} rows of {cols}",
                panel.tensor,
                rows.len()
            ));
        }
        for (b, counts) in counts.as_chunks_mut::<BINS>().0.iter_mut().enumerate() {
            // All rows of one block: its bins stay in the nearest cache.
            let mut bins = Bins::new(amax[b], counts);
            let (left, right) = (b * block_cols, cols.min((b + 1) * block_cols));
            for row in rows.chunks_exact(cols) {
                bins.count(&row[left..right]);
            }
        }
        for row in rows.chunks_exact(cols.max(1)).filter(|_| !binned) {
            for (b, values) in row.chunks(block_cols).enumerate() {
                if bases[b] > 0.0 {
                    measure_row(values, &mut tallies[b * tried..][..tried]);
                }
            }
        }
        first += n;
    }
    for (b, counts) in counts.as_chunks_mut::<BINS>().0.iter_mut().enumerate() {
        if bases[b] > 0.0 {
            Bins::new(amax[b], counts).folded().measure(&mut tallies[b * tried..][..tried]);
        }
    }
    let scales = bases.iter().enumerate().map(|(b, &base)| {
        if base == 0.0 {
            return FLOOR.zero_scale;
        }
        let width = block_cols.min(cols - b * block_cols);
        let allowed = (f64::from(search.clip) * f64::from(panel.rows) * width as f64) as u32;
        best(&search.factors, &tallies[b * tried..][..tried], allowed) * base
    });
    Ok(scales.collect())
}

/// The factor of least error among those that saturate at most `allowed` values; the first of equals. The first
/// candidate saturates nothing, so there always is one.
fn best(factors: &[f32], tallies: &[Tally], allowed: u32) -> f32 {
    let (mut winner, mut least) = (1.0, f32::INFINITY);
    for (&factor, tally) in factors.iter().zip(tallies) {
        // Tallies are in units of the scale, so that nothing under- or overflows.
        let error = tally.error() * factor * factor;
        if tally.saturated() <= allowed && error < least {
            (winner, least) = (factor, error);
        }
    }
    winner
}

#[cfg(test)]
mod tests;
