//! What the host tells a patch about each block: the largest magnitude and, on request, the sum of squares.

use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch, round_bf16_bits, sum_lanes};
use crate::source::{Bf16, Element, F16, F32, Source};
use crate::spec::Elem;

/// What to compute about a panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatsOptions {
    /// Also the sum of squares of each block.
    pub moments: bool,
    /// Round f32 and f16 values to bfloat16 first, as [`crate::spec::CastSpec::round_bf16`] says.
    pub round_bf16: bool,
    /// Take NaN for 0 ([`crate::spec::Edges::IgnoreNan`]); otherwise it makes amax and sum of its block NaN.
    pub ignore_nan: bool,
}

/// Statistics of one panel (one row of blocks), left to right.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PanelStats {
    /// `max |x|` of each block; infinity if it holds one; NaN if it holds a NaN (unless NaN is ignored).
    pub amax: Vec<f32>,
    /// Sum of squares of each block in f32; empty unless asked for. Sixteen partial sums: lane l takes the columns
    /// `c` of the block with `c % 16 == l` (counted from the block's left edge), row after row, by fused
    /// multiply-add; then l + (l+8), +4, +2, +1. The same bits on every ISA.
    pub sum_squares: Vec<f32>,
    /// Row and column in the matrix of the first NaN or infinity, in row-major order. NaN counts even if ignored.
    pub first_nonfinite: Option<(usize, usize)>,
    /// How many values are NaN or infinite. NaN counts even if ignored. Counted only where an amax says that there is one, so
    /// finite weights are not read a second time for it.
    pub nonfinite: u64,
}

/// Statistics of the panel of rows `first_row .. first_row + panel_rows`, cut into blocks of `block_cols` columns (the
/// last one may be narrower). Uses [`Isa::detect`].
///
/// # Panics
/// If `block_cols` is 0 or the rows are outside of the matrix.
pub fn panel_stats(
    src: &Source<'_>,
    first_row: usize,
    panel_rows: usize,
    block_cols: usize,
    opts: &StatsOptions,
) -> PanelStats {
    panel_stats_with(Isa::detect(), src, first_row, panel_rows, block_cols, opts)
}

/// [`panel_stats`] with the instructions of `isa`.
///
/// # Panics
/// As [`panel_stats`].
pub fn panel_stats_with(
    isa: Isa,
    src: &Source<'_>,
    first_row: usize,
    panel_rows: usize,
    block_cols: usize,
    opts: &StatsOptions,
) -> PanelStats {
    assert!(block_cols > 0, "blocks have at least one column");
    assert!(first_row + panel_rows <= src.rows, "the panel lies in the matrix");
    // No block is wider than the matrix; this also keeps byte counts far from overflow.
    let panel = Panel { src: *src, first_row, panel_rows, block_cols: block_cols.min(src.cols.max(1)) };
    let amax = match src.elem {
        Elem::F32 => dispatch(isa, MaxAbs32(panel)).into_iter().map(f32::from_bits).collect::<Vec<_>>(),
        Elem::Bf16 => dispatch(isa, MaxAbs16(panel)).into_iter().map(|b| f32::from_bits(u32::from(b) << 16)).collect(),
        Elem::F16 => {
            dispatch(isa, MaxAbs16(panel)).into_iter().map(|b| half::f16::from_bits(b).to_f32_const()).collect()
        }
    };
    complete(isa, panel, amax, opts)
}

/// What the largest bits of each block mean under the options, and the rest of the statistics.
fn complete(isa: Isa, panel: Panel<'_>, mut amax: Vec<f32>, opts: &StatsOptions) -> PanelStats {
    let src = panel.src;
    let round = opts.round_bf16 && src.elem != Elem::Bf16;
    for amax in &mut amax {
        // Rounding is monotonic, so the largest rounded magnitude is the rounded largest one.
        if round {
            *amax = f32::from_bits(round_bf16_bits(amax.to_bits()));
        }
        // The bits of the largest NaN depend on the data; the answer is one NaN.
        if amax.is_nan() {
            *amax = f32::NAN;
        }
    }
    let mut sum_squares = if opts.moments { moments(isa, panel, round) } else { Vec::new() };

    let (mut first_nonfinite, mut nonfinite) = (None, 0);
    if amax.iter().any(|amax| !amax.is_finite()) {
        (first_nonfinite, nonfinite) = find_nonfinite(panel, round);
        if opts.ignore_nan {
            for (block, amax) in amax.iter_mut().enumerate() {
                if amax.is_nan() {
                    let (max, sum) = block_without_nan(panel, block, round);
                    *amax = max;
                    if let Some(slot) = sum_squares.get_mut(block) {
                        *slot = sum;
                    }
                }
            }
        }
    }
    PanelStats { amax, sum_squares, first_nonfinite, nonfinite }
}

/// The rows and the cut that the kernels below work on.
#[derive(Clone, Copy)]
struct Panel<'a> {
    src: Source<'a>,
    first_row: usize,
    panel_rows: usize,
    block_cols: usize,
}

impl<'a> Panel<'a> {
    fn blocks(&self) -> usize {
        self.src.cols.div_ceil(self.block_cols)
    }
    fn rows(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (src, first) = (self.src, self.first_row);
        (first..first + self.panel_rows).map(move |row| src.row_bytes(row))
    }
}

