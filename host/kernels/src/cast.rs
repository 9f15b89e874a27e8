//! The cast of a panel to e4m3 with scales that a patch returned, proved block by block, and its inverse.

pub use crate::contract::{ContractViolation, Violation};

use crate::contract::{Checked, SATURATED_BITS, check};
use crate::e4m3;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch, pad};
use crate::source::{Bf16, Element, F16, F32, Source};
use crate::spec::{CastRule, CastSpec, Contract, Edges, Elem};
use crate::steps::Steps;
use std::ops::AddAssign;

/// Of which values the cast measures the error; measuring costs more than casting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Measure {
    /// Of none.
    #[default]
    Nothing,
    /// Of every eighth row of a panel, from its first: an estimate.
    Sample,
    /// Of all.
    All,
}

/// Rows of a panel for one that [`Measure::Sample`] measures.
const SAMPLED: usize = 8;

/// What the cast of a panel did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CastReport {
    /// Values whose scaled magnitude lies beyond 448 by more than 8 ulp (clamped to ±448).
    pub saturated: u64,
    /// Values that are not zero but became ±0.
    pub flushed: u64,
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
    let layout = Layout { stride: src.cols, ahead: 0 };
    cast_strip(isa, src, first_row, panel_rows, block_cols, given, amax, spec, measure, q, layout, scales)
}

/// How a strip lies.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    /// Row `r` of the codes begins at `q[r * stride]`.
    pub stride: usize,
    /// How many bytes behind each row the row lies that is read next, after this strip; 0 if none is. The statistics of
    /// that strip wait for memory, the cast of this one does not: so the cast asks for it.
    pub ahead: usize,
}

/// [`cast_panel`] of a strip.
pub(crate) fn cast_strip(
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
    layout: Layout,
    scales: &mut [f32],
) -> Result<CastReport, ContractViolation> {
    let blocks = src.cols.div_ceil(block_cols);
    assert!(given.len() == blocks && amax.len() == blocks && scales.len() == blocks, "one number per block");
    let block_cols = block_cols.min(src.cols.max(1));

    let mut checked = Vec::with_capacity(blocks);
    for block_col in 0..blocks {
        let (amax, given) = (amax[block_col], given[block_col]);
        let good = check(spec, amax, given).map_err(|(scale, what)| ContractViolation {
            block_col,
            amax,
            given,
            scale,
            what,
        })?;
        scales[block_col] = good.scale;
        checked.push(good);
    }

    let job = Job { src, first_row, panel_rows, block_cols, checked: &checked, spec, measure, layout };
    let (report, saturated) = match (src.elem, spec.round_bf16) {
        (Elem::F32, false) => job.run::<F32, false>(isa, F32, q),
        (Elem::F32, true) => job.run::<F32, true>(isa, F32, q),
        (Elem::F16, false) => job.run::<F16, false>(isa, F16, q),
        (Elem::F16, true) => job.run::<F16, true>(isa, F16, q),
        (Elem::Bf16, _) => job.run::<Bf16, false>(isa, Bf16, q),
    };

    if let Contract::Clip(limit) = spec.contract {
        for (block_col, good) in checked.iter().enumerate() {
            let width = block_cols.min(src.cols - block_col * block_cols);
            let share = saturated[block_col] as f64 / (width * panel_rows).max(1) as f64;
            // "Not at most", so that a NaN limit allows nothing.
            if !(good.exempt || share <= f64::from(limit)) {
                let (amax, given) = (amax[block_col], given[block_col]);
                let what = Violation::ClipShare { share, limit };
                return Err(ContractViolation { block_col, amax, given, scale: good.scale, what });
            }
        }
    }
    Ok(report)
}

/// One panel to cast, its scales proved.
#[derive(Clone, Copy)]
struct Job<'a> {
    src: &'a Source<'a>,
    first_row: usize,
    panel_rows: usize,
    block_cols: usize,
    checked: &'a [Checked],
    spec: &'a CastSpec,
    measure: Measure,
    layout: Layout,
}

impl Job<'_> {
    fn run<E: Element, const ROUND: bool>(self, isa: Isa, elem: E, q: &mut [u8]) -> (CastReport, Vec<u64>) {
        if self.spec.cast == CastRule::Divide {
            dispatch(isa, Cast::<E, ROUND, true> { job: self, elem, q })
        } else {
            dispatch(isa, Cast::<E, ROUND, false> { job: self, elem, q })
        }
    }
}

/// The cast over all rows; also counts. `DIVIDE`: the factor divides instead of multiplying.
struct Cast<'a, E, const ROUND: bool, const DIVIDE: bool> {
    job: Job<'a>,
    elem: E,
    q: &'a mut [u8],
}

