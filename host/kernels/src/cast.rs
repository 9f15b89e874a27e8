//! The cast of a panel to e4m3 with scales that a patch returned, proved block by block, and its inverse.

pub use crate::contract::{ContractViolation, Violation};

use crate::e4m3;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch, pad};
use crate::source::Source;
use crate::spec::CastSpec;
use crate::strip::{Strip, as_unwritten};
use std::ops::AddAssign;

/// Of which values the cast measures the error; measuring costs more than casting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Measure {
    /// Of none.
    #[default]
    Nothing,
    /// Of one row of each 32 of a panel, from its first: an estimate.
    Sample,
    /// Of all.
    All,
}

/// What the cast of a panel did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CastReport {
    /// Values whose scaled magnitude lies beyond 448 by more than 8 ulp (clamped to ±448).
    pub saturated: u64,
    /// Values that are not zero but became ±0.
    pub flushed: u64,
    /// Blocks whose scale was proved against the contract; those that the edges exempt are not among them.
    pub proved: u64,
    /// Values of the source that are NaN or infinite. Counted with the statistics of [`crate::panel`]: a cast alone leaves it 0.
    pub non_finite: u64,
    /// `sum (x - q * s)^2` over blocks that are not exempt, and over the rows that are measured. Computed as `s^2 * sum (y - q)^2` with
    /// y the scaled value before rounding, good to about 1e-6, so that tiny weights do not underflow. A row of a block
    /// that holds a NaN (edges other than strict) is left out.
    pub squared_error: f64,
    /// `sum x^2` over the same blocks, as `s^2 * sum y^2`. `10 * log10(squared_sum / squared_error)` is the SNR in dB.
    pub squared_sum: f64,
}

impl AddAssign for CastReport {
    fn add_assign(&mut self, other: CastReport) {
        self.saturated += other.saturated;
        self.flushed += other.flushed;
        self.proved += other.proved;
        self.non_finite += other.non_finite;
        self.squared_error += other.squared_error;
        self.squared_sum += other.squared_sum;
    }
}

/// Casts the panel of rows `first_row .. first_row + panel_rows`. `given` has the number that the patch returned for
/// each block of `block_cols` columns, `amax` the host's own statistics of the same blocks
/// ([`crate::stats::panel_stats`] with the same `round_bf16`). Writes `panel_rows * cols` codes, row-major, to `q`, and
/// one scale per block to `scales`.
///
/// Every block's scale is proved against `spec.contract` before the first value is cast; see
/// `wit/patch/0.1.0/block-quant.wit` for the exemptions under edges other than strict. Uses [`Isa::detect`].
///
/// # Errors
/// The first block that breaks its contract. `q` and `scales` are then undefined and must not be published.
///
/// # Panics
/// If `block_cols` is 0, the rows are outside of the matrix, or a slice has another length than said above.
pub fn cast_panel(
    src: &Source<'_>,
    first_row: usize,
    panel_rows: usize,
    block_cols: usize,
    given: &[f32],
    amax: &[f32],
    spec: &CastSpec,
    measure: Measure,
    q: &mut [u8],
    scales: &mut [f32],
) -> Result<CastReport, ContractViolation> {
    let isa = Isa::detect();
    cast_panel_with(isa, src, first_row, panel_rows, block_cols, given, amax, spec, measure, q, scales)
}

/// [`cast_panel`] with the instructions of `isa`.
///
/// # Errors
/// As [`cast_panel`].
///
/// # Panics
/// As [`cast_panel`].
pub fn cast_panel_with(
    isa: Isa,
    src: &Source<'_>,
    first_row: usize,
    panel_rows: usize,
    block_cols: usize,
    given: &[f32],
    amax: &[f32],
    spec: &CastSpec,
    measure: Measure,
    q: &mut [u8],
    scales: &mut [f32],
) -> Result<CastReport, ContractViolation> {
    assert!(block_cols > 0, "blocks have at least one column");
    assert!(first_row + panel_rows <= src.rows, "the panel lies in the matrix");
    assert_eq!(q.len(), panel_rows * src.cols, "one code per value");
    let mut strip = Strip::new(isa, *src, first_row, panel_rows, block_cols, given, amax, spec, measure, scales)?;
    strip.cast(as_unwritten(q), src.cols, 0);
    strip.finish(given, amax)
}