/// Largest bits without sign per block, which order like the magnitudes, infinity and NaN above all numbers. Rows are
/// read one after the other, as they lie in memory; one accumulator of lanes per block stays in L1.
macro_rules! max_abs {
    ($kernel:ident, $bits:ty, $lanes:literal, $size:literal, $method:ident, $mask:literal) => {
        struct $kernel<'a>(Panel<'a>);

        impl Kernel for $kernel<'_> {
            type Out = Vec<$bits>;

            #[inline(always)]
            fn run<S: Simd>(self, s: S) -> Self::Out {
                let panel = self.0;
                let mut lanes = vec![[0 as $bits; $lanes]; panel.blocks()];
                let width = panel.block_cols * $size;
                for row in panel.rows() {
                    // Where chunks fill the blocks, the whole row at once.
                    if width.is_multiple_of(64) && row.len().is_multiple_of(64) {
                        s.$method(row.as_chunks::<64>().0, width / 64, &mut lanes);
                        continue;
                    }
                    for (segment, lanes) in row.chunks(width).zip(&mut lanes) {
                        let (full, tail) = segment.as_chunks::<64>();
                        s.$method(full, full.len().max(1), std::slice::from_mut(lanes));
                        for (x, lane) in tail.as_chunks::<$size>().0.iter().zip(lanes) {
                            *lane = (*lane).max(<$bits>::from_le_bytes(*x) & $mask);
                        }
                    }
                }
                lanes.iter().map(|lanes| lanes.iter().fold(0, |a, b| a.max(*b))).collect()
            }
        }
    };
}
max_abs!(MaxAbs16, u16, 32, 2, max_abs_blocks_u16, 0x7fff);
max_abs!(MaxAbs32, u32, 16, 4, max_abs_blocks_u32, 0x7fff_ffff);

/// Sums of squares, by the type of the elements.
fn moments(isa: Isa, panel: Panel<'_>, round: bool) -> Vec<f32> {
    match (panel.src.elem, round) {
        (Elem::F32, false) => dispatch(isa, Moments::<F32, false>(panel, F32)),
        (Elem::F32, true) => dispatch(isa, Moments::<F32, true>(panel, F32)),
        (Elem::F16, false) => dispatch(isa, Moments::<F16, false>(panel, F16)),
        (Elem::F16, true) => dispatch(isa, Moments::<F16, true>(panel, F16)),
        (Elem::Bf16, _) => dispatch(isa, Moments::<Bf16, false>(panel, Bf16)),
    }
}

struct Moments<'a, E, const ROUND: bool>(Panel<'a>, E);

impl<E: Element, const ROUND: bool> Kernel for Moments<'_, E, ROUND> {
    type Out = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let Moments(panel, elem) = self;
        let mut lanes = vec![[0.0f32; 16]; panel.blocks()];
        for row in panel.rows() {
            for (segment, lanes) in row.chunks(panel.block_cols * E::SIZE).zip(&mut lanes) {
                let mut acc = s.load(lanes);
                let chunks = segment.chunks_exact(16 * E::SIZE);
                let tail = chunks.remainder();
                for x in chunks {
                    let x = elem.load(s, x);
                    let x = if ROUND { s.round_bf16(x) } else { x };
                    acc = s.fma(x, x, acc);
                }
                if !tail.is_empty() {
                    let x = elem.load_tail(s, tail);
                    let x = if ROUND { s.round_bf16(x) } else { x };
                    acc = s.fma(x, x, acc);
                }
                s.store(acc, lanes);
            }
        }
        // One NaN, whatever the bits of the NaN in the data.
        lanes.iter().map(|lanes| sum_lanes(*lanes)).map(|sum| if sum.is_nan() { f32::NAN } else { sum }).collect()
    }
}

/// Row and column of the first element that is not finite, and how many are not. Only called when there is one.
fn find_nonfinite(panel: Panel<'_>, round: bool) -> (Option<(usize, usize)>, u64) {
    let mut row = vec![0.0f32; panel.src.cols];
    let (mut first, mut count) = (None, 0);
    for r in panel.first_row..panel.first_row + panel.panel_rows {
        panel.src.row_f32(r, round, &mut row);
        for c in row.iter().enumerate().filter(|(_, x)| !x.is_finite()).map(|(c, _)| c) {
            first.get_or_insert((r, c));
            count += 1;
        }
    }
    (first, count)
}

/// amax and sum of squares of one block with NaN taken for 0; slow, for the rare block that has one.
fn block_without_nan(panel: Panel<'_>, block: usize, round: bool) -> (f32, f32) {
    let mut row = vec![0.0; panel.src.cols];
    let (mut amax, mut lanes) = (0.0f32, [0.0f32; 16]);
    let columns = block * panel.block_cols..((block + 1) * panel.block_cols).min(panel.src.cols);
    for r in panel.first_row..panel.first_row + panel.panel_rows {
        panel.src.row_f32(r, round, &mut row);
        for (c, x) in row[columns.clone()].iter().enumerate() {
            if !x.is_nan() {
                amax = amax.max(x.abs());
                lanes[c % 16] = x.mul_add(*x, lanes[c % 16]);
            }
        }
    }
    (amax, sum_lanes(lanes))
}