impl<E: Element, const ROUND: bool, const DIVIDE: bool> Kernel for Cast<'_, E, ROUND, DIVIDE> {
    type Out = (CastReport, Vec<u64>);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Out {
        let Cast { job, elem, q } = self;
        // verl's Triton path clamps a NaN to -448: max and min of NaN and a number give the number.
        let nan = if job.spec.edges == Edges::IgnoreNan { 0xfe } else { e4m3::NAN };
        let mut report = CastReport::default();
        let mut saturated = vec![0u64; job.checked.len()];
        // No closure: one that is not inlined would lose the target features.
        let mut blocks = Vec::with_capacity(job.checked.len());
        for good in job.checked {
            let worth = E::BF16 && job.panel_rows * job.block_cols >= WORTH_STEPS;
            blocks.push(Block {
                factor: good.factor,
                scale: good.scale,
                // 0 times infinity: the NaN that x86 makes of it is negative, and torch keeps the sign.
                nan: if good.factor == f32::INFINITY && nan == e4m3::NAN { nan | 0x80 } else { nan },
                count: good.may_saturate,
                measure: !good.exempt,
                steps: if worth { Steps::new::<S, DIVIDE>(s, good.factor) } else { None },
            });
        }
        for r in 0..job.panel_rows {
            let row = job.src.row_bytes(job.first_row + r);
            let codes = &mut q[r * job.layout.stride..][..job.src.cols];
            let ahead = row.as_ptr().wrapping_add(job.layout.ahead);
            let measured = match job.measure {
                Measure::Nothing => false,
                Measure::Sample => r % SAMPLED == 0,
                Measure::All => true,
            };
            for (i, block) in blocks.iter().enumerate() {
                let left = i * job.block_cols;
                let right = (left + job.block_cols).min(job.src.cols);
                let (segment, codes) = (&row[left * E::SIZE..right * E::SIZE], &mut codes[left..right]);
                if job.layout.ahead > 0 {
                    for line in (0..segment.len()).step_by(64) {
                        s.prefetch(ahead.wrapping_add(left * E::SIZE + line));
                    }
                }
                let measure = measured && block.measure;
                if let (Some(steps), false) = (&block.steps, measure) {
                    let ((x, x_tail), (codes, _)) = (segment.as_chunks::<64>(), codes.as_chunks_mut::<32>());
                    if x_tail.is_empty() && s.cast_by_steps(x, steps, codes) {
                        continue;
                    }
                }
                let mut step = Step::<S, ROUND, DIVIDE> {
                    factor: s.splat(block.factor),
                    nan: block.nan,
                    count: block.count,
                    measure,
                    flushed: 0,
                    saturated: 0,
                    error: s.splat(0.0),
                    sum: s.splat(0.0),
                };
                match &block.steps {
                    Some(steps) if !measure => step.row_by_steps(s, elem, steps, segment, codes),
                    _ => step.row(s, elem, segment, codes),
                }
                report.flushed += u64::from(step.flushed);
                saturated[i] += u64::from(step.saturated);
                if measure {
                    let (error, sum) = (s.sum(step.error), s.sum(step.sum));
                    if sum.is_finite() && error.is_finite() {
                        let square = f64::from(block.scale) * f64::from(block.scale);
                        report.squared_error += f64::from(error) * square;
                        report.squared_sum += f64::from(sum) * square;
                    }
                }
            }
        }
        report.saturated = saturated.iter().sum();
        (report, saturated)
    }
}

/// Values of a block from which on the steps of its factor are worth making: they cost about as much as casting 200.
const WORTH_STEPS: usize = 1024;

/// What all rows of one block share.
struct Block {
    factor: f32,
    scale: f32,
    nan: u8,
    count: bool,
    measure: bool,
    steps: Option<Steps>,
}

/// One row of one block: constants and counts. A struct with an inlined method instead of a closure, which might not be
/// inlined into the function that has the target features.
struct Step<S: Simd, const ROUND: bool, const DIVIDE: bool> {
    factor: S::F,
    nan: u8,
    count: bool,
    measure: bool,
    flushed: u32,
    saturated: u32,
    error: S::F,
    sum: S::F,
}

impl<S: Simd, const ROUND: bool, const DIVIDE: bool> Step<S, ROUND, DIVIDE> {
    /// All values of a row.
    #[inline(always)]
    fn row<E: Element>(&mut self, s: S, elem: E, x: &[u8], codes: &mut [u8]) {
        let (x16, x_tail) = x.split_at(codes.len() / 16 * 16 * E::SIZE);
        let (codes16, codes_tail) = codes.as_chunks_mut::<16>();
        for (x, codes) in x16.chunks_exact(16 * E::SIZE).zip(codes16) {
            *codes = self.cast(s, elem.load(s, x));
        }
        if !codes_tail.is_empty() {
            let codes = self.cast(s, elem.load_tail(s, x_tail));
            codes_tail.copy_from_slice(&codes[..codes_tail.len()]);
        }
    }

    /// The same for bfloat16, by steps where they hold.
    #[inline(always)]
    fn row_by_steps<E: Element>(&mut self, s: S, elem: E, steps: &Steps, x: &[u8], codes: &mut [u8]) {
        let (x32, x_tail) = x.as_chunks::<64>();
        let (codes32, codes_tail) = codes.as_chunks_mut::<32>();
        for (x, codes) in x32.chunks(1).zip(codes32.chunks_mut(1)) {
            if !s.cast_by_steps(x, steps, codes) {
                self.row(s, elem, x.as_flattened(), codes.as_flattened_mut());
            }
        }
        if !codes_tail.is_empty() {
            self.row(s, elem, x_tail, codes_tail);
        }
    }

    #[inline(always)]
    fn cast(&mut self, s: S, x: S::F) -> [u8; 16] {
        let x = if ROUND { s.round_bf16(x) } else { x };
        let y = if DIVIDE { s.div(x, self.factor) } else { s.mul(x, self.factor) };
        if self.count {
            self.saturated += s.beyond(y, SATURATED_BITS);
        }
        let (codes, flushed) = s.encode_counting(x, y, self.nan);
        self.flushed += flushed;
        if self.measure {
            let error = s.sub(y, s.mul(s.load_e4m3_256th(&codes), s.splat(256.0)));
            self.error = s.fma(error, error, self.error);
            self.sum = s.fma(y, y, self.sum);
        }
        codes
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