/// Proves one number that a patch gave for blocks of this amax, without a block: as far as amax decides (a clip contract also
/// counts values, which only a cast can). The violation's block column is 0.
///
/// # Errors
/// What is wrong with it.
pub fn prove(spec: &CastSpec, amax: f32, given: f32) -> Result<(), ContractViolation> {
    match crate::contract::check(spec, amax, given) {
        Ok(_) => Ok(()),
        Err((scale, what)) => Err(ContractViolation { block_col: 0, amax, given, scale, what }),
    }
}

/// `out = decode(q) * scale`, one f32 multiplication per value (then nothing: the caller rounds to its own type).
/// `q` and `out` are `rows x cols`, row-major; `scales` is `ceil(rows / block_rows) x ceil(cols / block_cols)`. The NaN
/// codes give NaN.
///
/// # Panics
/// If a block size is 0 or a slice has another length than said above.
pub fn dequantize(
    q: &[u8],
    scales: &[f32],
    rows: usize,
    cols: usize,
    block_rows: usize,
    block_cols: usize,
    out: &mut [f32],
) {
    assert!(block_rows > 0 && block_cols > 0, "blocks have at least one row and column");
    assert!(q.len() == rows * cols && out.len() == rows * cols, "one code and one value per element");
    let grid_cols = cols.div_ceil(block_cols);
    assert_eq!(scales.len(), rows.div_ceil(block_rows) * grid_cols, "one scale per block");
    if q.is_empty() {
        return;
    }
    for (row, (q, out)) in q.chunks_exact(cols).zip(out.chunks_exact_mut(cols)).enumerate() {
        let scales = &scales[row / block_rows * grid_cols..][..grid_cols];
        dequantize_row(Isa::detect(), q, scales, block_cols, out);
    }
}

/// One row; `scales` has one scale per `block_cols` columns.
pub(crate) fn dequantize_row(isa: Isa, q: &[u8], scales: &[f32], block_cols: usize, out: &mut [f32]) {
    if e4m3::contains_nan_code(q) {
        // The vector path would take these codes for ±480.
        for (c, (q, out)) in q.iter().zip(out).enumerate() {
            *out = e4m3::decode(*q) * scales[c / block_cols];
        }
    } else {
        dispatch(isa, DequantizeRow { q, scales, block_cols, out });
    }
}

struct DequantizeRow<'a> {
    q: &'a [u8],
    scales: &'a [f32],
    block_cols: usize,
    out: &'a mut [f32],
}

impl Kernel for DequantizeRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let segments = self.q.chunks(self.block_cols).zip(self.out.chunks_mut(self.block_cols));
        for ((q, out), scale) in segments.zip(self.scales) {
            let scale = s.splat(*scale);
            let (q16, q_tail) = q.as_chunks::<16>();
            let (out16, out_tail) = out.as_chunks_mut::<16>();
            // Two steps, because 256 * scale may overflow; the first is exact.
            for (q, out) in q16.iter().zip(out16) {
                let value = s.mul(s.load_e4m3_256th(q), s.splat(256.0));
                s.store(s.mul(value, scale), out);
            }
            if !q_tail.is_empty() {
                let mut lanes = [0.0; 16];
                let value = s.mul(s.load_e4m3_256th(&pad::<16>(q_tail)), s.splat(256.0));
                s.store(s.mul(value, scale), &mut lanes);
                out_tail.copy_from_slice(&lanes[..out_tail.len()]);
            }
        }
    }
}
